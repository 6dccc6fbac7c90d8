"""Behind a pooler that shares its connections: no prepared statement, no notification, and all the rest works."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.errors import OwnershipLostError, VersionConflictError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row, WorkerRef, Written
from event_workflow_engine.testing.conformance.kit import events, row_unit, saga, unit, worker
from event_workflow_engine.testing.network import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import SqlSession, Storage

pytestmark = pytest.mark.timeout(60)

KEPT = b"__asyncpg_stmt_"  # how the driver names the statements that it means to use again
LISTENS = b"LISTEN "


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[FaultProxy]:
    parts = urlsplit(postgres_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with open_storage(postgres_url, auto_upgrade=True), FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
def url(postgres_url: str, proxy: FaultProxy) -> str:
    """The store by way of the proxy, asked to leave nothing in its sessions."""
    return f"{proxy.url(postgres_url)}&prepared=off&listen=off"


async def do_everything(storage: Storage) -> None:
    """A write and a read of each kind, some twice, so that there would be a statement to use again."""
    for n in range(3):
        await storage.write(unit(events("a", expected=n)))
    results = await asyncio.gather(
        *(storage.write(unit(events("a", expected=n))) for n in (3, 3, 4)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Written, VersionConflictError, Written]
    again = unit(events("b", 2), rows=[worker("w"), saga("s-1"), saga("s-2")])
    assert await storage.write(again) == await storage.write(again) == await storage.outcome(again.id)
    by = WorkerRef("w", 1)
    claimed = await storage.perform("claim_sagas", worker="w", now=20, limit=1, sagas='[["trip", 1]]')
    claimed += await storage.perform("claim_saga", worker="w", id="s-2")
    assert [row["id"] for row in claimed] == ["s-1", "s-2"]
    await storage.write(row_unit(Row("sagas", "update", ("s-1",), {"ended_at": 30}, {"fence": 1}), by=by))
    await storage.perform("release_sagas", worker="w", fences='{"s-2": 1}', now=40)
    await storage.perform("bury_worker", beat=None, id="w", incarnation=1, now=50)
    with pytest.raises(OwnershipLostError):
        await storage.write(unit(events("a"), by=by))

    async def work(session: SqlSession) -> None:
        await session.execute("CREATE TABLE own (n bigint)", {})
        for n in range(3):
            await session.execute("INSERT INTO own VALUES (:n)", {"n": n})
        assert len(await session.fetch("SELECT n FROM own WHERE n < :n", {"n": 2})) == 2

    await storage.exclusive(unit(events("c")), work)
    for _ in range(2):
        assert await storage.fetch("SELECT sum(n)::bigint AS n FROM own WHERE n > :n", {"n": 0}) == [{"n": 3}]
        assert (await storage.head("a"), await storage.last_position()) == (5, 8)
        assert [record.version for record in await storage.read_stream("a", backwards=True, limit=2)] == [5, 4]
        assert len(await storage.read_streams(["a", "b"])) == 7
        assert [record.stream for record in await storage.read_log(after=7, categories=["c"])] == ["c"]
        row: dict[str, Any] | None = await storage.get("sagas", ("s-2",))
        assert row is not None
        assert row["owner"] == ""
        assert [row["n"] for row in await storage.query("sagas_count")] == [2]
        assert (await storage.status())["estimates"]["events"] == 8


async def test_all_works_and_nothing_is_kept(url: str, proxy: FaultProxy) -> None:
    kept, listens = proxy.cut_after(KEPT), proxy.cut_after(LISTENS)
    async with open_storage(url) as storage:
        await do_everything(storage)
    assert proxy.accepted
    assert not kept.done()
    assert not listens.done()


@pytest.mark.parametrize("what", [KEPT, LISTENS])
async def test_without_these_options_something_is(postgres_url: str, proxy: FaultProxy, what: bytes) -> None:
    seen = proxy.cut_after(what)
    async with open_storage(proxy.url(postgres_url)) as storage, asyncio.timeout(20):
        await asyncio.gather(seen, storage.write(unit(events("a"))), storage.read_log())


@pytest.mark.parametrize("what", ["a write", "exclusive work", "a claim"])
async def test_a_bell_rings_for_what_another_store_object_commits(url: str, what: str) -> None:
    async with open_storage(url) as one, open_storage(url) as two:
        rang = asyncio.Event()
        two.add_bell(rang.set)
        # A bell may ring once for nothing when it begins to look, so more than one has to ring.
        for n in range(1, 4):
            rang.clear()
            if what == "a write":
                await one.write(unit(events("a")))
            elif what == "exclusive work":
                await one.exclusive(unit(events("a")), no_change)
            else:
                await one.perform("bury_worker", beat=None, id="w", incarnation=1, now=50)
            async with asyncio.timeout(20):
                while not rang.is_set() or (what != "a claim" and await two.head("a") < n):
                    await rang.wait()


async def no_change(session: SqlSession) -> None:
    await session.fetch("SELECT 1 AS one", {})


async def test_sagas_run(url: str, proxy: FaultProxy) -> None:
    kept, listens = proxy.cut_after(KEPT), proxy.cut_after(LISTENS)

    async def one() -> int:
        return 1

    engine = WorkflowEngine(url, config=EngineConfig())
    definition = Saga("one", [SagaStep("one", one)])
    engine.register(definition)
    async with engine:
        assert [(await engine.execute(definition))["one"] for _ in range(3)] == [1, 1, 1]
    assert not kept.done()
    assert not listens.done()
