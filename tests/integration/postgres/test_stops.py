"""The server stops a statement, or takes no more connections: it is told as what it is, and all goes on afterwards."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.integration.postgres.kit import Server, server_at

from event_workflow_engine import EngineConfig, Saga, SagaStep, SqlProjection, WorkflowEngine, event
from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance.kit import append, record, unit
from event_workflow_engine.testing.network import FaultProxy
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.projections import Transaction

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Holder:
    """Another client's transaction on the same database."""

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._transaction = connection.transaction()

    async def begin(self) -> None:
        await self._transaction.start()

    async def run(self, sql: str) -> Any:
        return await self._connection.fetch(sql.replace("ewe.", f"{self._schema}."))

    async def end(self) -> None:
        await self._transaction.rollback()


@pytest.fixture
async def holder(postgres_url: str) -> AsyncIterator[Holder]:
    async with open_storage(postgres_url, auto_upgrade=True):
        pass
    connection = await asyncpg.connect(postgres_url.partition("?")[0])
    try:
        holder = Holder(connection, postgres_url.rpartition("=")[2])
        await holder.begin()
        yield holder
    finally:
        await connection.close()


@pytest.mark.proves("store-errors", store="postgres", faults=1)
async def test_a_batch_that_times_out_is_given_up_soon_and_none_of_it_has_landed(
    postgres_url: str, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    """Not after as many timeouts as it has units. What was given up may be written again, and lands once."""
    units = [unit(append(f"s-{n}", record(), expected=0)) for n in range(200)]
    async with open_storage(f"{postgres_url}&statement_timeout=200ms") as storage:
        await storage.write(unit(append("warm", record())))
        await holder.run("SELECT ewe.lock_store()")
        with caplog.at_level(logging.WARNING, logger="event_workflow_engine.storage"):
            async with asyncio.timeout(10):
                found = await asyncio.gather(*(storage.write(one) for one in units), return_exceptions=True)
        assert {type(one) for one in found} == {StorageUnavailableError}
        assert "raise statement_timeout" in str(found[0])
        assert caplog.text.count("gave up a batch") == 1
        assert await storage.last_position() == 1
        await holder.end()
        written = await asyncio.gather(*(storage.write(one) for one in units))
        assert [one.appended[0].version for one in written] == [1] * len(units)
        assert len(await storage.read_log(limit=1000)) == 1 + len(units)


@pytest.mark.proves("doubt", store="postgres", faults=1)
async def test_of_a_batch_in_doubt_none_is_given_up(postgres_url: str, holder: Holder) -> None:
    """It has landed, and its first look-ups are stopped: they are told that they are in doubt, the others the truth."""
    parts = urlsplit(postgres_url)
    assert parts.hostname is not None
    assert parts.port is not None
    units = [unit(append(f"s-{n}", record(data=b"the-marked-payload"), expected=0)) for n in range(20)]
    async with (
        FaultProxy(parts.hostname, parts.port) as proxy,
        open_storage(f"{proxy.url(postgres_url)}&statement_timeout=300ms") as storage,
    ):
        await storage.write(unit(append("warm", record())))
        cut = proxy.cut_after(b"the-marked-payload", deliver=True)
        cut.add_done_callback(lambda _: proxy.refuse())
        writing = asyncio.gather(*(storage.write(one) for one in units), return_exceptions=True)
        await cut
        while not await holder.run("SELECT FROM ewe.events WHERE stream = 's-19'"):
            pass
        await holder.run("SELECT ewe.lock_store()")
        await proxy.accept()
        await waits_for_lock(holder, 4)  # the batch, and then units alone
        await holder.end()
        found = await writing
        in_doubt = [one for one in found if isinstance(one, BaseException)]
        assert 2 <= len(in_doubt) < len(units), "more than after which it gives up a batch that is not in doubt"
        assert all(isinstance(one, StorageUnavailableError) for one in in_doubt)
        assert all("whether it landed is not known" in str(one) for one in in_doubt)
        assert [await storage.outcome(one.id) is not None for one in units] == [True] * len(units)


async def waits_for_lock(holder: Holder, times: int) -> None:
    """Until so many different transactions have waited for the store's lock."""
    seen: set[Any] = set()
    while len(seen) < times:
        await holder.run("SELECT pg_stat_clear_snapshot()")  # a transaction looks at the others only once
        rows = await holder.run(
            "SELECT a.pid, a.query_start FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid "
            "JOIN pg_locks AS held USING (locktype, database, classid, objid, objsubid) "
            "WHERE l.locktype = 'advisory' AND NOT l.granted AND held.granted AND held.pid = pg_backend_pid()"
        )
        seen.update(row["query_start"] for row in rows)
        await asyncio.sleep(0)


@event("stops-noted")
@dataclass(frozen=True)
class Noted:
    n: int


@pytest.mark.proves("store-errors", store="postgres", faults=1)
async def test_a_deadlock_with_a_users_transaction_is_tried_again(
    postgres_url: str, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    """The server ends the projection's transaction. It says so, and its events are folded once when it can."""
    engine = WorkflowEngine(postgres_url, config=EngineConfig())
    lines = SqlProjection("lines", tables={"lines": "n BIGINT"})
    at_work, meets = asyncio.Event(), asyncio.Event()

    @lines.on(Noted)
    async def insert(transaction: Transaction, noted: Noted) -> None:
        at_work.set()
        if noted.n == 1:
            await meets.wait()
            await transaction.execute("UPDATE public.mine SET n = n + 1")
        await transaction.execute("INSERT INTO {lines} VALUES (:n)", n=noted.n)

    await holder.run("SET LOCAL deadlock_timeout = '60s'")  # so that it is the other that notices
    admin = await asyncpg.connect(postgres_url.partition("?")[0])
    try:
        await admin.execute("DROP TABLE IF EXISTS public.mine; CREATE TABLE public.mine AS SELECT 0 AS n")
        engine.projections.register(lines)
        async with engine:
            await holder.run("UPDATE public.mine SET n = 10")
            await engine.store.append("notes-1", [Noted(1), Noted(2)])
            await at_work.wait()
            locking = asyncio.create_task(holder.run("SELECT ewe.lock_store()"))
            while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                pass
            meets.set()
            await locking  # the projection, which had the lock, was ended
            await holder.end()
            await engine.projections.wait_for(lines, 2, timeout=30)
            found = await engine.projections.fetch(lines, "SELECT n FROM {lines} ORDER BY n")
            assert [row["n"] for row in found] == [1, 2]
            assert await admin.fetchval("SELECT n FROM public.mine") == 1, "once, and what was undone is undone"
    finally:
        await admin.execute("DROP TABLE IF EXISTS public.mine")
        await admin.close()
    assert caplog.text.count("DeadlockDetectedError") == 1
    assert "end those that hang, then try again" in caplog.text


@pytest.mark.proves("store-errors", store="postgres", faults=1)
async def test_a_server_without_connections_is_waited_for_and_told_of() -> None:
    """All are taken, those of the store too; when some are free its sagas go on."""
    done: list[str] = []
    gate, arrived = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        done.append("first")
        arrived.set()
        await gate.wait()

    async def second() -> None:
        done.append("second")

    saga: Saga[Any, Any] = Saga("two", [SagaStep("first", first), SagaStep("second", second)], sequential=True)
    settings = {"fsync": "off", "max_connections": "16", "superuser_reserved_connections": "3"}
    with PostgresServer(settings=settings) as own:
        async with server_at(own.url()) as server, AsyncExitStack() as taken:
            role = await server.role()
            await server.run(f"GRANT CREATE ON DATABASE postgres TO {role}")
            url = server.at(user=role)
            engine = WorkflowEngine(url, config=EngineConfig(auto_upgrade=True, lease=30.0))
            engine.register(saga)
            async with engine:
                handle = await engine.start(saga, id="s-1")
                await arrived.wait()
                ended = await take_all(server, url, role, taken)
                assert ended
                gate.set()
                with pytest.raises(StorageUnavailableError, match="no connection left"):
                    await engine.store.storage.last_position()
                await taken.aclose()
                await handle.result(timeout=30)
            assert done == ["first", "second"]


async def take_all(server: Server, url: str, role: str, taken: AsyncExitStack) -> int:
    """Hold every connection that the role can have, and end those that others of it held; how many those were."""
    mine: list[Any] = []
    ended = 0
    while True:
        try:
            connection = await asyncpg.connect(url, server_settings={"application_name": "taker"})
        except asyncpg.TooManyConnectionsError:
            others = await server.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE usename = '{role}' AND application_name <> 'taker'"
            )
            ended += len(others)
            if not others:
                return ended
        else:
            mine.append(connection)
            taken.push_async_callback(connection.close)
