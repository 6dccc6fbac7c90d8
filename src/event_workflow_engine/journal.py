"""The fold of a saga's journal: from facts to what is known. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import msgspec

from event_workflow_engine import history as h
from event_workflow_engine.errors import DecodeError, IllegalTransitionError
from event_workflow_engine.outcomes import Outcome, RollbackReport
from event_workflow_engine.state_machine import StateMachine, WorkflowState

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHILD", "DEADLINE", "CompensationState", "Journal", "StepState", "child_id", "inbox_stream", "saga_stream"]

DEADLINE: Final = "~deadline"
"""The timer of a saga's own deadline."""

CHILD: Final = "~run:"
"""In the name of a step that runs a child saga, before the name of that one's definition; no other step has it."""

StepStatus = Literal["started", "waiting", "succeeded", "failed", "unknown"]
CompensationStatus = Literal["planned", "started", "waiting", "succeeded", "failed"]


def saga_stream(saga_id: str) -> str:
    """The stream of a saga's journal; only its owner appends to it."""
    return f"saga-{saga_id}"


def inbox_stream(saga_id: str) -> str:
    """The stream where everybody else puts signals and requests for a saga."""
    return f"inbox-{saga_id}"


def child_id(saga_id: str, step: str) -> str:
    """The id of the child saga that a step runs, where the code gave it none."""
    return f"{saga_id}/{step}"


class StepState(msgspec.Struct, gc=False):
    """What the journal knows of a step. ``waiting``: an attempt failed, the next is due at `retry_at`.

    `maybe`: an earlier attempt of it may have happened: its outcome was unknown, or nobody saw its end.
    """

    step: str
    status: StepStatus = "started"
    attempt: int = 1
    interruptions: int = 0
    retry_at: int | None = None
    result: h.Raw | None = None
    error_type: str = ""
    message: str = ""
    undo: h.Undo | None = None
    maybe: bool = False
    child: str | None = None

    @property
    def settled(self) -> bool:
        """Whether its outcome is final."""
        return self.status in _SETTLED

    @property
    def outcome(self) -> Outcome:
        """Its final outcome."""
        return Outcome(self.status)


_SETTLED: Final = frozenset({"succeeded", "failed", "unknown"})


class CompensationState(msgspec.Struct):
    """What the journal knows of a planned compensation."""

    planned: h.PlannedCompensation
    status: CompensationStatus = "planned"
    attempt: int = 0
    retry_at: int | None = None
    error_type: str = ""
    message: str = ""


