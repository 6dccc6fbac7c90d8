"""Faults of the network between a client and a server, in the test's own process: connections cut, hung and delayed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from event_workflow_engine.errors import DefinitionError, EngineStateError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FaultProxy"]

Direction = Literal["to_server", "to_client"]

_CHUNK: Final = 65536


class FaultProxy:
    r"""A TCP proxy on loopback in front of a server under test, which does to its connections what networks do.

    Args:
        host: The server's host.
        port: The server's port.

    Attributes:
        port: Where clients connect, on 127.0.0.1; the same until the block is left.
        delay: Seconds by which each chunk is late, in each direction. Order is kept.
        accepted: How many connections there were.

    Example:
        >>> async def main() -> bytes:
        ...     async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ...         writer.write((await reader.readline()).upper())
        ...         writer.close()
        ...
        ...     async with await asyncio.start_server(shout, "127.0.0.1", 0) as server:
        ...         async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        ...             reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        ...             writer.write(b"hello\n")
        ...             answer = await reader.read()
        ...             writer.close()
        ...             return answer
        >>> asyncio.run(main())
        b'HELLO\n'
    """

    def __init__(self, host: str, port: int) -> None:
        if not host or not 0 < port < 2**16:
            raise DefinitionError(f"FaultProxy: {host!r}:{port!r} is no address of a server")
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._cuts: list[_Cut] = []
        self.port = 0
        self.delay = 0.0
        self.accepted = 0

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.accept()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Cut everything and listen no more."""
        self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._pairs)

    def url(self, server_url: str) -> str:
        """The server's URL, by way of the proxy."""
        parts = urlsplit(server_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Abort all open connections, both sides; new ones are taken."""
        for pair in list(self._pairs):
            pair.abort()

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def accept(self) -> None:
        """Take new connections, as at first."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def hang(self) -> None:
        """Hold all bytes in both directions, and new connections, as a partition does; nothing is lost."""
        self._flows.clear()

    def go_on(self) -> None:
        """Let what was held flow, in order."""
        self._flows.set()

    def cut_after(
        self, pattern: bytes, *, direction: Direction = "to_server", deliver: bool = True
    ) -> asyncio.Future[None]:
        """Cut the connection on which `pattern` passes next, once; done when that has happened.

        So an answer that never comes back is made: with a commit delivered to the server and the client cut off, the
        client cannot know whether it was made.

        Args:
            pattern: What to wait for; it may be split over chunks.
            direction: Which way it goes.
            deliver: Whether what holds it is delivered before the cut.

        Raises:
            DefinitionError: The pattern is empty.
            EngineStateError: The proxy is not entered.
        """
        if not pattern:
            raise DefinitionError("FaultProxy.cut_after: the pattern is empty")
        if self._server is None and not self._pairs:
            raise EngineStateError("FaultProxy: use it inside of `async with`")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cuts.append(_Cut(pattern, direction, deliver, done))
        return done

    # -- within ------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            await self._flows.wait()
            server_reader, pair.server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as flows:
                flows.create_task(self._pump(pair, reader, pair.server, "to_server"))
                flows.create_task(self._pump(pair, server_reader, writer, "to_client"))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # whichever side ended it, the other is told below
        finally:
            pair.abort()
            self._pairs.discard(pair)
            self._tasks.discard(task)

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        tail = b""
        while chunk := await reader.read(_CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flows.wait()
            cut = self._cut_by(tail + chunk, direction)
            tail = (tail + chunk)[-_CHUNK:] if self._cuts else b""
            if cut is None or cut.deliver:
                writer.write(chunk)
                await writer.drain()
            if cut is not None:
                pair.cut_off_client()
                cut.done.set_result(None)
                return
        if not pair.client_is_cut:
            with suppress(OSError, RuntimeError):
                writer.write_eof()

    def _cut_by(self, seen: bytes, direction: Direction) -> _Cut | None:
        for cut in self._cuts:
            if cut.direction == direction and cut.pattern in seen:
                self._cuts.remove(cut)
                return cut
        return None


class _Cut:
    """A cut to come."""

    def __init__(self, pattern: bytes, direction: Direction, deliver: bool, done: asyncio.Future[None]) -> None:
        self.pattern = pattern
        self.direction = direction
        self.deliver = deliver
        self.done = done


class _Pair:
    """A client's connection and the one to the server that serves it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self._client = client
        self.server: asyncio.StreamWriter | None = None
        self.client_is_cut = False

    def cut_off_client(self) -> None:
        """Nothing comes back any more. The server's side is closed in order, so that it reads all that was sent."""
        self.client_is_cut = True
        _abort(self._client)
        if self.server is not None:
            self.server.close()

    def abort(self) -> None:
        """End both sides at once."""
        _abort(self._client)
        if self.server is not None:
            _abort(self.server)


def _abort(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    abort: Callable[[], None] = transport.abort
    abort()
