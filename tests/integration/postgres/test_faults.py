"""Hostile conditions are ordinary: what was acknowledged is there, once, whatever the network and the server do."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance.kit import append, record, row_unit, saga, unit, worker
from event_workflow_engine.testing.network import FaultProxy
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.guarantees.recording import Tally

    from event_workflow_engine.storage.port import SqlSession, Storage, Unit

pytestmark = pytest.mark.timeout(60)

MARK = b"the-marked-payload"
COMMIT = b"COMMIT\0"  # the end of a message, which READ COMMITTED is not


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[FaultProxy]:
    parts = urlsplit(postgres_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
async def direct(postgres_url: str) -> AsyncIterator[Storage]:
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        yield storage


@pytest.fixture
async def storage(direct: Storage, postgres_url: str, proxy: FaultProxy) -> AsyncIterator[Storage]:
    """The same store by way of the proxy."""
    async with open_storage(proxy.url(postgres_url)) as storage:
        await storage.write(unit(append("warm", record())))
        yield storage


def marked(stream: str = "a", expected: int = 0) -> Unit:
    return unit(append(stream, record(data=MARK), expected=expected))


@pytest.mark.parametrize("deliver", [True, False])
@pytest.mark.proves("doubt", store="postgres", faults=1)
async def test_a_batch_in_doubt_lands_once(
    storage: Storage, direct: Storage, proxy: FaultProxy, deliver: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The call was sent and its answer never came: each unit of it is looked up, and written only if it is absent."""
    told: list[Any] = []
    storage.add_commit_hook(told.extend)
    units = [marked(f"s-{n}") for n in range(4)] + [unit(append("any", record())), row_unit(saga("r-1"))]
    cut = proxy.cut_after(MARK, deliver=deliver)
    with caplog.at_level(logging.WARNING, logger="event_workflow_engine.storage"):
        written = await asyncio.gather(*(storage.write(one) for one in units))
    assert cut.done()
    assert [one.unit_id for one in written] == [one.id for one in units]
    records = await direct.read_log(after=1)
    assert [one.id for one in records] == [one.id for one in units[:5]], "each once, in order"
    assert [w.appended[0].position for w in written[:5]] == [one.position for one in records]
    assert [one.id for one, _ in told] == [one.id for one in units], "and the hooks hear of each once"
    assert caplog.text.count("is in doubt") == 1, "the log says in one line what happened"
    assert await direct.get("sagas", ("r-1",)) is not None


@pytest.mark.parametrize("deliver", [True, False])
@pytest.mark.proves("doubt", store="postgres", faults=1)
async def test_an_exclusive_transaction_in_doubt_lands_once_or_not_at_all(
    storage: Storage, direct: Storage, proxy: FaultProxy, deliver: bool
) -> None:
    async def work(session: SqlSession) -> None:
        await session.execute("CREATE TABLE ledger (account TEXT)", {})
        await session.execute("INSERT INTO ledger VALUES ('a')", {})

    one = marked()
    proxy.cut_after(COMMIT, deliver=deliver)
    if deliver:
        assert (await storage.exclusive(one, work)).unit_id == one.id
        assert await direct.fetch("SELECT account FROM ledger", {}) == [{"account": "a"}]
    else:
        with pytest.raises(StorageUnavailableError):
            await storage.exclusive(one, work)
        assert await direct.outcome(one.id) is None
        await storage.exclusive(one, work)
    assert await direct.head("a") == 1


@pytest.mark.parametrize("deliver", [True, False])
@pytest.mark.proves("doubt", store="postgres", faults=1)
async def test_a_claim_in_doubt_is_whole(storage: Storage, direct: Storage, proxy: FaultProxy, deliver: bool) -> None:
    await direct.write(row_unit(worker("w1"), saga("s1")))
    proxy.cut_after(COMMIT, deliver=deliver)
    with pytest.raises(StorageUnavailableError):
        await storage.perform("claim_saga", worker="w1", id="s1")
    await direct.write(unit(append("behind", record())))  # waits for the lock, so for the end of the claim
    row = await storage.get("sagas", ("s1",))
    assert row is not None
    assert (row["owner"], row["fence"]) == (("w1", 1) if deliver else ("", 0))


