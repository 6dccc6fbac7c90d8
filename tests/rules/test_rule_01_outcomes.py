"""Rule 1: an outcome has three values, and an exception that speaks of the transport does not say that nothing happened."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from event_workflow_engine import (
    CompensationContext,
    Outcome,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    WorkflowState,
    saga,
    step,
)
from event_workflow_engine.errors import (
    DecodeError,
    EncodeError,
    OutcomeUnknownError,
    SagaCancelledError,
    StepRejectedError,
)

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

pytestmark = pytest.mark.proves("compensation")


class CardDeclined(Exception):  # noqa: N818 - as users name theirs
    pass


async def outcome_of(lab: Lab, error: Exception, **options: Any) -> Outcome | None:
    """What the compensation of a step is told whose action raised; ``None``: it was not compensated."""
    told: list[Outcome] = []

    async def charge() -> None:
        raise error

    async def refund(ctx: CompensationContext[None, None]) -> None:
        assert ctx.result is None
        told.append(ctx.outcome)

    step_options = {key: options.pop(key) for key in ("rejects", "compensate_failed") if key in options}
    saga = Saga("pay", [SagaStep("charge", charge, refund, **step_options)], **options)
    async with lab.engine(saga, lease=15.0) as engine:  # a worker that loses it has the error no more
        with pytest.raises(SagaFailedError) as failure:
            await engine.execute(saga, id="p-1")
        assert failure.value.__cause__ is error
        assert failure.value.status is (WorkflowState.COMPENSATED if told else WorkflowState.FAILED)
    return told[0] if told else None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such sku"), None),
        (StepRejectedError("declined"), None),
        (OutcomeUnknownError("who knows"), Outcome.UNKNOWN),
        (TimeoutError(), Outcome.UNKNOWN),
        (ConnectionResetError(), Outcome.UNKNOWN),
        (httpx.ReadTimeout("no reply"), Outcome.UNKNOWN),
        (httpx.RemoteProtocolError("cut"), Outcome.UNKNOWN),
        (httpx.HTTPStatusError("422", request=httpx.Request("POST", "http://pay"), response=httpx.Response(422)), None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_rule_01_what_an_exception_says(lab: Lab, error: Exception, expected: Outcome | None) -> None:
    assert await outcome_of(lab, error) is expected


async def test_rule_01_strict_mode_takes_every_other_exception_as_unknown(lab: Lab) -> None:
    assert await outcome_of(lab, ValueError("?"), on_exception="unknown") is Outcome.UNKNOWN


async def test_rule_01_strict_mode_believes_its_rejections(lab: Lab) -> None:
    assert await outcome_of(lab, CardDeclined(), on_exception="unknown", rejects=(CardDeclined,)) is None


async def test_rule_01_a_timeout_is_unknown(lab: Lab) -> None:
    told: list[Outcome] = []

    async def hang() -> None:
        await asyncio.Event().wait()

    async def undo(ctx: CompensationContext[None, None]) -> None:
        told.append(ctx.outcome)

    saga = Saga("slow", [SagaStep("hang", hang, undo, timeout=0.01)])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError) as failure:
            await engine.execute(saga)
    assert told == [Outcome.UNKNOWN]
    assert isinstance(failure.value.__cause__, TimeoutError)


async def test_rule_01_an_action_cancelled_in_the_middle_is_unknown(lab: Lab) -> None:
    told: list[Outcome] = []
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def undo(ctx: CompensationContext[None, None]) -> None:
        told.append(ctx.outcome)

    saga = Saga("slow", [SagaStep("hang", hang, undo)])
    async with lab.engine(saga) as engine:
        handle = await engine.start(saga)
        await begun.wait()
        await handle.cancel("changed my mind")
        with pytest.raises(SagaFailedError, match="changed my mind") as failure:
            await handle.result()
    assert told == [Outcome.UNKNOWN]
    assert failure.value.status is WorkflowState.COMPENSATED


async def test_rule_01_a_result_that_cannot_be_stored_is_unknown_and_says_where(lab: Lab) -> None:
    told: list[Outcome] = []

    async def open_door() -> Any:
        return {"door": {"handle": object()}}

    async def shut_door(ctx: CompensationContext[None, Any]) -> None:
        told.append(ctx.outcome)

    saga = Saga("door", [SagaStep("open", open_door, shut_door)])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError, match=r"'open'.*builtins\.object at door\.handle") as failure:
            await engine.execute(saga, id="d-1")
    assert told == [Outcome.UNKNOWN]
    assert isinstance(failure.value.__cause__, EncodeError)


@saga("misread")
async def misread() -> int:
    await step(note_opened, compensation=note_closed)
    return "one"  # type: ignore[return-value]


@saga("unwritable")
async def unwritable() -> Any:
    await step(note_opened, compensation=note_closed)
    return object()


NOTED: list[str] = []


async def note_opened() -> None:
    NOTED.append("opened")


async def note_closed() -> None:
    NOTED.append("closed")


@pytest.mark.parametrize(("one", "error"), [(misread, DecodeError), (unwritable, EncodeError)])
async def test_rule_01_a_function_whose_result_nobody_could_read_is_undone(
    lab: Lab, one: Saga[Any, Any], error: type[Exception]
) -> None:
    NOTED.clear()
    async with lab.engine(one) as engine:
        with pytest.raises(SagaFailedError, match="result of saga 'f-1'") as failure:
            await engine.execute(one, id="f-1")
        assert await engine.handle("f-1", one).status() is WorkflowState.COMPENSATED
    assert type(failure.value.__cause__) is error
    assert NOTED == ["opened", "closed"]


REFUSALS = [(ValueError("no such account"), Outcome.UNKNOWN), (StepRejectedError("declined"), None)]


@pytest.mark.parametrize(("last", "expected"), REFUSALS, ids=["raised", "rejected"])
async def test_rule_01_a_failure_does_not_speak_for_an_unknown_attempt_before_it(
    lab: Lab, last: Exception, expected: Outcome | None
) -> None:
    raised = iter([ConnectionResetError("cut"), last])
    told: list[Outcome] = []

    async def charge() -> None:
        raise next(raised)

    async def refund(ctx: CompensationContext[None, None]) -> None:
        told.append(ctx.outcome)

    saga = Saga("pay", [SagaStep("charge", charge, refund, retry=RetryPolicy(attempts=2, delay=0))])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(saga)
    assert told == ([] if expected is None else [expected])


@pytest.mark.parametrize(("last", "expected"), REFUSALS, ids=["raised", "rejected"])
async def test_rule_01_a_failure_does_not_speak_for_an_attempt_whose_worker_died(
    lab: Lab, last: Exception, expected: Outcome | None
) -> None:
    begun = asyncio.Event()
    told: list[Outcome] = []

    async def charge() -> None:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        raise last

    async def refund(ctx: CompensationContext[None, None]) -> None:
        told.append(ctx.outcome)

    saga = Saga("pay", [SagaStep("charge", charge, refund, retry=RetryPolicy(attempts=1))])
    async with lab.doomed(saga) as engine:
        await engine.start(saga, id="p-1")
        await begun.wait()
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError):
            await engine.handle("p-1", saga).result()
    assert told == ([] if expected is None else [expected])


async def test_rule_01_a_cancel_before_the_next_attempt_does_not_make_an_interrupted_one_undone(lab: Lab) -> None:
    begun, told = asyncio.Event(), list[Outcome]()

    async def charge() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def refund(ctx: CompensationContext[None, None]) -> None:
        told.append(ctx.outcome)

    saga = Saga("pay", [SagaStep("charge", charge, refund)])
    async with lab.doomed(saga) as engine:
        await engine.start(saga, id="p-1")
        await begun.wait()
    async with lab.engine(saga, worker=False) as engine:
        await engine.handle("p-1", saga).cancel()
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaCancelledError):
            await engine.handle("p-1", saga).result()
    assert told == [Outcome.UNKNOWN]
