"""Behind a pooler that has few connections: nobody holds one while he waits for what needs another."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from tests.integration.postgres.slots import Slots

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.errors import EngineStateError, StorageUnavailableError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.postgres.errors import storage_error
from event_workflow_engine.testing.conformance.kit import events, unit

if TYPE_CHECKING:
    import random

    from event_workflow_engine.storage.port import SqlSession, Storage, Unit, Written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

SOON = 8.0
"""Seconds; who waits for himself waits until one of the library's bounds, of which the shortest has ten."""


@pytest.fixture
async def table(postgres_url: str) -> str:
    """A table of the user's, in a store that has been made."""
    name = f"few_{uuid4().hex[:12]}"

    async def make(session: SqlSession) -> Unit:
        await session.execute(f"CREATE TABLE {name} (owner TEXT NOT NULL, n BIGINT NOT NULL)", {})
        return unit(events("made"))

    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        await storage.transact(make)
    return name


async def test_transactions_that_end_at_once_leave_a_batch_its_connection(postgres_url: str, table: str) -> None:
    """They have all the connections there are, and the batch that is in flight has none."""
    ready = asyncio.Event()
    inside = [asyncio.Event() for _ in range(3)]

    async def transact(storage: Storage, n: int) -> Written:
        async def work(session: SqlSession) -> Unit:
            await session.execute(f"INSERT INTO {table} VALUES ('a', :n)", {"n": n})
            inside[n].set()
            await ready.wait()
            return unit(events("hot"))

        return await storage.transact(work)

    async with Slots(postgres_url, 3) as slots, open_storage(slots.url) as storage:
        told: list[tuple[Unit, Written]] = []
        storage.add_commit_hook(told.extend)
        running = [asyncio.create_task(transact(storage, n)) for n in range(3)]
        for one in inside:
            await one.wait()
        running.append(asyncio.create_task(storage.write(unit(events("hot")))))
        await slots.awaited(1)
        ready.set()
        async with asyncio.timeout(SOON):
            written = await asyncio.gather(*running)
        positions = [one.appended[0].position for _, one in told]
        assert positions == sorted(one.appended[0].position for one in written)
        assert await storage.head("hot") == 4
        assert await storage.fetch(f"SELECT count(*)::bigint AS n FROM {table}", {}) == [{"n": 3}]


async def test_transactions_that_wait_for_each_others_rows_are_told_of_by_the_server(
    postgres_url: str, table: str
) -> None:
    """One that is ready to commit waits for the lock of a writer who waits for its rows: the server ends one of them."""
    has_lock, has_row = asyncio.Event(), asyncio.Event()
    touch = f"UPDATE {table} SET n = n + 1"

    async def fill(session: SqlSession) -> Unit:
        await session.execute(f"INSERT INTO {table} VALUES ('a', 0)", {})
        return unit(events("filled"))

    async def beside(session: SqlSession) -> Unit:
        await session.execute(touch, {})
        has_row.set()
        await has_lock.wait()
        return unit(events("x"))

    async def with_lock(session: SqlSession) -> None:
        has_lock.set()
        await session.execute(touch.replace(table, f"public.{table}"), {})

    async with open_storage(postgres_url) as storage, asyncio.timeout(SOON):
        await storage.transact(fill)
        transaction = asyncio.create_task(storage.transact(beside))
        await has_row.wait()
        exclusive = asyncio.create_task(storage.exclusive(unit(events("y")), with_lock))
        found = await asyncio.gather(transaction, exclusive, return_exceptions=True)
        (error,) = [one for one in found if isinstance(one, BaseException)]
        assert "another transaction was in the way" in str(error)
        assert await storage.fetch(f"SELECT n FROM {table}", {}) == [{"n": 1}]


@pytest.mark.parametrize("number", [1, 3])
async def test_sagas_of_two_workers_go_on_however_few_there_are(postgres_url: str, table: str, number: int) -> None:
    """Transactional steps begin when another's record is on its way, and two of a saga run at once."""
    first_ended: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def first(ctx: StepContext[Any]) -> None:
        first_ended[ctx.saga_id].set()

    async def second(ctx: StepContext[Any]) -> None:
        await first_ended[ctx.saga_id].wait()
        await asyncio.sleep(0)  # the first's record is in flight, so this one's goes behind it

    async def note(ctx: StepContext[Any]) -> None:
        await ctx.transaction.execute(f"INSERT INTO {table} VALUES (:owner, 1)", owner=ctx.idempotency_key)

    notes = [SagaStep(name, note, transactional=True, after="first") for name in "abc"]
    saga: Saga[Any, Any] = Saga("few", [SagaStep("first", first), SagaStep("second", second), *notes])

    async def several(engine: WorkflowEngine, name: str) -> None:
        """One after the other, so that not all are at the same place."""
        for n in range(5):
            await engine.execute(saga, id=f"{name}-{n}")

    async with Slots(postgres_url, number) as slots:
        engines = [WorkflowEngine(slots.url, config=EngineConfig()) for _ in range(2)]
        for engine in engines:
            engine.register(saga)
        async with engines[0], engines[1], asyncio.timeout(4 * SOON):
            await asyncio.gather(*(several(engine, f"{n}-{m}") for n, engine in enumerate(engines) for m in range(6)))
            rows = await engines[0].store.storage.fetch(f"SELECT owner FROM {table}", {})
    assert len(rows) == len({row["owner"] for row in rows}) == 2 * 30 * 3


