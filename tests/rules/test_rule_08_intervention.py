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
