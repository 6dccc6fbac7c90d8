"""Rule 5: after a failure nothing new starts, and no compensation runs before the steps in flight have settled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    CompensationContext,
    Saga,
    SagaFailedError,
    SagaStep,
    WorkflowState,
    saga,
    step,
)
from event_workflow_engine.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rules.conftest import Lab

pytestmark = pytest.mark.proves("compensation")


class World:
    """What happened, in order, and gates that actions wait at."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    def act(self, name: str, *, hold: str = "", fail: bool = False) -> Callable[[], Any]:
        async def action() -> str:
            self.log.append(name)
            self.gate(name).set()
            if hold:
                await self.gate(hold).wait()
            if fail:
                raise ValueError(name)
            self.log.append(f"{name} done")
            return name

        return action

    def undo(self, name: str) -> Callable[..., Any]:
        async def compensation(ctx: CompensationContext[None, str]) -> None:
            self.log.append(f"undo {name} {ctx.outcome}")

        return compensation


async def test_rule_05_steps_in_flight_settle_and_nothing_new_starts(lab: Lab) -> None:
    world = World()
    saga_ = Saga(
        "s",
        [
            SagaStep("slow", world.act("slow", hold="go"), world.undo("slow")),
            SagaStep("bad", world.act("bad", hold="slow", fail=True)),
            SagaStep("next", world.act("next"), world.undo("next"), after="slow"),
        ],
    )
    async with lab.engine(saga_) as engine:
        handle = await engine.start(saga_, id="s-1")
        await lab.until_fact(engine, "s-1", "step-failed")
        assert await handle.status() is WorkflowState.RUNNING, "the slow step has not settled"
        world.gate("go").set()
        with pytest.raises(SagaFailedError) as failure:
            await handle.result()
    assert sorted(world.log[:2]) == ["bad", "slow"]
    assert world.log[2:] == ["slow done", "undo slow succeeded"]
    assert failure.value.failed_step == "bad"


async def test_rule_05_on_failure_cancel_cancels_steps_in_flight(lab: Lab) -> None:
    world = World()
    saga_ = Saga(
        "s",
        [
            SagaStep("slow", world.act("slow", hold="never"), world.undo("slow")),
            SagaStep("bad", world.act("bad", hold="slow", fail=True)),
        ],
        on_failure="cancel",
    )
    async with lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(saga_)
    assert world.log[-1] == "undo slow unknown"


async def test_rule_05_no_compensation_starts_before_a_timed_out_thread_has_ended(lab: Lab) -> None:
    begun, release, log, timed_out = threading.Event(), threading.Event(), list[str](), asyncio.Event()

    def charge() -> None:
        begun.set()
        release.wait(10)
        log.append("the charge landed")

    async def refund(ctx: CompensationContext[None, None]) -> None:
        log.append(f"refund {ctx.outcome}")

    async def watch() -> None:
        await timed_out.wait()

    saga_ = Saga("s", [SagaStep("charge", charge, refund, timeout=0.01), SagaStep("watch", watch)])
    async with lab.engine(saga_) as engine:
        handle = await engine.start(saga_, id="s-1")
        await asyncio.to_thread(begun.wait, 10)
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.2)  # the step's own time was over long before
        assert log == []
        timed_out.set()
        release.set()
        with pytest.raises(SagaFailedError):
            await handle.result()
    assert log == ["the charge landed", "refund unknown"]


async def test_rule_05_no_retry_starts_before_a_timed_out_thread_has_ended(lab: Lab) -> None:
    from event_workflow_engine import RetryPolicy

    running, most, calls, lock = 0, 0, 0, threading.Lock()
    enough = threading.Event()

    def charge() -> str:
        nonlocal running, most, calls
        with lock:
            running, calls = running + 1, calls + 1
            most = max(most, running)
            mine = calls
        if mine == 1:
            enough.wait(0.1)
        with lock:
            running -= 1
        return "charged"

    saga_ = Saga("s", [SagaStep("charge", charge, timeout=0.02, retry=RetryPolicy(attempts=2, delay=0))])
    async with lab.engine(saga_) as engine:
        results = await engine.execute(saga_)
    assert (results["charge"], calls, most) == ("charged", 2, 1)


