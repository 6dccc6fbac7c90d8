"""How a saga ended, as its caller is told: a typed result, or the error that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.context import StepResults
from event_workflow_engine.errors import (
    EncodeError,
    ForeignAwaitError,
    NonDeterminismError,
    SagaCancelledError,
    SagaFailedError,
    SagaTimeoutError,
    WorkflowError,
)
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.codecs import Codec
    from event_workflow_engine.journal import Journal
    from event_workflow_engine.saga import Saga

__all__ = ["conclude", "ended_as"]

_KINDS = {"failed": SagaFailedError, "cancelled": SagaCancelledError, "timeout": SagaTimeoutError}


def conclude(
    journal: Journal,
    saga: Saga[Any, Any] | None,
    codec: Codec,
    results: Mapping[str, Any] | None = None,
    cause: BaseException | None = None,
) -> Any:
    """The result of a saga that ended as done.

    Args:
        journal: The saga's, ended or standing.
        saga: Its definition, which types the result; ``None``: plain JSON values.
        codec: Decodes.
        results: The steps' typed results, where they are in memory.
        cause: What the failing step raised, where it is at hand.

    Raises:
        SagaFailedError: It did not end as done, or it stands at NEEDS_INTERVENTION.
    """
    if journal.state is WorkflowState.COMPLETED:
        return _result(journal, saga, codec, results)
    saga_id, state = journal.saga_id, journal.state
    if state is WorkflowState.NEEDS_INTERVENTION:
        raise _standing(journal) from _standing_cause(journal)
    failure = journal.failure
    kind = SagaCancelledError if failure is None else _KINDS.get(failure.kind, SagaFailedError)
    raise kind(
        ended_as(journal),
        saga_id=saga_id,
        status=state,
        failed_step=None if failure is None else failure.failed_step,
        report=journal.report,
    ) from cause


def ended_as(journal: Journal) -> str:
    """How a saga ended that was not done, and why."""
    failure, requested = journal.failure, journal.cancel_requested
    blame = "" if failure is None or not failure.failed_step else f" in step {failure.failed_step!r}"
    if failure is not None:
        why = f"{failure.error_type}: {failure.message}"
    else:
        why = "it was cancelled" + (f": {requested.reason}" if requested is not None and requested.reason else "")
    return f"saga {journal.saga_id!r} ended as {journal.state}{blame}: {why}"


def _result(journal: Journal, saga: Saga[Any, Any] | None, codec: Codec, results: Mapping[str, Any] | None) -> Any:
    what = f"result of saga {journal.saga_id!r}"
    if saga is not None and saga.fn is not None:
        return None if journal.result is None else codec.decode(journal.result, saga.output_type, what)
    if saga is None and journal.result is not None and bytes(journal.result) != b"null":
        return codec.decode(journal.result, Any, what)
    if results is None:
        specs = {} if saga is None else saga.specs
        results = {
            name: codec.decode(state.result, specs[name].info.result_type if name in specs else Any, what)
            for name, state in journal.steps.items()
            if state.result is not None
        }
    return StepResults(results, {} if saga is None else saga.by_action)


def _standing(journal: Journal) -> SagaFailedError:
    stands = journal.intervention
    step = None if stands is None else stands.step
    why = "" if stands is None else f": {stands.error_type}: {stands.message}"
    return SagaFailedError(
        f"saga {journal.saga_id!r} needs intervention{why}",
        saga_id=journal.saga_id,
        status=WorkflowState.NEEDS_INTERVENTION,
        failed_step=step,
        report=journal.report,
    )


def _standing_cause(journal: Journal) -> BaseException | None:
    stands = journal.intervention
    if stands is None:
        return None
    kinds: dict[str, type[WorkflowError]] = {
        qualified_name(NonDeterminismError): NonDeterminismError,
        qualified_name(ForeignAwaitError): ForeignAwaitError,
        qualified_name(EncodeError): EncodeError,
    }
    return kinds.get(stands.error_type, WorkflowError)(stands.message)
