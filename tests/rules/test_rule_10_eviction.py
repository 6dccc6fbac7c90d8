"""Rule 10: a saga that waits leaves memory; leaving it is no cancel, and what its body does then is not recorded."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakSet

import pytest

from event_workflow_engine import Saga, SagaStep, Signal, WorkflowState, saga, sleep, step, wait_for_signal
from event_workflow_engine.errors import SagaEvicted

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

    from event_workflow_engine import WorkflowEngine
    from event_workflow_engine.testing import VirtualClock

GO = Signal("go", str)
LOG: list[str] = []
BODIES: WeakSet[asyncio.Task[object]] = WeakSet()


async def note(what: str) -> str:
    LOG.append(what)
    return what


@saga("sleeper")
async def sleeper() -> str:
    task = asyncio.current_task()
    assert task is not None
    BODIES.add(task)
    await step(note, "before")
    try:
        await sleep(timedelta(days=30))
    except SagaEvicted:
        LOG.append("evicted")
        raise
    finally:
        await step(note, "finally")
    return "woke"


async def test_rule_10_a_sleeping_saga_leaves_memory_and_its_finally_records_nothing(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(sleeper) as engine:
        handle = await engine.start(sleeper, id="s-1")
        await lab.until_fact(engine, "s-1", "timer-set")
        gc.collect()
        assert len(BODIES) == 0
        assert LOG == ["before", "evicted"]
        assert await handle.status() is WorkflowState.RUNNING
        assert "step-started" not in (await lab.facts(engine, "s-1"))[3:]
        row = await lab.storage.get("sagas", ("s-1",))
        assert row is not None
        assert (row["owner"], row["wake_at"] is not None) == ("", True)


@pytest.mark.engines("memory", "sqlite", "postgres")
async def test_rule_10_a_sleeper_wakes_in_an_engine_that_is_entered_again(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    engine.register(sleeper)
    handle = await engine.start(sleeper, id="s-1")
    await clock.advance(days=1)
    await engine.__aexit__()
    async with engine:
        await clock.advance(days=30)
        assert await handle.status() is WorkflowState.COMPLETED


async def test_rule_10_eviction_leaves_no_cycle_to_the_garbage_collector(lab: Lab) -> None:
    async with lab.engine(sleeper) as engine:
        gc.collect()
        gc.disable()
        try:
            await engine.start(sleeper, id="s-1")
            await lab.until_fact(engine, "s-1", "timer-set")
            await asyncio.sleep(0)
            assert len(BODIES) == 0
        finally:
            gc.enable()


@saga("waiter")
async def waiter() -> str:
    first = await wait_for_signal(GO)
    second = await wait_for_signal(GO)
    return f"{first}-{second}"


async def test_rule_10_signals_wake_a_saga_that_left_memory(lab: Lab) -> None:
    async with lab.engine(waiter) as engine:
        handle = await engine.start(waiter, id="w-1")
        await handle.signal(GO, "one")
        await lab.until_fact(engine, "w-1", "signal-received")
        await handle.signal(GO, "two")
        assert await handle.result() == "one-two"


async def test_rule_10_signals_sent_at_once_are_none_of_them_lost(lab: Lab) -> None:
    async with lab.engine(waiter) as engine:
        handles = [await engine.start(waiter, id=f"w-{n}") for n in range(20)]
        await asyncio.gather(*(handle.signal(GO, word) for word in "ab" for handle in handles))
        for handle in handles:
            assert sorted(await handle.result()) == sorted("a-b")


async def test_rule_10_a_signal_with_an_id_counts_once(lab: Lab) -> None:
    async with lab.engine(waiter) as engine:
        handle = await engine.start(waiter, id="w-1")
        await handle.signal(GO, "one", id="x")
        await handle.signal(GO, "one", id="x")
        await handle.signal(GO, "two", id="y")
        assert await handle.result() == "one-two"


async def test_rule_10_cancelling_who_waits_only_detaches(lab: Lab) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def act() -> str:
        begun.set()
        await go.wait()
        return "done"

    saga_ = Saga("s", [SagaStep("act", act)])
    async with lab.engine(saga_) as engine:
        waiting = asyncio.create_task(engine.execute(saga_, id="s-1"))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            await engine.handle("s-1", saga_).result(timeout=0.001)
        go.set()
        assert (await engine.handle("s-1", saga_).result())["act"] == "done"


async def test_rule_10_leaving_the_engine_cancels_no_saga(lab: Lab) -> None:
    begun = asyncio.Event()
    runs: list[str] = []

    async def act() -> str:
        runs.append("run")
        begun.set()
        if len(runs) == 1:
            await asyncio.Event().wait()
        return "done"

    async def undo() -> None:
        runs.append("undo")

    saga_ = Saga("s", [SagaStep("act", act, undo)])
    async with lab.engine(saga_, shutdown_timeout=0.01) as engine:
        await engine.start(saga_, id="s-1")
        await begun.wait()
    async with lab.engine(saga_) as engine:
        assert (await engine.handle("s-1", saga_).result())["act"] == "done"
    assert runs == ["run", "run"]


@pytest.mark.parametrize("what", ["signal", "resume"])
async def test_rule_10_what_is_said_is_heard_however_it_meets_the_saga_leaving_memory(lab: Lab, what: str) -> None:
    async def act() -> str:
        return "ready"

    @saga("listener")
    async def listener() -> str:
        word = await step(act)
        return f"{word} and {await wait_for_signal('go')}"

    async with lab.engine(listener) as engine:
        for turns in range(40):
            handle = await engine.start(listener, id=f"l-{turns}")
            if what == "resume":
                await handle.signal("go", "steady")
                await handle.pause()
            for _ in range(turns):
                await asyncio.sleep(0)
            await (handle.resume() if what == "resume" else handle.signal("go", "steady"))
            assert await handle.result(timeout=10) == "ready and steady", turns