async def test_rule_05_code_that_does_not_end_needs_intervention(lab: Lab) -> None:
    release = threading.Event()
    undone: list[str] = []

    def charge() -> None:
        release.wait(10)

    async def refund() -> None:
        undone.append("refund")

    saga_ = Saga("s", [SagaStep("charge", charge, refund, timeout=0.01)], settle_timeout=0.01)
    async with lab.engine(saga_, shutdown_timeout=0) as engine:
        with pytest.raises(SagaFailedError, match="has not within") as failure:
            await engine.execute(saga_, id="s-1")
        assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
        assert await engine.handle("s-1").status() is WorkflowState.NEEDS_INTERVENTION
        release.set()
    assert undone == []


LOG: list[str] = []


async def reserve(name: str) -> str:
    LOG.append(f"reserve {name}")
    if name == "bad":
        raise ValueError(name)
    if name == "lost":
        raise ConnectionResetError(name)
    return name


async def release(ctx: CompensationContext[Any, str]) -> None:
    LOG.append(f"release {ctx.result} {ctx.outcome}")


@saga("fallback")
async def fallback() -> str:
    try:
        return await step(reserve, "bad", compensation=release)
    except StepFailedError as error:
        return await step(reserve, f"good after {error.outcome}", compensation=release)


async def test_rule_05_in_a_function_a_failure_can_be_caught(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(fallback, lease=15.0) as engine:  # a worker that loses it does not know how it ended
        assert await engine.execute(fallback) == "good after failed"
    assert LOG == ["reserve bad", "reserve good after failed"]


@saga("caught-unknown")
async def caught_unknown(fail: bool) -> str:
    with contextlib.suppress(StepFailedError):
        await step(reserve, "lost", compensation=release)
    await step(reserve, "good", compensation=release)
    if fail:
        raise RuntimeError("and then it failed")
    return "done"


async def test_rule_05_caught_unknown_steps_stay_in_the_plan(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(caught_unknown) as engine:
        with pytest.raises(SagaFailedError, match="and then it failed") as failure:
            await engine.execute(caught_unknown, True)
        assert isinstance(failure.value.__cause__, RuntimeError)
    assert LOG[2:] == ["release good succeeded", "release None unknown"]


async def test_rule_05_caught_unknown_steps_are_reported_on_completion(lab: Lab) -> None:
    async with lab.engine(caught_unknown) as engine:
        assert await engine.execute(caught_unknown, False, id="c-1") == "done"
        completed = (await engine.handle("c-1").history())[-1]
    assert completed.type == "saga-completed"
    assert completed.data.unknown == ("reserve",)


GATES: dict[str, asyncio.Event] = {}


async def hold(name: str) -> str:
    LOG.append(f"hold {name}")
    GATES["held"].set()
    await GATES["go"].wait()
    LOG.append(f"held {name}")
    return name


@saga("open-steps")
async def open_steps() -> None:
    held = asyncio.create_task(step(hold, "a", compensation=release))
    await asyncio.sleep(0)
    await step(reserve, "bad")
    await held


async def test_rule_05_in_a_function_rollback_waits_for_open_steps(lab: Lab) -> None:
    LOG.clear()
    GATES.update(held=asyncio.Event(), go=asyncio.Event())
    async with lab.engine(open_steps) as engine:
        handle = await engine.start(open_steps, id="o-1")
        await lab.until_fact(engine, "o-1", "step-failed")
        await GATES["held"].wait()
        assert await handle.status() is WorkflowState.RUNNING
        GATES["go"].set()
        with pytest.raises(SagaFailedError):
            await handle.result()
    assert LOG[-2:] == ["held a", "release a succeeded"]
