"""From a step that is to run to its attempt, and from the attempt's end to the fact that records it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from event_workflow_engine import history as h
from event_workflow_engine.clock import from_micros
from event_workflow_engine.context import STEP, CompensationContext, StepContext
from event_workflow_engine.errors import DecodeError, EncodeError, StepRejectedError
from event_workflow_engine.outcomes import Outcome, classify, qualified_name
from event_workflow_engine.planner import next_attempt_after, pack_retry
from event_workflow_engine.retries import COMPENSATION_RETRY
from event_workflow_engine.runner.execution import Attempt
from event_workflow_engine.runner.transacting import TransactionalAction

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from event_workflow_engine.codecs import Codec
    from event_workflow_engine.journal import CompensationState, Journal, StepState
    from event_workflow_engine.runner.commands import Finish, StartStep
    from event_workflow_engine.runner.kit import Interceptor
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.saga import CompensationSpec, Saga, StepSpec

__all__ = [
    "ReadyAction",
    "launch_action",
    "launch_compensation",
    "may_have_happened",
    "read_result",
    "ready_action",
    "record_compensation",
    "record_completion",
    "record_given_up",
    "record_start",
    "record_success",
    "record_unsuccess",
]

_MICROS: Final = 1_000_000
_PLAIN: Final = frozenset({str, int, bool, type(None)})


class ReadyAction(NamedTuple):
    """An attempt's action, made ready while its start is on its way to disk, for then nothing else is to do."""

    attempt: Attempt
    context: StepContext[Any]
    around: Context
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    is_async: bool


def ready_action(run: SagaRun, command: StartStep) -> ReadyAction:
    """All that launching needs and that does not depend on when that is."""
    step, spec, kit = command.step, command.spec, run.kit
    number = run.journal.steps[step].attempt
    attempt = Attempt(step, kit, run.forward, run.saga.settle_timeout)
    context: StepContext[Any] = StepContext(
        run.place, step, run.input, run.results, run.key_prefix + step, number, run.fence, None, attempt
    )
    args = command.args if command.args is not None else (context,) if spec.info.takes_context else ()
    fn, is_async = spec.action, spec.info.is_async
    if kit.intercept is not None:
        fn, is_async = _called(kit.intercept, fn, is_async=is_async)
    if spec.transactional:
        fn, args = TransactionalAction(run, attempt, command, fn, context, record_success).act, (args,)
    return ReadyAction(attempt, context, _context(run, context), fn, args, is_async)


def launch_action(run: SagaRun, command: StartStep, state: StepState, ready: ReadyAction | None) -> Attempt:
    """Begin an attempt whose start is on disk, with what was made ready, if that was for this attempt."""
    if ready is None or ready.context.step != state.step or ready.context.attempt != state.attempt:
        ready = ready_action(run, command)
    attempt, context, around, fn, args, is_async = ready
    timeout = command.spec.timeout
    if timeout is not None:
        context.deadline = from_micros(run.kit.now() + int(timeout * _MICROS))
    attempt.start(fn, args, is_async=is_async, context=around, pool=run.kit.actions, timeout=timeout)
    return attempt


def launch_compensation(run: SagaRun, spec: CompensationSpec, step: StepState, state: CompensationState) -> Attempt:
    """Begin a compensation whose start is on disk."""
    kit = run.kit
    attempt = Attempt(state.planned.step, kit, run.rollback, run.saga.settle_timeout)
    result = None
    if step.result is not None:
        declared = run.saga.specs.get(step.step)
        kind = spec.info.context_result
        if kind is Any and declared is not None:
            kind = declared.info.result_type
        result = read_result(run, step.step, step.result, kind)
    context: CompensationContext[Any, Any] = CompensationContext(
        run.place,
        step.step,
        run.input,
        run.results,
        run.key_prefix + step.step,
        state.attempt,
        run.fence,
        None,
        attempt,
        result=result,
        outcome=state.planned.outcome,
    )
    fn, is_async = spec.fn, spec.info.is_async
    if kit.intercept is not None:
        fn, is_async = _called(kit.intercept, fn, is_async=is_async)
    attempt.start(
        fn,
        (context,) if spec.info.takes_context else (),
        is_async=is_async,
        context=_context(run, context),
        pool=kit.undo,
        timeout=None,
    )
    return attempt


def _called(intercept: Interceptor, fn: Callable[..., Any], *, is_async: bool) -> tuple[Callable[..., Any], bool]:
    """What to call: the function, or what a test has put in its place."""
    stand_in = intercept(fn)
    return (fn, is_async) if stand_in is None else (stand_in, True)


def _context(run: SagaRun, present: StepContext[Any]) -> Context:
    context = run.context.copy()
    context.run(STEP.set, present)
    return context


def read_result(run: SagaRun, step: str, data: h.Raw, kind: Any) -> Any:
    """A step's typed result from the journal."""
    return run.kit.codec.decode(data, kind, f"saga {run.saga_id!r}, result of step {step!r}")