async def test_reads_go_on_over_a_cut(storage: Storage, proxy: FaultProxy) -> None:
    await storage.head("a")
    proxy.cut()
    assert await storage.last_position() == 1
    assert [one.stream for one in await storage.read_log()] == ["warm"]


@pytest.mark.slow
@pytest.mark.proves("doubt", store="postgres", faults=1)
async def test_a_saga_whose_claim_lands_late_and_untold_is_not_forgotten(
    direct: Storage, postgres_url: str, proxy: FaultProxy
) -> None:
    """The server takes longer to commit the claim than the worker takes to look for what it may have claimed."""
    slow = """
        CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON sagas DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (OLD.owner = '' AND NEW.owner <> '' AND NEW.fence = 1) EXECUTE FUNCTION late()
    """
    busy = World().saga()
    starter = WorkflowEngine(direct, config=EngineConfig(worker=False))
    worker = WorkflowEngine(proxy.url(postgres_url), config=EngineConfig(lease=5.0))
    for engine in (starter, worker):
        engine.register(busy)
    async with starter:
        handle = await starter.start(busy, id="b-1")
        schema = postgres_url.rpartition("=")[2]
        connection = await asyncpg.connect(postgres_url.partition("?")[0], server_settings={"search_path": schema})
        await connection.execute(slow)
        await connection.close()
        cut = proxy.cut_after(COMMIT)
        async with worker:
            await handle.result(timeout=20)
        assert cut.done()
        (row,) = await direct.query("sagas_by_ids", ids='["b-1"]')
        assert row["fence"] == 2, "the first claim had landed"


# -- sagas ---------------------------------------------------------------------------------------------------------


class World:
    """What the steps of sagas did, by saga and step."""

    def __init__(self) -> None:
        self.done: Counter[tuple[str, str]] = Counter()
        self._awaited = 0
        self._reached = asyncio.Event()

    async def reaches(self, steps: int) -> None:
        """Wait until so many steps were done."""
        self._awaited = steps
        self._reached.clear()
        if len(self.done) < steps:
            await self._reached.wait()

    def saga(self, steps: int = 4) -> Saga[Any, Any]:
        def act(name: str) -> Any:
            async def step(ctx: StepContext[Any]) -> str:
                self.done[ctx.saga_id, name] += 1
                if len(self.done) >= self._awaited:
                    self._reached.set()
                await asyncio.sleep(0)
                return ctx.idempotency_key

            return step

        return Saga("busy", [SagaStep(f"s{n}", act(f"s{n}")) for n in range(steps)], sequential=True)


async def check_ends(engine: WorkflowEngine, busy: Saga[Any, Any], ids: list[str]) -> None:
    """Every saga has ended as done, each of its steps succeeded once, and no stream has a hole."""
    for saga_id in ids:
        results = await engine.handle(saga_id, busy).result(timeout=40)
        assert list(results.values()) == [f"{saga_id}:1:{name}" for name in results]
        history = await engine.handle(saga_id).history()
        kinds = Counter(event.type for event in history)
        assert kinds["step-succeeded"] == len(results), "a completed step never runs again"
        assert kinds["saga-completed"] == 1
        assert [event.version for event in history] == list(range(1, len(history) + 1))