class Journal:
    """The state of one saga.

    Args:
        saga_id: The saga's id, for errors.
    """

    __slots__ = (
        "_machine",
        "_pause_from",
        "cancel_requested",
        "compensations",
        "completed",
        "cursor",
        "deadline",
        "deadline_passed",
        "ended",
        "failure",
        "handed_over",
        "intervention",
        "losses",
        "open_steps",
        "plan",
        "report_order",
        "result",
        "retries",
        "saga_id",
        "started",
        "state",
        "steps",
        "timers",
        "version",
    )

    def __init__(self, saga_id: str) -> None:
        self.saga_id = saga_id
        self.version = 0
        self.started: h.SagaStarted | None = None
        self.steps: dict[str, StepState] = {}
        self.completed: list[str] = []
        """Steps with a final outcome, in the order in which they got it."""
        self.open_steps = 0
        """Steps that are started or wait for another attempt."""
        self.timers: dict[str, int] = {}
        """Timers set and not fired, with their due times."""
        self.retries: dict[str, int] = {}
        """Steps, later compensations, that wait for another attempt, with its due time."""
        self.cursor = 0
        self.cancel_requested: h.CancelRequested | None = None
        self.deadline: int | None = None
        """When the saga's own timeout is over, in microseconds since 1970."""
        self.deadline_passed = False
        self.failure: h.SagaFailed | None = None
        self.plan: h.RollbackPlanned | None = None
        self.compensations: dict[str, CompensationState] = {}
        self.report_order: tuple[str, ...] = ()
        self.intervention: h.InterventionNeeded | None = None
        self.result: h.Raw | None = None
        self.ended = False
        self.handed_over = False
        self.losses = 0
        """How often the store was lost while something of it was under way, since something of it last ended."""
        self._machine: StateMachine[WorkflowState] = StateMachine()
        self.state = self._machine.state
        self._pause_from = WorkflowState.RUNNING

    @property
    def queue(self) -> h.InQueue | None:
        """The queue through which it came, if any."""
        return None if self.started is None else self.started.queue

    @property
    def failing(self) -> bool:
        """Whether nothing new may start: a failure, a cancel or the deadline is on record."""
        return self.failure is not None

    @property
    def timed(self) -> bool:
        """Whether anything of it is due at some time."""
        return bool(self.timers or self.retries) or self.deadline is not None

    @property
    def report(self) -> RollbackReport:
        """What the rollback did so far."""
        failed = {
            step: f"{state.error_type}: {state.message}"
            for step, state in self.compensations.items()
            if state.status == "failed"
        }
        skipped = self.plan.skipped if self.plan is not None else ()
        return RollbackReport(self.report_order, skipped, failed)

    def load(self, data: bytes, version: int) -> list[Any]:
        """Apply the facts of one stored record; returns them.

        Raises:
            DecodeError: The record holds no facts, or they do not follow from those before.
        """
        try:
            facts = h.decode_facts(data)
            for fact in facts:
                self.apply(fact)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError(f"journal of saga {self.saga_id!r}, version {version}: {error}") from error
        except (IllegalTransitionError, KeyError) as error:
            raise DecodeError(
                f"journal of saga {self.saga_id!r}, version {version}: its facts do not follow one another: {error}"
            ) from error
        if self.version != version:
            raise DecodeError(
                f"journal of saga {self.saga_id!r} is at version {self.version}, but its record says {version}"
            )
        return facts

    def apply(self, fact: Any) -> None:
        """Fold one fact.

        Raises:
            IllegalTransitionError: It does not follow from the state.
            KeyError: It is about a step or compensation that the journal does not know.
        """
        handler = self._handlers.get(type(fact))
        if handler is None:
            raise KeyError(f"{type(fact).__name__} is no fact of a journal")
        handler(self, fact)
        self.version += 1

    def _enter(self, state: WorkflowState) -> None:
        self.state = self._machine.transition_to(state)

    def _on_started(self, fact: h.SagaStarted) -> None:
        self.started = fact
        self.deadline = fact.deadline
        self._enter(WorkflowState.RUNNING)

    def _on_admitted(self, fact: h.SagaAdmitted) -> None:
        self.deadline = fact.deadline

    def _on_step_started(self, fact: h.StepStarted) -> None:
        self.handed_over = False
        state = self.steps.get(fact.step)
        if state is None:
            self.steps[fact.step] = StepState(
                fact.step, "started", fact.attempt, fact.interruptions, undo=fact.undo, child=fact.child
            )
            self.open_steps += 1
            return
        if state.settled:
            raise KeyError(f"step {fact.step!r} has ended and cannot start again")
        state.maybe |= state.status == "started"
        state.status = "started"
        state.attempt = fact.attempt
        state.interruptions = fact.interruptions
        state.child = fact.child
        state.retry_at = None
        self.retries.pop(fact.step, None)

    def _settle(self, step: str, status: StepStatus) -> StepState:
        state = self.steps[step]
        if state.status in _SETTLED:
            raise KeyError(f"step {step!r} has ended already")
        state.status = status
        if self.retries:
            state.retry_at = None
            self.retries.pop(step, None)
        self.open_steps -= 1
        self.losses = 0
        self.completed.append(step)
        return state

    def _on_step_succeeded(self, fact: h.StepSucceeded) -> None:
        self._settle(fact.step, "succeeded").result = fact.result

    def _on_step_failed(self, fact: h.StepFailed) -> None:
        self._on_attempt_ended(fact, "failed")

    def _on_step_unknown(self, fact: h.StepUnknown) -> None:
        self._on_attempt_ended(fact, "unknown")

    def _on_attempt_ended(self, fact: h.StepFailed | h.StepUnknown, status: Literal["failed", "unknown"]) -> None:
        if fact.retry_at is None:
            state = self._settle(fact.step, status)
        else:
            self.losses = 0
            state = self.steps[fact.step]
            state.status = "waiting"
            state.maybe |= status == "unknown"
            state.retry_at = self.retries[fact.step] = fact.retry_at
        state.attempt = fact.attempt
        state.error_type = fact.error_type
        state.message = fact.message

    def _on_signal(self, fact: h.SignalReceived) -> None:
        self.cursor = max(self.cursor, fact.cursor)

    def _on_timer_set(self, fact: h.TimerSet) -> None:
        self.timers[fact.timer] = fact.due

    def _on_timer_fired(self, fact: h.TimerFired) -> None:
        self.timers.pop(fact.timer, None)
        if fact.timer == DEADLINE:
            self.deadline_passed = True

    def _on_cancel(self, fact: h.CancelRequested) -> None:
        self.cursor = max(self.cursor, fact.cursor)
        if self.cancel_requested is None:
            self.cancel_requested = fact

    def _on_failed(self, fact: h.SagaFailed) -> None:
        self.failure = fact
        self._enter(WorkflowState.FAILED)

    def _on_planned(self, fact: h.RollbackPlanned) -> None:
        self.plan = fact
        self.compensations = {planned.step: CompensationState(planned) for planned in fact.plan}
        if fact.plan:
            self._enter(WorkflowState.COMPENSATING)
        else:
            self.ended = True

    def _on_compensation_started(self, fact: h.CompensationStarted) -> None:
        state = self.compensations[fact.step]
        state.status = "started"
        state.attempt = fact.attempt
        state.retry_at = None
        self.retries.pop(fact.step, None)

    def _on_compensation_succeeded(self, fact: h.CompensationSucceeded) -> None:
        self.losses = 0
        self.compensations[fact.step].status = "succeeded"
        self.report_order += (fact.step,)

    def _on_compensation_failed(self, fact: h.CompensationFailed) -> None:
        self.losses = 0
        state = self.compensations[fact.step]
        state.status = "failed" if fact.retry_at is None else "waiting"
        state.retry_at = fact.retry_at
        if fact.retry_at is not None:
            self.retries[fact.step] = fact.retry_at
        state.attempt = fact.attempt
        state.error_type = fact.error_type
        state.message = fact.message

    def _on_completed(self, fact: h.SagaCompleted) -> None:
        self._enter(WorkflowState.COMPLETED)
        self.result = fact.result
        self.ended = True

    def _on_compensated(self, _: h.SagaCompensated) -> None:
        self._enter(WorkflowState.COMPENSATED)
        self.ended = True

    def _on_cancelled(self, _: h.SagaCancelled) -> None:
        self._enter(WorkflowState.CANCELLED)
        self.ended = True

    def _on_paused(self, fact: h.SagaPaused) -> None:
        self._pause_from = self.state
        self._enter(WorkflowState.PAUSED)
        self.cursor = max(self.cursor, fact.cursor)

    def _on_resumed(self, fact: h.SagaResumed) -> None:
        self._enter(self._pause_from)
        self.cursor = max(self.cursor, fact.cursor)

    def _on_handed_over(self, fact: h.SagaHandedOver) -> None:
        self.handed_over = True
        self.losses += fact.lost

    def _on_intervention_needed(self, fact: h.InterventionNeeded) -> None:
        self._enter(WorkflowState.NEEDS_INTERVENTION)
        self.intervention = fact

    def _on_intervention_made(self, fact: h.InterventionMade) -> None:
        try:
            state = WorkflowState(fact.state)
        except ValueError as error:
            raise KeyError(f"{fact.state!r} is no state") from error
        self._enter(state)
        self.intervention = None

    _handlers: ClassVar[dict[type[Any], Callable[[Journal, Any], None]]] = {
        h.SagaStarted: _on_started,
        h.SagaAdmitted: _on_admitted,
        h.StepStarted: _on_step_started,
        h.StepSucceeded: _on_step_succeeded,
        h.StepFailed: _on_step_failed,
        h.StepUnknown: _on_step_unknown,
        h.SignalReceived: _on_signal,
        h.TimerSet: _on_timer_set,
        h.TimerFired: _on_timer_fired,
        h.CancelRequested: _on_cancel,
        h.SagaFailed: _on_failed,
        h.RollbackPlanned: _on_planned,
        h.CompensationStarted: _on_compensation_started,
        h.CompensationSucceeded: _on_compensation_succeeded,
        h.CompensationFailed: _on_compensation_failed,
        h.SagaCompleted: _on_completed,
        h.SagaCompensated: _on_compensated,
        h.SagaCancelled: _on_cancelled,
        h.SagaPaused: _on_paused,
        h.SagaResumed: _on_resumed,
        h.SagaHandedOver: _on_handed_over,
        h.InterventionNeeded: _on_intervention_needed,
        h.InterventionMade: _on_intervention_made,
    }
