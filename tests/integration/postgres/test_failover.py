"""Another server takes the place of one that is killed: nothing acknowledged is lost, or who saw what is lost is told."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.sagas import CASES
from tests.integration.postgres.test_soak import Workers, check, ended, start

from event_workflow_engine import (
    DocumentProjection,
    EngineConfig,
    EventStore,
    Saga,
    SagaStep,
    StepContext,
    WorkflowEngine,
    event,
)
from event_workflow_engine.errors import LogRewoundError, SagaNotFoundError, StorageLostError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import ANY_VERSION, Unit
from event_workflow_engine.testing.conformance.kit import append, record, unit
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from event_workflow_engine.storage.port import SqlSession
    from event_workflow_engine.testing.postgres import PostgresStandby

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@event("failover-noted")
@dataclass(frozen=True)
class Noted:
    n: int


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"fsync": "off"}) as server:
        yield server


async def fail_over(primary: PostgresServer, standby: PostgresStandby) -> None:
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.promote)


@pytest.mark.proves("failover", store="postgres", kills=1)
async def test_all_that_was_acknowledged_is_on_a_synchronous_standby(
    primary: PostgresServer, tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """Sagas under way over three workers; all end, and the ledger of their effects balances."""
    with primary.standby(synchronous=True) as standby:
        url, ledger = primary.url(others=[standby]), tmp_path / "ledger"
        engine = WorkflowEngine(url, config=EngineConfig(worker=False, auto_upgrade=True))
        engine.register(*(saga for saga, _ in CASES.values()))
        cases = {f"k-{n}": rng.choice(list(CASES)) for n in range(60)}
        todo = list(cases.items())
        acknowledged: list[str] = []
        enough = asyncio.Event()

        async def appends() -> None:
            """One after the other, so that at any moment of the failover one is under way."""
            while not stop.is_set():
                written = unit(append("steady", record(), expected=ANY_VERSION))
                await storage.write(written)
                acknowledged.append(written.id)
                if len(acknowledged) == 50:
                    enough.set()

        stop = asyncio.Event()
        async with engine, open_storage(url) as storage:
            workers = Workers(url, ledger, 3)
            try:
                steady = asyncio.create_task(appends())
                await asyncio.gather(*(start(engine, case, saga_id) for saga_id, case in todo[:30]))
                await enough.wait()
                with caplog.at_level(logging.WARNING, logger="event_workflow_engine.storage"):
                    late = [asyncio.create_task(start(engine, case, saga_id)) for saga_id, case in todo[30:]]
                    await fail_over(primary, standby)
                    await asyncio.gather(*late)
                    before = len(acknowledged)
                    while len(acknowledged) < before + 10:
                        assert not steady.done()
                        await storage.head("steady")
                states = await asyncio.gather(*(ended(engine, case, saga_id) for saga_id, case in cases.items()))
            finally:
                stop.set()
                await asyncio.gather(steady, return_exceptions=True)
                workers.close()
            steady.result()
            await check(engine, cases, dict(zip(cases, states, strict=True)), ledger)
            stored = Counter([one.id for one in await storage.read_stream("steady", limit=1_000_000)])
    assert stored == Counter(acknowledged), "each append that was acknowledged is there, once"
    assert caplog.text.count("is in doubt") <= 2, "each of the two stores says in one line what happened"
    assert "is in doubt" in caplog.text or "not listening" in caplog.text, "where no batch was under way, the listener"


# -- commits that are lost ---------------------------------------------------------------------------------------------


class Read:
    """What a reader was given, by the number in the event."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._changed = asyncio.Event()

    def add(self, n: int) -> None:
        self.numbers.append(n)
        self._changed.set()

    async def has(self, n: int) -> None:
        while n not in self.numbers:
            self._changed.clear()
            await self._changed.wait()


async def note(store: EventStore, *numbers: int) -> None:
    for n in numbers:
        await store.append("notes-1", Noted(n))


async def lose_commits(primary: PostgresServer, standby: PostgresStandby, store: EventStore, seen: list[Read]) -> None:
    """The standby misses 10 and 11, which were acknowledged and read; it is promoted, and nobody has asked it yet."""
    await note(store, 1, 2)
    for one in seen:
        await one.has(2)
    kept = "SELECT count(*) FROM ewe.events WHERE type = 'failover-noted'"
    while await asyncio.to_thread(standby.query, kept) != "2":
        pass
    await asyncio.to_thread(standby.stop)
    await note(store, 10, 11)
    for one in seen:
        await one.has(11)
    await fail_over_late(primary, standby)