async def test_hooks_hear_of_commits_in_their_order_however_late_the_answers_are(
    postgres_url: str, table: str, rng: random.Random
) -> None:
    """Of batches, of transactions beside them, and of those that have the store alone."""
    told: list[tuple[Unit, Written]] = []

    async def transact(storage: Storage, n: int) -> None:
        async def work(session: SqlSession) -> Unit:
            await session.execute(f"INSERT INTO {table} VALUES ('a', :n)", {"n": n})
            return unit(events("hot"))

        written = await storage.transact(work)
        assert written in [one for _, one in told], "whoever sees a verdict sees what the hooks did"

    async def alone(storage: Storage) -> None:
        async def work(session: SqlSession) -> None:
            await session.fetch("SELECT 1 AS one", {})

        await storage.exclusive(unit(events("hot")), work)

    async def write(storage: Storage, n: int) -> None:
        """To a stream of its own: a batch that turns out to be judged by what is no longer so takes its time."""
        for _ in range(12):
            await storage.write(unit(events(f"w-{n}")))

    async with (
        Slots(postgres_url, 20, late=lambda: rng.choice((0, 0, 0, 0.02))) as slots,
        open_storage(slots.url) as storage,
    ):
        storage.add_commit_hook(told.extend)
        writing = [write(storage, n) for n in range(5)]
        await asyncio.gather(*(transact(storage, n) for n in range(40)), *writing, *(alone(storage) for _ in range(5)))
        assert await storage.head("hot") == 40 + 5
    positions = [one.appended[0].position for _, one in told]
    assert len(positions) == 40 + 5 + 5 * 12
    assert [(a, b) for a, b in pairwise(positions) if a >= b] == []


class Held:
    """A saga of one transactional step, open until it is let go."""

    def __init__(self) -> None:
        self.inside = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.saga: Saga[Any, Any] = Saga("held", [SagaStep("hold", self.hold, transactional=True)])

    async def hold(self, ctx: StepContext[Any]) -> None:
        await ctx.transaction.fetch("SELECT 1 AS one")
        self.inside.release()
        await self.go.wait()


async def beats(storage: Storage) -> int:
    (row,) = await storage.query("live_workers")
    return int(row["beat"])


async def test_all_else_goes_on_while_a_process_has_as_many_transactional_steps_open_as_it_may(
    postgres_url: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats, claims, other sagas and their steps: of a pooler's connections, as many as `pool`, one is theirs."""
    held = Held()
    plain: Saga[Any, Any] = Saga("plain", [SagaStep("note", plain_action)])
    caplog.set_level(logging.WARNING)
    async with Slots(postgres_url, 3) as slots, open_storage(postgres_url) as direct:
        engine = WorkflowEngine(f"{slots.url}&pool=3", config=EngineConfig(lease=2.0))
        engine.register(held.saga, plain)
        async with engine:
            handles = [await engine.start(held.saga) for _ in range(5)]
            for _ in range(2):
                await held.inside.acquire()
            try:
                async with asyncio.timeout(SOON):
                    before = await beats(direct)
                    waiting = engine.handle(await left_waiting(direct, plain), plain)
                    while await beats(direct) < before + 8:
                        await engine.execute(plain)
                    await waiting.result()
                assert held.inside.locked(), "no third one has begun"
                assert caplog.messages == [], "though it was asked whether anything waits"
            finally:
                held.go.set()
            await asyncio.gather(*(handle.result() for handle in handles))


async def plain_action() -> None:
    """What any step does."""


async def left_waiting(storage: Storage, plain: Saga[Any, Any]) -> str:
    """The id of a saga that somebody has to claim."""
    starter = WorkflowEngine(storage, config=EngineConfig(worker=False))
    starter.register(plain)
    async with starter:
        return (await starter.start(plain)).id


async def test_transactional_steps_that_have_all_connections_of_a_pooler_are_told_of(
    postgres_url: str, table: str
) -> None:
    held, told = Held(), Telling()
    logger = logging.getLogger("event_workflow_engine.storage")
    logger.addHandler(told)
    try:
        async with Slots(postgres_url, 2) as slots, WorkflowEngine(slots.url) as engine:
            engine.register(held.saga)
            handles = await asyncio.gather(*(engine.start(held.saga) for _ in range(2)))
            try:
                async with asyncio.timeout(SOON):
                    await told.crowded.wait()
            finally:
                held.go.set()
            await asyncio.gather(*(handle.result() for handle in handles))
    finally:
        logger.removeHandler(told)
    (message,) = told.messages
    assert "2 transactional steps of this process are open" in message
    assert "give it 8 for each process at least, or lower pool=" in message


class Telling(logging.Handler):
    """What is said of statements that do not get through."""

    def __init__(self) -> None:
        super().__init__()
        self.crowded = asyncio.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "has had no answer" in record.getMessage():
            self.messages.append(record.getMessage())
            self.crowded.set()


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), asyncpg.ConnectionDoesNotExistError("closed: query_wait_timeout")],
    ids=["ours", "PgBouncer"],
)
def test_who_waited_in_vain_is_told_what_to_do(error: Exception) -> None:
    told = storage_error(error, "postgresql://h/d")
    assert isinstance(told, StorageUnavailableError)
    assert "if a pooler is before it, give that more connections" in str(told)


async def test_a_transaction_that_waits_for_a_connection_while_the_store_closes_is_refused(
    postgres_url: str, table: str
) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()

    async def work(session: SqlSession) -> Unit:
        inside.set()
        await leave.wait()
        await session.execute(f"INSERT INTO {table} VALUES ('a', 1)", {})
        return unit(events("hot"))

    async with open_storage(f"{postgres_url}&pool=1") as storage:
        transactions = [asyncio.create_task(storage.transact(work)) for _ in range(2)]
        await inside.wait()
    leave.set()
    async with asyncio.timeout(SOON):
        results = await asyncio.gather(*transactions, return_exceptions=True)
    assert [type(one) for one in results] == [EngineStateError, EngineStateError]
