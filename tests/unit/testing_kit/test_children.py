"""Under the virtual clock a saga that waits for its child is told of with what the child waits for, or left alone."""

from __future__ import annotations

import asyncio
import threading
import warnings
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.unit.testing_kit.watching import Watched

from event_workflow_engine import (
    EngineConfig,
    RetryPolicy,
    Saga,
    SagaStep,
    Signal,
    WorkflowEngine,
    WorkflowState,
    run_saga,
    saga,
    sleep,
    wait_for_signal,
)
from event_workflow_engine.engine import glance_at
from event_workflow_engine.errors import EngineStateError, StepFailedError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing import StandstillError, fail_times, given, returns
from event_workflow_engine.testing.observed import ObservedStorage
from event_workflow_engine.testing.settling import is_calm, settle
from event_workflow_engine.testing.telling import Waiting, waits_in_words
from event_workflow_engine.waits import Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from event_workflow_engine.storage.port import Unit, Written
    from event_workflow_engine.testing import StepFaker, VirtualClock

GO = Signal("go", str)
PATIENCE = 0.1
HOURS = 12
LONG = 30
"""More looks than who waits alone is left waiting."""


@pytest.fixture
def clock(clock: VirtualClock) -> VirtualClock:
    clock.patience = PATIENCE
    return clock


async def book() -> str:
    return "booked"


async def free() -> None: ...


async def refuse() -> None:
    raise ValueError("full")


@saga("nap")
async def nap(hours: int) -> int:
    await sleep(timedelta(hours=hours))
    return hours


@saga("short-nap")
async def short_nap() -> None:
    await sleep(timedelta(seconds=0.25))


@saga("gift")
async def gift() -> str:
    return await wait_for_signal(GO)


@saga("at-once")
async def at_once(number: int) -> int:
    return number


FREED = RetryPolicy(attempts=2, delay=30, factor=1, jitter=0)
DOOMED = Saga(
    "doomed", [SagaStep("book", book, free, compensation_retry=FREED), SagaStep("refuse", refuse)], sequential=True
)


@saga("napper")
async def napper(hours: int) -> int:
    return await run_saga(nap, hours, id=f"nap-{hours}")


@saga("grandparent")
async def grandparent(hours: int) -> int:
    return await run_saga(napper, hours)


@saga("short")
async def short() -> None:
    await run_saga(short_nap)


@saga("giver")
async def giver() -> str:
    return await run_saga(gift, id="gift")


@saga("beside")
async def beside() -> str:
    word, _ = await asyncio.gather(run_saga(gift, id="gift"), sleep(timedelta(hours=HOURS)))
    return word


@saga("many-nappers")
async def many_nappers(number: int) -> int:
    return sum(await asyncio.gather(*(run_saga(nap, hours, id=f"nap-{hours}") for hours in range(number, 0, -1))))


@saga("many-at-once")
async def many_at_once(number: int) -> int:
    return sum(await asyncio.gather(*(run_saga(at_once, one) for one in range(number))))


@saga("loser")
async def loser() -> str:
    try:
        await run_saga(DOOMED, id="doomed")
    except StepFailedError:
        return "undone"
    return "done"


ALL = (
    nap, short_nap, gift, at_once, DOOMED, napper, grandparent, short, giver, beside, many_nappers, many_at_once, loser,
)  # fmt: skip
backends = pytest.mark.engines("memory", "sqlite")


@pytest.fixture
def engine(engine: WorkflowEngine) -> WorkflowEngine:
    engine.register(*ALL)
    return engine


# -- a standstill ----------------------------------------------------------------------------------------------------