@pytest.mark.parametrize("grown", [0, 1, 2, 5], ids=lambda n: f"and {n} written since")
@pytest.mark.proves("failover", store="postgres", kills=1)
async def test_a_follower_stops_that_saw_what_a_failover_lost(primary: PostgresServer, grown: int) -> None:
    """Also where the log has grown again over what it saw: the positions are those of other events now."""
    async with open_storage(primary.url(), auto_upgrade=True):
        pass
    with primary.standby() as standby:
        url, read = primary.url(others=[standby]), Read()
        async with open_storage(url) as storage:
            store = EventStore(storage)

            async def follow() -> None:
                async with aclosing(store.follow(after=0)) as events:
                    async for one in events:
                        read.add(one.data.n)

            following = asyncio.create_task(follow())
            await lose_commits(primary, standby, store, [read])
            async with open_storage(standby.url()) as other:
                await note(EventStore(other), *range(20, 20 + grown))
            with pytest.raises(LogRewoundError, match=r"up to position 4, .* begin anew") as caught:
                await following
            assert caught.value.position == 4
            assert 2 <= caught.value.end <= 2 + grown, "it may look before all of them are written"
            assert read.numbers == [1, 2, 10, 11], "and it was shown nothing of the other log"
            with pytest.raises(LogRewoundError, match="this process had read"):
                await note(store, 12)  # decided by what is lost, maybe: that is told once
            again = Read()
            async with aclosing(store.follow(after=2)) as events:
                await note(store, 30)
                async for one in events:
                    again.add(one.data.n)
                    if one.data.n == 30:
                        break
            assert again.numbers == [*range(20, 20 + grown), 30], "who begins anew goes on"


@pytest.mark.proves("failover", store="postgres", kills=1)
async def test_nothing_lands_that_was_decided_before_the_loss_was_known(primary: PostgresServer) -> None:
    """Whoever is refused first, as by a heartbeat: what waits behind it was decided by the same lost events."""
    async with open_storage(primary.url(), auto_upgrade=True):
        pass
    with primary.standby() as standby:
        async with open_storage(primary.url(others=[standby])) as storage:
            await lose_commits(primary, standby, EventStore(storage), [])
            assert not storage.rewinds

            async def claim() -> None:
                await storage.perform("release_sagas", worker="w-1", fences="{}", now=1)

            sent = storage.submit(Unit("sent", 1))
            await asyncio.sleep(0)
            behind = [storage.submit(Unit("waits", 1)), asyncio.ensure_future(claim())]
            told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            storage.post(Unit("posted", 1), told.set_result)
            refused = await asyncio.gather(sent, *behind, told, return_exceptions=True)
            assert [type(one) for one in refused] == [LogRewoundError] * 4
            assert list(storage.rewinds) == [(4, 2)]
            await storage.write(Unit("after", 1))
            found = [await storage.outcome(name) for name in ("sent", "waits", "posted", "after")]
            assert [one is not None for one in found] == [False, False, False, True]


@pytest.mark.proves("failover", store="postgres", kills=1)
async def test_no_transaction_lands_that_was_asked_for_before_the_loss_was_known(primary: PostgresServer) -> None:
    """It had to wait for another, so it begins on the new primary, and with the end of the log that is there."""
    inside, leave = asyncio.Event(), asyncio.Event()

    async def work(_: SqlSession) -> Unit:
        inside.set()
        await leave.wait()
        return unit(append("lost", record()))

    async with open_storage(primary.url(), auto_upgrade=True):
        pass
    with primary.standby() as standby:
        url = primary.url(others=[standby])
        async with open_storage(f"{url}{'&' if '?' in url else '?'}pool=1") as storage:
            transactions = [asyncio.create_task(storage.transact(work)) for _ in range(2)]
            await inside.wait()
            await lose_commits(primary, standby, EventStore(storage), [])
            with pytest.raises(LogRewoundError):
                await storage.write(Unit("sent", 1))
            leave.set()
            refused = await asyncio.gather(*transactions, return_exceptions=True)
            assert [type(one) for one in refused] == [StorageLostError, LogRewoundError]
            assert await storage.head("lost") == 0
            await storage.transact(work)
            assert await storage.head("lost") == 1


