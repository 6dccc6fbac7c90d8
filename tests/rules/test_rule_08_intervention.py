"""Rule 8: a compensation that exhausts its policy leaves the saga standing, with the rest of the plan intact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import RetryPolicy, Saga, SagaFailedError, SagaStep, WorkflowState

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

TWICE = RetryPolicy(attempts=2, delay=0, jitter=0)


async def test_rule_08_an_exhausted_compensation_stands_with_the_rest_of_the_plan(lab: Lab) -> None:
    log: list[str] = []

    async def act() -> None: ...

    async def refuse() -> None:
        raise ValueError("no")

    async def undo_first() -> None:
        log.append("first")

    async def undo_second() -> None:
        log.append("second")
        raise RuntimeError("the bank is closed")

    saga = Saga(
        "s",
        [
            SagaStep("first", act, undo_first),
            SagaStep("second", act, undo_second, compensation_retry=TWICE),
            SagaStep("refuse", refuse),
        ],
        sequential=True,
    )
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError, match="the bank is closed") as failure:
            await engine.execute(saga, id="s-1")
        history = await engine.handle("s-1").history()
    assert log == ["second", "second"]
    assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
    assert failure.value.report.failed == {"second": "RuntimeError: the bank is closed"}
    assert [event.data.attempt for event in history if event.type == "compensation-failed"] == [1, 2]
    assert history[-1].type == "intervention-needed"
    (plan,) = [event.data for event in history if event.type == "rollback-planned"]
    assert [entry.step for entry in plan.plan] == ["second", "first"], "the plan still holds what is to be undone"


async def test_rule_08_a_compensation_is_retried_by_its_own_policy(lab: Lab) -> None:
    calls = 0

    async def act() -> None:
        raise ConnectionResetError

    async def undo() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RuntimeError("not yet")

    policy = RetryPolicy(attempts=3, delay=0, jitter=0)
    saga = Saga("s", [SagaStep("act", act, undo, compensation_retry=policy)])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError) as failure:
            await engine.execute(saga)
    assert (calls, failure.value.status) == (3, WorkflowState.COMPENSATED)


async def test_rule_08_a_standing_rollback_goes_on_when_it_is_resumed(lab: Lab) -> None:
    log: list[str] = []
    closed = True

    async def act() -> None: ...

    async def refuse() -> None:
        raise ValueError("no")

    async def undo_first() -> None:
        log.append("first")

    async def undo_second() -> None:
        log.append("second")
        if closed:
            raise RuntimeError("the bank is closed")

    saga = Saga(
        "s",
        [
            SagaStep("first", act, undo_first),
            SagaStep("second", act, undo_second, compensation_retry=TWICE),
            SagaStep("refuse", refuse),
        ],
        sequential=True,
    )
    async with lab.engine(saga) as engine:
        handle = await engine.start(saga, id="s-1")
        with pytest.raises(SagaFailedError, match="the bank is closed"):
            await handle.result()
        await handle.resume()
        await lab.until_fact(engine, "s-1", "intervention-needed", 2)
        assert log == ["second"] * 3, "one further attempt for each resume, and what lies behind it still waits"
        closed = False
        await handle.resume()
        await lab.until_fact(engine, "s-1", "saga-compensated")
        with pytest.raises(SagaFailedError) as failure:
            await handle.result()
        history = await handle.history()
    assert failure.value.status is WorkflowState.COMPENSATED
    assert failure.value.report.compensated == ("second", "first")
    assert log == ["second"] * 4 + ["first"]
    assert [event.data.verb for event in history if event.type == "intervention-made"] == ["retry", "retry"]


async def test_rule_08_a_cancel_changes_nothing_once_the_saga_is_being_undone(lab: Lab) -> None:
    async def act() -> None:
        raise ConnectionResetError

    async def undo() -> None:
        raise RuntimeError("the bank is closed")

    saga = Saga("s", [SagaStep("act", act, undo, compensation_retry=RetryPolicy(attempts=1))])
    async with lab.engine(saga) as engine:
        handle = await engine.start(saga, id="s-1")
        with pytest.raises(SagaFailedError, match="the bank is closed"):
            await handle.result()
        before = await lab.facts(engine, "s-1")
        await handle.cancel("enough")
    async with lab.engine(saga) as engine:
        assert await engine.handle("s-1").status() is WorkflowState.NEEDS_INTERVENTION
        assert await lab.facts(engine, "s-1") == before