def record_start(saga: Saga[Any, Any], command: StartStep, attempt: int, interruptions: int) -> h.StepStarted:
    """The fact that an attempt is to begin; the first of a function's step says how it is undone without the body."""
    undo, compensation = None, command.spec.compensation
    if command.args is not None and compensation is not None and attempt == 1:
        retry = () if compensation.retry is COMPENSATION_RETRY else pack_retry(compensation.retry)
        undo = h.Undo(saga.compensation_name(compensation.fn), retry, command.spec.compensate_failed)
    return h.StepStarted(command.step, attempt, interruptions, undo, command.spec.child)


def record_success(run: SagaRun, command: StartStep, value: Any) -> tuple[Any, Any]:
    """The fact of a success, and the value as it will be read back: live and replay see the same.

    A value that cannot be written or read back leaves the outcome UNKNOWN: it happened, but its result is not known.
    """
    step, kind = command.step, type(value)
    try:
        data = h.Raw(run.kit.codec.encode(value, f"saga {run.saga_id!r}, result of step {step!r}"))
        if kind not in _PLAIN and not (kind is float and math.isfinite(value)):
            value = read_result(run, step, data, command.spec.info.result_type)
        elif command.spec.info.result_type not in (kind, Any):
            read_result(run, step, data, command.spec.info.result_type)
    except (EncodeError, DecodeError) as error:
        attempt = run.journal.steps[step].attempt
        return h.StepUnknown(step, qualified_name(type(error)), str(error), attempt), error
    run.pen.gathered += len(data)
    return h.StepSucceeded(step, data), value


def may_have_happened(state: StepState, spec: StepSpec | None) -> bool:
    """Whether an earlier attempt of a step may have: not of a transactional one, which was rolled back.

    Args:
        state: What the journal knows of it.
        spec: Where it is at hand.
    """
    return state.maybe and not (spec is not None and spec.transactional)


def record_unsuccess(run: SagaRun, command: StartStep, error: BaseException, *, timed_out: bool, final: bool) -> Any:
    """The fact of an attempt that did not succeed: FAILED or UNKNOWN, and when the next one is due.

    With `final` no attempt may follow, whatever the policy says: the saga is doomed, or the step was given up.
    """
    spec = command.spec
    attempt = run.journal.steps[command.step].attempt
    strict = run.saga.on_exception == "unknown"
    outcome = Outcome.UNKNOWN if timed_out else classify(error, strict=strict, rejects=spec.rejects)
    if spec.transactional:
        outcome = Outcome.FAILED  # it was rolled back
    cancelled = isinstance(error, asyncio.CancelledError)
    rejected = isinstance(error, (StepRejectedError, *spec.rejects))
    wait = None
    if not final and not cancelled:
        wait = next_attempt_after(
            spec.retry,
            attempt,
            outcome,
            idempotent=spec.idempotent,
            rejected=rejected,
            never=isinstance(error, spec.retry.never),
        )
    retry_at = None if wait is None else run.kit.now() + int(wait * _MICROS)
    if retry_at is None and not rejected and may_have_happened(run.journal.steps[command.step], spec):
        # This attempt cannot speak for an earlier one, as where that is why it was refused.
        outcome = Outcome.UNKNOWN
    message = str(error) or ("cancelled in the middle" if cancelled else "")
    fact: Callable[..., Any] = h.StepFailed if outcome is Outcome.FAILED else h.StepUnknown
    return fact(command.step, qualified_name(type(error)), message, attempt, retry_at)


def record_given_up(state: StepState, spec: StepSpec | None, error_type: str, message: str) -> Any:
    """The fact of a step of which no other attempt begins. An earlier one may have happened."""
    fact = h.StepUnknown if may_have_happened(state, spec) else h.StepFailed
    return fact(state.step, error_type, message, state.attempt)


def record_compensation(run: SagaRun, spec: CompensationSpec, state: CompensationState, error: BaseException) -> Any:
    """The fact of a compensation that raised, and when the next attempt is due."""
    policy, wait = spec.retry, None
    if policy.may_follow(state.attempt) and not isinstance(error, policy.never):
        wait = policy.wait_after(state.attempt)
    retry_at = None if wait is None else run.kit.now() + int(wait * _MICROS)
    kind = qualified_name(type(error))
    return h.CompensationFailed(state.planned.step, kind, str(error), state.attempt, retry_at)


def record_completion(journal: Journal, saga: Saga[Any, Any], codec: Codec, finish: Finish) -> h.SagaCompleted:
    """The fact that all is done. Steps whose outcome stayed unknown are named in it.

    Raises:
        EncodeError: The result is no JSON.
        DecodeError: It is not of the function's type, so nobody could read it.
    """
    what, kind = f"result of saga {journal.saga_id!r}", saga.output_type
    result = h.Raw(codec.encode(finish.result, what))
    if saga.fn is not None and not (kind is Any or (kind in _PLAIN and type(finish.result) is kind)):
        codec.decode(result, kind, what)
    unknown = tuple(name for name in journal.completed if journal.steps[name].status == "unknown")
    return h.SagaCompleted(result, unknown)
