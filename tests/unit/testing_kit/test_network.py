from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import DefinitionError, EngineStateError
from event_workflow_engine.testing.network import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that sends every line back, and keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
                await writer.drain()
        self.ended.set()
        writer.close()


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


@asynccontextmanager
async def client(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(streams: Streams, line: bytes) -> bytes:
    reader, writer = streams
    writer.write(line)
    return await reader.readline()


async def is_cut(streams: Streams) -> bool:
    try:
        async with asyncio.timeout(5):
            return await streams[0].readline() == b""
    except OSError:
        return True


async def test_without_faults_everything_passes_both_ways(proxy: FaultProxy) -> None:
    async with client(proxy) as one, client(proxy) as two:
        big = b"x" * 1_000_000 + b"\n"
        one[0]._limit = len(big)  # type: ignore[attr-defined]
        assert await ask(two, b"b\n") == b"b\n"
        assert proxy.connections == proxy.accepted == 2
        one[1].write(b"a\n")
        assert await one[0].readline() == b"a\n"


async def test_cut_aborts_what_is_open_and_takes_what_comes(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as one:
        assert await ask(one, b"a\n") == b"a\n"
        proxy.cut()
        assert await is_cut(one)
        await echo.ended.wait()
    async with client(proxy) as two:
        assert await ask(two, b"b\n") == b"b\n"


async def test_refusing_leaves_what_is_open_and_accepting_uses_the_same_port(proxy: FaultProxy) -> None:
    port = proxy.port
    async with client(proxy) as one:
        assert await ask(one, b"a\n") == b"a\n"
        proxy.refuse()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        assert await ask(one, b"b\n") == b"b\n"
        await proxy.accept()
        assert proxy.port == port
        async with client(proxy) as two:
            assert await ask(two, b"c\n") == b"c\n"


async def test_what_hangs_is_held_and_flows_on_in_order(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as one:
        assert await ask(one, b"a\n") == b"a\n"
        proxy.hang()
        one[1].write(b"b\n")
        async with client(proxy) as late:
            late[1].write(b"late\n")
            for _ in range(100):
                await asyncio.sleep(0)
            assert echo.heard == [b"a\n"]
            one[1].write(b"c\n")
            proxy.go_on()
            assert [await one[0].readline(), await one[0].readline()] == [b"b\n", b"c\n"]
            assert await late[0].readline() == b"late\n"


async def test_each_chunk_is_late(proxy: FaultProxy) -> None:
    proxy.delay = 0.05
    async with client(proxy) as one:
        begun = time.monotonic()
        assert await ask(one, b"a\n") == b"a\n"
        assert time.monotonic() - begun >= 0.1, "once each way"


@pytest.mark.parametrize("deliver", [True, False])
async def test_a_connection_is_cut_behind_a_pattern(proxy: FaultProxy, echo: Echo, deliver: bool) -> None:
    """The server hears it, or not; the client hears nothing any more. Others go on, and it happens once."""
    async with client(proxy) as one, client(proxy) as other:
        assert await ask(other, b"x\n") == b"x\n"
        cut = proxy.cut_after(b"COMMIT", deliver=deliver)
        assert await ask(one, b"BEGIN\n") == b"BEGIN\n"
        one[1].write(b"COM")
        await one[1].drain()
        for _ in range(20):
            await asyncio.sleep(0)
        one[1].write(b"MIT\n")
        assert await is_cut(one)
        await cut
        assert await ask(other, b"COMMIT\n") == b"COMMIT\n"
        assert echo.heard.count(b"COMMIT\n") == (2 if deliver else 1)


async def test_a_pattern_on_the_way_back(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as one:
        cut = proxy.cut_after(b"done", direction="to_client", deliver=False)
        one[1].write(b"done\n")
        assert await is_cut(one)
        await cut
        assert echo.heard == [b"done\n"]


async def test_urls(proxy: FaultProxy) -> None:
    assert proxy.url("postgresql://u:p@db:5432/d?x=1") == f"postgresql://u:p@127.0.0.1:{proxy.port}/d?x=1"
    assert proxy.url("nats://db:4222") == f"nats://127.0.0.1:{proxy.port}"


async def test_misuse_has_names() -> None:
    for host, port in (("", 1), ("h", 0), ("h", 70_000)):
        with pytest.raises(DefinitionError):
            FaultProxy(host, port)
    proxy = FaultProxy("127.0.0.1", 9)
    with pytest.raises(EngineStateError):
        proxy.cut_after(b"x")
    async with proxy:
        with pytest.raises(DefinitionError):
            proxy.cut_after(b"")
