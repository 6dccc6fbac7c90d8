"""A server that tells its clients that it ends their sessions, and closes their connections later than that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
_FAREWELL = b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS
_CHUNK = 65536


class FarewellProxy:
    """A proxy in front of a server; whom it has said farewell to hears nothing more, and is closed when it is told to.

    A backend that is terminated exits some milliseconds after it has said so. Here that lasts as long as the test
    lets it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._clients: set[StreamWriter] = set()
        self._told: set[StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, server_url: str) -> str:
        """The server's URL, by way of the proxy."""
        host, port = self._target
        return server_url.replace(f"@{host}:{port}/", f"@127.0.0.1:{self.port}/")

    async def say_farewell(self) -> int:
        """To all that are connected now, and until they have read it; how many they are."""
        clients, self._clients = self._clients, set()
        self._told |= clients
        for client in clients:
            client.write(_FAREWELL)
            await client.drain()
        for _ in range(10):  # a client of this loop reads in its next turns what is in its socket now
            await asyncio.sleep(0)
        return len(clients)

    def close_told(self) -> None:
        """Close what was said farewell to, as the server does at last."""
        for client in self._told:
            client.transport.abort()

    async def _connected(self, reader: StreamReader, client: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients.add(client)
        server: StreamWriter | None = None
        try:
            server_reader, server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as flows:
                flows.create_task(self._answers(server_reader, client))
                while chunk := await reader.read(_CHUNK):
                    server.write(chunk)
                raise ConnectionAbortedError
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # whichever side ended it, the other is told below
        finally:
            for writer in (client, server):
                if writer is not None:
                    writer.transport.abort()
            self._clients.discard(client)
            self._told.discard(client)
            self._tasks.discard(task)

    async def _answers(self, server: StreamReader, client: StreamWriter) -> None:
        while chunk := await server.read(_CHUNK):
            if client in self._clients:
                client.write(chunk)
        if client in self._clients:
            raise ConnectionAbortedError  # ends the other direction, too