@pytest.mark.parametrize("grown", [0, 2, 5], ids=lambda n: f"and {n} written since")
@pytest.mark.proves("failover", store="postgres", kills=1)
async def test_subscriptions_and_projections_stop_that_saw_what_a_failover_lost(
    primary: PostgresServer, caplog: pytest.LogCaptureFixture, grown: int
) -> None:
    """Each says so once. After the engine was entered again they go on from their checkpoints, and nothing is left out."""
    async with open_storage(primary.url(), auto_upgrade=True):
        pass
    with primary.standby() as standby:
        handled, folded = Read(), Read()
        engine = WorkflowEngine(primary.url(others=[standby]), config=EngineConfig(lease=1.0))

        async def handle(noted: Noted) -> None:
            handled.add(noted.n)

        engine.bus.subscribe(Noted, handle, durable="noting")
        numbers = DocumentProjection("numbers", list[int])

        @numbers.on(Noted, key=lambda _: "all")
        def fold(found: list[int] | None, noted: Noted) -> list[int]:
            folded.add(noted.n)
            return [*(found or ()), noted.n]

        engine.projections.register(numbers)
        async with engine:
            await lose_commits(primary, standby, engine.store, [handled, folded])
            async with open_storage(standby.url()) as other:
                await note(EventStore(other), *range(20, 20 + grown))
            with pytest.raises(LogRewoundError):
                await engine.projections.wait_for(numbers, 5)
            await engine.bus.drain()
        assert caplog.text.count("subscription:noting stops: ") == 1
        assert caplog.text.count("projection numbers stops: ") == 1
        async with engine:
            await note(engine.store, 30)
            await handled.has(30)
            await engine.projections.wait_for(numbers, await engine.store.storage.last_position())
            assert await engine.projections.get(numbers, "all") == [1, 2, *range(20, 20 + grown), 30]
        assert handled.numbers[-grown - 1 :] == [*range(20, 20 + grown), 30]


@pytest.mark.proves("failover", store="postgres", kills=1)
async def test_sagas_go_on_from_what_is_left_of_their_journals(primary: PostgresServer) -> None:
    """What was done and is lost is done again, with the same idempotency key; the log of each is whole."""
    async with open_storage(primary.url(), auto_upgrade=True):
        pass
    done: Counter[tuple[str, str]] = Counter()
    gate, arrived = asyncio.Event(), asyncio.Semaphore(0)

    async def first(ctx: StepContext[Any]) -> None:
        done[ctx.saga_id, "first"] += 1

    async def wait(ctx: StepContext[Any]) -> None:
        done[ctx.saga_id, "wait"] += 1
        arrived.release()
        await gate.wait()

    async def last(ctx: StepContext[Any]) -> None:
        done[ctx.saga_id, "last"] += 1

    steps = [SagaStep("first", first), SagaStep("wait", wait), SagaStep("last", last)]
    saga: Saga[Any, Any] = Saga("three", steps, sequential=True)
    with primary.standby() as standby:
        engine = WorkflowEngine(primary.url(others=[standby]), config=EngineConfig(lease=2.0))
        engine.register(saga)
        async with engine:
            for n in range(5):
                await engine.start(saga, id=f"kept-{n}")
            for _ in range(5):
                await arrived.acquire()
            known = "SELECT count(*) FROM ewe.sagas"
            while await asyncio.to_thread(standby.query, known) != "5":
                pass
            await asyncio.to_thread(standby.stop)
            for n in range(5):
                await engine.start(saga, id=f"lost-{n}")
            for _ in range(5):
                await arrived.acquire()
            await fail_over_late(primary, standby)
            gate.set()
            for n in range(5):
                await engine.handle(f"kept-{n}", saga).result(timeout=60)
                history = await engine.handle(f"kept-{n}").history()
                assert [one.version for one in history] == list(range(1, len(history) + 1))
            for n in range(5):
                with pytest.raises(SagaNotFoundError):
                    await engine.handle(f"lost-{n}").history()
                await engine.start(saga, id=f"lost-{n}")  # who started it does so again
                await engine.handle(f"lost-{n}", saga).result(timeout=60)
    assert all(done[f"{kind}-{n}", "last"] == 1 for kind in ("kept", "lost") for n in range(5))


async def fail_over_late(primary: PostgresServer, standby: PostgresStandby) -> None:
    """To a standby that was away."""
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.start)
    await asyncio.to_thread(standby.promote)