@backends
async def test_who_executes_a_saga_whose_child_sleeps_is_told_of_the_child(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    with pytest.raises(StandstillError) as told:
        await engine.execute(napper, HOURS, id="p")
    assert str(told.value).startswith(
        "saga 'p' waits for child saga 'nap-12' (sleeps until 2026-01-01 12:00:00Z); this VirtualClock shows "
        "2026-01-01 00:00:00Z and nothing moves it: `await clock.advance(seconds=43200)` does"
    )
    await clock.advance(hours=HOURS)
    assert await engine.execute(napper, HOURS, id="p") == HOURS


@backends
async def test_who_waits_for_a_saga_whose_grandchild_sleeps_is_told_of_both(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    with pytest.raises(
        StandstillError,
        match=r"^saga 'g' waits for child saga 'g/~run:napper' \(waits for child saga 'nap-12' \(sleeps until "
        r"2026-01-01 12:00:00Z\)\); .*seconds=43200\)",
    ):
        await (await engine.start(grandparent, HOURS, id="g")).result()
    await clock.advance(hours=HOURS)
    assert await engine.handle("g").result() == HOURS


@backends
async def test_a_child_that_stays_in_memory_while_it_sleeps_is_told_of(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    with pytest.raises(StandstillError, match=r"'s/~run:short-nap' \(sleeps until 2026-01-01 00:00:00.25Z\); .*0.25\)"):
        await engine.execute(short, id="s")
    await clock.advance(seconds=0.25)
    await engine.execute(short, id="s")


async def test_a_saga_that_stays_in_memory_while_it_sleeps_is_told_of(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    with pytest.raises(StandstillError, match=r"^saga 's' sleeps until 2026-01-01 00:00:00.25Z; .*seconds=0.25\)"):
        await engine.execute(short_nap, id="s")
    await clock.advance(seconds=0.25)
    await engine.execute(short_nap, id="s")


@backends
async def test_of_many_children_those_are_told_that_go_on_first(engine: WorkflowEngine, clock: VirtualClock) -> None:
    with pytest.raises(StandstillError) as told:
        await engine.execute(many_nappers, 20, id="m")
    said = str(told.value)
    assert said.startswith(
        "saga 'm' waits for child saga 'nap-1' (sleeps until 2026-01-01 01:00:00Z), waits for child "
    )
    assert "child saga 'nap-8' (sleeps until 2026-01-01 08:00:00Z), and 12 more; this" in said
    assert "seconds=3600)" in said
    await clock.advance(hours=20)
    assert await engine.execute(many_nappers, 20, id="m") == sum(range(21))


@backends
async def test_a_saga_that_waits_for_a_time_beside_its_child_is_told_of_with_both(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    with pytest.raises(
        StandstillError,
        match=r"^saga 'b' sleeps until 2026-01-01 12:00:00Z, waits for child saga 'gift' \(waits for signal 'go'\); ",
    ):
        await engine.execute(beside, id="b")
    await engine.handle("gift").signal(GO, "went")
    await clock.advance(hours=HOURS)
    assert await engine.execute(beside, id="b") == "went"


@backends
async def test_a_child_that_is_being_undone_is_told_of_until_its_parent_has_its_end(
    engine: WorkflowEngine, clock: VirtualClock, fake_step: StepFaker
) -> None:
    fake_step(free, fail_times(1))
    with pytest.raises(
        StandstillError,
        match=r"^saga 'l' waits for child saga 'doomed' \(waits for attempt 2 to undo step 'book' at 2026-01-01 "
        r"00:00:30Z \(attempt 1 raised RuntimeError: faked failure 1 of 1\)\); ",
    ):
        await engine.execute(loser, id="l")
    await clock.advance(seconds=30)
    assert await engine.execute(loser, id="l") == "undone"


@pytest.mark.crash_everywhere
async def test_who_waits_for_the_parent_in_an_engine_that_crashes_is_told_the_same(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    with pytest.raises(StandstillError, match=r"^saga 'p' waits for child saga 'nap-12' \(sleeps until "):
        await engine.execute(napper, HOURS, id="p")
    await clock.advance(hours=HOURS)
    assert await engine.execute(napper, HOURS, id="p") == HOURS


# -- no standstill ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
async def watched(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Watched]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'watched.db'}"
    async with open_storage(url, auto_upgrade=True) as storage:
        made = Watched(storage, *ALL)
        async with made.engine:
            yield made
            await made.rest()


async def test_who_waits_for_a_saga_whose_child_waits_for_a_signal_is_left_waiting(watched: Watched) -> None:
    handle, child = await watched.engine.start(giver), watched.engine.handle("gift")
    idle = []

    def send() -> None:
        idle.append(glance_at(watched.engine).is_idle)
        watched.later(child.signal(GO, "went"))

    watched.at_look(LONG, send)
    assert await handle.result() == "went"
    assert idle == [True]


async def test_who_waits_for_a_saga_whose_child_sleeps_is_told_as_soon_as_of_one_that_sleeps(watched: Watched) -> None:
    with pytest.raises(StandstillError):
        await watched.engine.execute(napper, HOURS)
    assert watched.looks < LONG


@pytest.mark.parametrize(
    ("paused", "waits"),
    [
        ("nap-12", "waits for child saga 'nap-12' (is paused: waits for a resume)"),
        ("p", "is paused: waits for a resume, waits for child saga 'nap-12' (sleeps until 2026-01-01 12:00:00Z)"),
    ],
)
async def test_who_waits_for_a_saga_while_it_or_its_child_is_paused_is_left_waiting(
    watched: Watched, paused: str, waits: str
) -> None:
    engine, clock = watched.engine, watched.clock
    handle = await engine.start(napper, HOURS, id="p")
    await clock.settle()
    await engine.handle(paused).pause()
    await clock.settle()
    told = []

    async def go_on() -> None:
        told.append(await waits_in_words(engine, "p"))
        await engine.handle(paused).resume()
        await clock.advance(hours=HOURS)

    watched.at_look(LONG, lambda: watched.later(go_on()))
    assert await handle.result() == HOURS
    assert told == [waits]


@pytest.mark.parametrize("max_running", [1, 100], ids=["elsewhere", "here"])
async def test_who_waits_for_a_saga_of_whose_children_one_acts_is_left_waiting(max_running: int) -> None:
    over = threading.Event()

    def act() -> str:
        return "done" if over.wait(20) else "late"

    acting = Saga("acting", [SagaStep("act", act)])

    @saga("boss")
    async def boss() -> str:
        children = asyncio.gather(run_saga(acting, id="acting"), run_saga(nap, HOURS))
        return str((await children)[0]["act"])

    sagas, config = (acting, nap, boss), EngineConfig(max_running=max_running)
    async with open_storage("memory://") as storage:
        watched = Watched(storage, *sagas, config=config)
        other = WorkflowEngine(storage, clock=watched.clock)
        other.register(*sagas)
        async with watched.engine, other:
            handle = await watched.engine.start(boss, id="b")
            await watched.clock.settle()
            assert "child saga 'acting' (runs step 'act')" in await waits_in_words(watched.engine, "b")
            watched.at_look(watched.looks + LONG, over.set)
            with pytest.raises(StandstillError, match=r"waits for child saga 'b/~run:nap' \(sleeps until"):
                await handle.result()
            assert over.is_set()
            await watched.clock.advance(hours=HOURS)
            assert await handle.result() == "done"


def test_a_saga_whose_child_has_just_ended_is_under_way() -> None:
    """What the store says of it: in the engine's memory nobody waits for the child any more."""
    child = Wait("child", "gift", 1, saga="gift", state="COMPLETED")
    assert Waiting((child, Wait("sleep", at=datetime.now(UTC))), {}, {}).is_under_way()


async def test_who_waits_for_a_saga_whose_children_end_at_once_has_its_result(watched: Watched) -> None:
    watched.clock.patience = 0.001
    for _ in range(20):
        assert await watched.engine.execute(many_at_once, 40) == sum(range(40))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("number", [1, 30])
async def test_the_engine_is_not_idle_between_the_end_of_a_child_and_that_of_its_parent(
    kind: str, number: int, clock: VirtualClock, tmp_path: Path
) -> None:
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'turns.db'}"
    async with open_storage(url, auto_upgrade=True) as storage:
        observed = ObservedStorage(storage)
        ends = Ends()
        storage.add_commit_hook(ends.committed)
        async with WorkflowEngine(observed, clock=clock) as engine:  # type: ignore[arg-type]
            clock.settle = partial(settle, engine, observed)
            engine.register(*ALL)
            await engine.start(many_nappers, number, id="m")
            await clock.advance(hours=number - 1)
            assert is_calm(engine, observed)
            last = asyncio.create_task(clock.advance(hours=1))
            turns = 0
            while "m" not in ends.ids:
                await asyncio.sleep(0)
                if len(ends.ids) == number:
                    turns += 1
                    assert not is_calm(engine, observed)
            await last
            assert turns > 0
            assert ends.ids == [*(f"nap-{hours}" for hours in range(1, number + 1)), "m"]


class Ends:
    """The ids of sagas that have ended, each told with the commit."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        rows = (row for unit, _ in batch for row in unit.rows if row.table == "sagas")
        self.ids += [str(row.key[0]) for row in rows if row.values.get("ended_at") is not None]


# -- leaving ---------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("turns", [*range(12), 100])
async def test_who_leaves_the_engine_does_not_wait_for_a_child_that_sleeps(
    engine_url: str, clock: VirtualClock, turns: int
) -> None:
    async with open_storage(engine_url, auto_upgrade=True) as storage:
        observed = ObservedStorage(storage)
        engine = WorkflowEngine(observed, clock=clock, config=EngineConfig(shutdown_timeout=3600))  # type: ignore[arg-type]
        clock.settle = partial(settle, engine, observed)
        engine.register(*ALL)
        async with asyncio.timeout(30), engine:
            await engine.start(napper, HOURS, id="p")
            for _ in range(turns):
                await asyncio.sleep(0)
        async with engine:
            await clock.advance(hours=HOURS)
            assert await engine.handle("p").result() == HOURS


@backends
async def test_who_leaves_the_engine_waits_for_a_child_that_acts_and_for_what_its_parent_makes_of_it(
    engine_url: str, clock: VirtualClock
) -> None:
    inside, out = asyncio.Event(), asyncio.Event()

    async def act() -> str:
        inside.set()
        await out.wait()
        return "done"

    acting = Saga("acting", [SagaStep("act", act)])

    @saga("boss")
    async def boss() -> str:
        return str((await run_saga(acting))["act"])

    async def end_it_while_leaving() -> None:
        with pytest.raises(EngineStateError, match="is being left"):
            while True:
                await engine.start(at_once, 1)
        for _ in range(100):
            await asyncio.sleep(0)
        out.set()

    async with open_storage(engine_url, auto_upgrade=True) as storage:
        engine = WorkflowEngine(storage, clock=clock)
        engine.register(acting, boss, at_once)
        async with engine:
            await engine.start(boss, id="b")
            await inside.wait()
            ending = asyncio.create_task(end_it_while_leaving())
        await ending
        row = await storage.get("sagas", ("b",))
        assert row is not None
        assert row["state"] == "COMPLETED"


# -- scenarios -------------------------------------------------------------------------------------------------------


async def test_a_scenario_tells_what_the_child_waits_for() -> None:
    with pytest.raises(AssertionError) as told:
        await given(grandparent, HOURS).registering(napper, nap).then(WorkflowState.COMPLETED)
    assert str(told.value) == (
        "the saga is RUNNING, expected COMPLETED: it waits for child saga 'given/~run:napper' (waits for child saga "
        "'nap-12' (sleeps until 2026-01-01 12:00:00Z))"
    )


async def test_a_scenario_runs_children_in_its_time() -> None:
    went = given(grandparent, HOURS).registering(napper, nap).passes(hours=HOURS)
    await went.then(WorkflowState.COMPLETED, result=HOURS)
    undone = (
        given(loser).registering(DOOMED).faking(book, returns("got it")).faking(free, fail_times(1)).passes(seconds=30)
    )
    await undone.then(WorkflowState.COMPLETED, result="undone")


async def test_a_fake_for_how_a_childs_step_is_undone_need_not_be_called() -> None:
    fine = Saga("fine", [SagaStep("book", book, free)])

    @saga("fine-parent")
    async def parent() -> None:
        await run_saga(fine)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await given(parent).registering(fine).faking(free, returns()).then(WorkflowState.COMPLETED)


async def test_a_saga_that_waits_for_itself_is_told_so() -> None:
    @saga("own-grandpa")
    async def own_grandpa() -> None:
        await run_saga(own_grandpa, id="given")

    with pytest.raises(AssertionError, match=r"it waits for child saga 'given' \(which waits for it\)$"):
        await given(own_grandpa).then(WorkflowState.COMPLETED)
