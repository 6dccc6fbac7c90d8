"""A pooler of the tests' own, which shares connections by the transaction as far as its clients can tell."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 65536
_HEAD: Final = 5
_READY: Final = b"Z"
_IDLE: Final = b"I"
_TERMINATE: Final = b"X"
OPTIONS: Final = "sslmode=disable&prepared=off&listen=off"


class Slots:
    """Clients may use a server's connections while they have one of so many slots, from a message to its transaction's end.

    Each has a connection of its own, so that what it does not have to wait for is a state that others left behind: that
    is tried with a real pooler. They wait in line.

    Args:
        server_url: Before which server.
        number: How many slots.
        late: By how many seconds the next chunk of the server's answers is late; each connection keeps their order.
    """

    def __init__(self, server_url: str, number: int, *, late: Callable[[], float] | None = None) -> None:
        self._url = server_url
        self._slots = asyncio.Semaphore(number)
        self._late = late
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.waiting = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    @property
    def url(self) -> str:
        """The server's, by way of the slots."""
        assert self._server is not None
        parts = urlsplit(self._url)
        port = self._server.sockets[0].getsockname()[1]
        return f"{self._url.replace(f':{parts.port}/', f':{port}/')}&{OPTIONS}"

    async def awaited(self, number: int) -> None:
        """Return when so many wait for a slot."""
        while self.waiting < number:
            self._changed.clear()
            await self._changed.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        parts = urlsplit(self._url)
        client = _Client(self, reader, writer)
        try:
            await client.serve(*await asyncio.open_connection(parts.hostname, parts.port))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # whichever side ended it, the other is told below
        finally:
            client.end()
            self._clients.discard(task)

    async def take(self) -> None:
        self._count(1)
        try:
            await self._slots.acquire()
        finally:
            self._count(-1)

    def give_back(self) -> None:
        self._slots.release()

    def _count(self, more: int) -> None:
        self.waiting += more
        self._changed.set()

    async def be_late(self) -> None:
        if self._late is not None:
            await asyncio.sleep(self._late())


class _Client:
    def __init__(self, slots: Slots, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._slots = slots
        self._reader = reader
        self._writers = [writer]
        self._entered = False  # it has logged in, for which it needs no slot
        self._has_slot = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        async with asyncio.TaskGroup() as flows:
            answering = flows.create_task(self._answer(reader, self._writers[0]))
            await self._ask(writer)
            answering.cancel()

    def end(self) -> None:
        self._release()
        for writer in self._writers:
            writer.transport.abort()

    async def _ask(self, server: asyncio.StreamWriter) -> None:
        while chunk := await self._reader.read(_CHUNK):
            if self._entered and not self._has_slot and not chunk.startswith(_TERMINATE):
                await self._slots.take()
                self._has_slot = True
            server.write(chunk)
            with suppress(ConnectionError):
                await server.drain()

    async def _answer(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        seen = b""
        while chunk := await server.read(_CHUNK):
            seen += chunk
            idle = False
            while len(seen) >= _HEAD and len(seen) > (size := int.from_bytes(seen[1:_HEAD], "big")):
                kind, body, seen = seen[:1], seen[_HEAD : size + 1], seen[size + 1 :]
                if kind == _READY:
                    idle = body == _IDLE
                    self._entered = True
            if idle:
                self._release()
            await self._slots.be_late()
            client.write(chunk)
            await client.drain()
        client.close()

    def _release(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._slots.give_back()