@pytest.mark.slow
@pytest.mark.proves("store-errors", "doubt", store="postgres", faults=12)
async def test_sagas_go_on_over_cuts_at_every_kind_of_write(
    direct: Storage, postgres_url: str, proxy: FaultProxy
) -> None:
    """One cut after another, behind what was delivered and before: claims, batches, heartbeats."""
    world = World()
    busy = world.saga()
    engine = WorkflowEngine(proxy.url(postgres_url), config=EngineConfig(max_running=5, lease=2.0))
    engine.register(busy)
    ids = [f"b-{n}" for n in range(30)]

    async def harass() -> None:
        for turn in range(12):
            pattern = COMMIT if turn % 3 == 0 else b"step-succeeded"
            await proxy.cut_after(pattern, deliver=turn % 2 == 0)

    async with engine:
        cuts = asyncio.create_task(harass())
        for saga_id in ids:
            await start_at_last(engine, busy, saga_id)
        await check_ends(engine, busy, ids)
        cuts.cancel()
        await asyncio.gather(cuts, return_exceptions=True)
    assert set(world.done) == {(saga_id, f"s{n}") for saga_id in ids for n in range(4)}


async def start_at_last(engine: WorkflowEngine, busy: Saga[Any, Any], saga_id: str) -> None:
    """Start it, again where it was not possible: the same id is the same saga."""
    while True:
        try:
            await engine.start(busy, id=saga_id)
        except StorageUnavailableError:
            continue
        return


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"fsync": "off"}) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "restarted", "backends killed"])
@pytest.mark.proves("database-killed", store="postgres")
async def test_sagas_go_on_over_a_server_that_is(own_server: PostgresServer, how: str, tally: Tally) -> None:
    world = World()
    busy = world.saga()
    url = own_server.url() + f"?schema={how.replace(' ', '_')}"
    engine = WorkflowEngine(url, config=EngineConfig(auto_upgrade=True, max_running=20, lease=3.0))
    engine.register(busy)
    ids = [f"b-{n}" for n in range(120)]

    async def harass() -> None:
        for turn in (20, 50, 80):
            await world.reaches(turn * 4)
            if how == "backends killed":
                admin = await asyncpg.connect(own_server.url())
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend'"
                )
                await admin.close()
            else:
                await asyncio.to_thread(own_server.restart, kill=how == "killed")

    async with engine:
        trouble = asyncio.create_task(harass())
        for saga_id in ids:
            await start_at_last(engine, busy, saga_id)
        await trouble
        tally.count(runs=1, **{"kills" if how == "killed" else "faults": 3})
        await check_ends(engine, busy, ids)
    assert set(world.done) == {(saga_id, f"s{n}") for saga_id in ids for n in range(4)}


@pytest.mark.slow
@pytest.mark.proves("partition", store="postgres", faults=1)
async def test_rule_12_a_worker_cut_off_by_a_partition_acts_no_more_and_others_go_on(
    direct: Storage, postgres_url: str, proxy: FaultProxy
) -> None:
    """It cannot confirm its heartbeat, so it begins nothing; when the network is back it is another life."""
    here, there = World(), World()
    gate = asyncio.Event()
    held = asyncio.Event()

    async def wait(ctx: StepContext[Any]) -> None:
        held.set()
        await gate.wait()

    async def through(ctx: StepContext[Any]) -> None:
        return None

    def parted(world: World, middle: Any) -> Saga[Any, Any]:
        async def last(ctx: StepContext[Any]) -> None:
            world.done[ctx.saga_id, "last"] += 1

        return Saga("parted", [SagaStep("middle", middle), SagaStep("last", last)], sequential=True)

    cut_off = WorkflowEngine(proxy.url(postgres_url), config=EngineConfig(lease=1.0, shutdown_timeout=0))
    cut_off.register(parted(here, wait))
    other = WorkflowEngine(postgres_url, config=EngineConfig(lease=1.0))
    other.register(parted(there, through))
    async with cut_off:
        handle = await cut_off.start("parted", id="p-1")
        await held.wait()
        proxy.hang()
        async with other:
            await other.handle("p-1").result(timeout=20)
            gate.set()  # the step of the one that is cut off ends, and it must not go on with the next
            proxy.go_on()
            await handle.result(timeout=20)
    assert not here.done
    assert there.done == {("p-1", "last"): 1}
