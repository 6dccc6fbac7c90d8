"""A test that waits for a virtual clock which nothing moves is told so; one that only takes its time is not."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tests.unit.testing_kit.watching import Watched

from event_workflow_engine import RetryPolicy, Saga, SagaStep, Signal, saga, sleep, step, wait_for_signal
from event_workflow_engine.errors import SagaFailedError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Unit
from event_workflow_engine.testing import StandstillError, VirtualClock, fail_times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine import WorkflowEngine
    from event_workflow_engine.testing import StepFaker

PAID = Signal("paid", int)
PATIENCE = 0.2
ALONE = 10
"""More looks than who waits alone is left waiting."""


async def charge() -> str:
    return "charged"


@saga("nap")
async def nap() -> str:
    await sleep(timedelta(days=1))
    return await step(charge)


@saga("invoice")
async def invoice() -> int:
    return await wait_for_signal(PAID, timeout=timedelta(days=3))


@saga("gift")
async def gift() -> int:
    return await wait_for_signal(PAID)


ORDER = Saga("order", [SagaStep("charge", charge, retry=RetryPolicy(attempts=3, delay=0.2, factor=1, jitter=0))])


@pytest.fixture
def clock(clock: VirtualClock) -> VirtualClock:
    clock.patience = PATIENCE
    return clock


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with open_storage("memory://") as storage:
        made = Watched(storage, nap, gift)
        async with made.engine:
            yield made
            await made.rest()


@pytest.mark.engines("memory", "sqlite")
async def test_who_executes_a_saga_that_waits_for_its_next_attempt_is_told(
    engine: WorkflowEngine, clock: VirtualClock, fake_step: StepFaker
) -> None:
    fake_step(charge, fail_times(2, "charged"))
    engine.register(ORDER)
    with pytest.raises(StandstillError) as told:
        await engine.execute(ORDER, id="o-2")
    assert str(told.value) == (
        "saga 'o-2' waits for attempt 2 of step 'charge' at 2026-01-01 00:00:00.2Z (attempt 1 raised RuntimeError: "
        "faked failure 1 of 2); this VirtualClock shows 2026-01-01 00:00:00Z and nothing moves it: `await clock.advance(seconds=0.2)` does, between `engine.start(…)` and "
        "`handle.result()`, or in another task"
    )
    await clock.advance(seconds=1)
    assert (await engine.execute(ORDER, id="o-2"))["charge"] == "charged"


async def test_who_waits_for_a_saga_that_sleeps_or_waits_for_a_signal_in_time_is_told_until_when(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    engine.register(nap, invoice)
    sleeping, waiting = await engine.start(nap, id="n-1"), await engine.start(invoice, id="i-1")
    with pytest.raises(StandstillError, match=r"^saga 'n-1' sleeps until 2026-01-02 00:00:00Z; .*seconds=86400\)"):
        await sleeping.result()
    with pytest.raises(StandstillError, match=r"^saga 'i-1' waits for signal 'paid' until 2026-01-04 00:00:00Z; "):
        await waiting.result()
    await clock.advance(days=1)
    assert await sleeping.result() == "charged"


async def test_who_waits_beside_other_tasks_is_told_later(engine: WorkflowEngine, clock: VirtualClock) -> None:
    clock.patience = 0.05
    engine.register(nap)
    handles = [await engine.start(nap), await engine.start(nap)]
    told = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)
    assert [type(one) for one in told] == [StandstillError, StandstillError]


async def test_who_waits_is_not_told_while_a_task_is_about_to_move_the_clock(watched: Watched) -> None:
    async def move() -> None:
        await watched.looked(3 * ALONE)
        await watched.clock.advance(days=1)

    mover = asyncio.create_task(move())
    assert await watched.engine.execute(nap) == "charged"
    await mover


async def test_who_waits_is_not_told_while_the_clock_is_being_moved(watched: Watched) -> None:
    settle = watched.clock.settle

    async def settle_slowly() -> None:
        watched.clock.settle = settle
        await watched.looked(3 * ALONE)
        await settle()

    watched.clock.settle = settle_slowly
    mover = asyncio.create_task(watched.clock.advance(days=1))  # the library's own task: nobody else is there
    assert await watched.engine.execute(nap) == "charged"
    await mover


async def test_who_waits_is_not_told_while_a_thread_takes_its_time(watched: Watched) -> None:
    over = threading.Event()

    def act() -> str:
        return "done" if over.wait(20) else "late"

    slow = Saga("slow", [SagaStep("act", act)], timeout=60)
    watched.engine.register(slow)
    watched.at_look(3 * ALONE, over.set)
    assert (await watched.engine.execute(slow))["act"] == "done"


async def test_who_waits_is_not_told_while_the_store_takes_its_time(watched: Watched) -> None:
    answered = asyncio.Event()

    async def work(_: object) -> Unit:
        await watched.looked(watched.looks + 15 * ALONE)  # longer than beside other tasks
        answered.set()
        return Unit("slow", 0)

    writing = asyncio.create_task(watched.engine.storage.transact(work))
    with pytest.raises(StandstillError):
        await watched.engine.execute(nap)
    assert answered.is_set()
    await writing


async def test_who_waits_for_what_no_time_brings_is_left_waiting(watched: Watched) -> None:
    handle = await watched.engine.start(gift)
    watched.at_look(3 * ALONE, lambda: watched.later(handle.signal(PAID, 900)))
    assert await handle.result() == 900


async def test_without_patience_nobody_is_told(engine: WorkflowEngine, clock: VirtualClock) -> None:
    clock.patience = None
    engine.register(nap)
    with pytest.raises(TimeoutError) as late:
        await (await engine.start(nap)).result(timeout=3 * PATIENCE)
    assert not isinstance(late.value, StandstillError)


@pytest.mark.crash_everywhere
async def test_who_waits_for_an_engine_that_crashes_is_told_the_same(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    clock.patience = 0.05
    engine.register(nap)
    with pytest.raises(StandstillError, match="sleeps until"):
        await engine.execute(nap, id="n-1")
    await clock.advance(days=1)
    assert await engine.execute(nap, id="n-1") == "charged"


async def test_who_waits_for_a_saga_that_is_being_undone_is_told_what_its_compensation_raised(
    engine: WorkflowEngine, clock: VirtualClock, fake_step: StepFaker
) -> None:
    async def ship() -> None:
        raise ValueError("no boat")

    async def refund() -> None: ...

    soon = RetryPolicy(attempts=2, delay=0.25, factor=1, jitter=0)
    steps = [SagaStep("charge", charge, refund, compensation_retry=soon), SagaStep("ship", ship)]
    undone = Saga("undone", steps, sequential=True)
    fake_step(refund, fail_times(1))
    engine.register(undone)
    await clock.advance(seconds=0.5)
    with pytest.raises(
        StandstillError,
        match=r"waits for attempt 2 to undo step 'charge' at 2026-01-01 00:00:00.75Z \(attempt 1 raised RuntimeError: "
        r"faked failure 1 of 1\); this VirtualClock shows 2026-01-01 00:00:00.5Z and nothing",
    ):
        await engine.execute(undone, id="u-1")
    await clock.advance(seconds=0.25)
    with pytest.raises(SagaFailedError):
        await engine.execute(undone, id="u-1")
