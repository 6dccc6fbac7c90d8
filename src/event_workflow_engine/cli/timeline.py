"""A saga's history told by step: what each did, how often, and how it was undone. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from event_workflow_engine import history as h

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.events import RecordedEvent

__all__ = ["StepLine", "detail_of", "steps_of"]


@dataclass
class StepLine:
    """One step of a saga.

    Attributes:
        step: Its identity.
        state: ``running``, ``retrying``, ``succeeded``, ``failed`` or ``unknown``.
        attempts: How many attempts began.
        interruptions: How often one was cut off by a crash.
        started_at: When the first attempt began.
        ended_at: When its outcome was recorded.
        error: What the last attempt raised.
        undo: ``""``, ``planned``, ``running``, ``retrying``, ``undone`` or ``failed``.
        undo_attempts: How many attempts of its compensation began.
        undo_error: What the last of them raised.
    """

    step: str
    state: str = "running"
    attempts: int = 0
    interruptions: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""
    undo: str = ""
    undo_attempts: int = 0
    undo_error: str = ""

    def as_plain(self) -> dict[str, Any]:
        """As a JSON object."""
        made = asdict(self)
        for name in ("started_at", "ended_at"):
            made[name] = None if made[name] is None else made[name].isoformat()
        return made


@dataclass
class _Steps:
    lines: dict[str, StepLine] = field(default_factory=dict)

    def line(self, step: str) -> StepLine:
        return self.lines.setdefault(step, StepLine(step))


def steps_of(events: Iterable[RecordedEvent[Any]]) -> list[StepLine]:
    """The steps in the order in which they began."""
    steps = _Steps()
    for event in events:
        fact = event.data
        match fact:
            case h.StepStarted():
                line = steps.line(fact.step)
                line.state, line.attempts = "running", line.attempts + 1
                line.interruptions = max(line.interruptions, fact.interruptions)
                line.started_at = line.started_at or event.recorded_at
            case h.StepSucceeded():
                line = steps.line(fact.step)
                line.state, line.ended_at, line.error = "succeeded", event.recorded_at, ""
            case h.StepFailed() | h.StepUnknown():
                line = steps.line(fact.step)
                ended = "failed" if isinstance(fact, h.StepFailed) else "unknown"
                line.state = ended if fact.retry_at is None else "retrying"
                line.ended_at = event.recorded_at if fact.retry_at is None else None
                line.error = _error(fact)
            case _:
                _undo(steps, fact)
    return list(steps.lines.values())


def _undo(steps: _Steps, fact: Any) -> None:
    match fact:
        case h.RollbackPlanned():
            for planned in fact.plan:
                steps.line(planned.step).undo = "planned"
        case h.CompensationStarted():
            line = steps.line(fact.step)
            line.undo, line.undo_attempts = "running", line.undo_attempts + 1
        case h.CompensationSucceeded():
            line = steps.line(fact.step)
            line.undo, line.undo_error = "undone", ""
        case h.CompensationFailed():
            line = steps.line(fact.step)
            line.undo = "failed" if fact.retry_at is None else "retrying"
            line.undo_error = _error(fact)
        case _:
            return


def _more(fact: h.StepStarted, again: str) -> str:
    child = "" if fact.child is None else f", child saga {fact.child}"
    return child + again + (", again after a crash" if fact.interruptions else "")


def detail_of(fact: Any) -> str:
    """What a fact says beside its type, in a few words."""
    match fact:
        case h.SagaStarted():
            return f"{fact.saga} v{fact.version}"
        case h.StepStarted() | h.CompensationStarted():
            again = f", attempt {fact.attempt}" if fact.attempt > 1 else ""
            return fact.step + (_more(fact, again) if isinstance(fact, h.StepStarted) else again)
        case h.StepFailed() | h.StepUnknown() | h.CompensationFailed():
            again = "" if fact.retry_at is None else " (to be tried again)"
            return f"{fact.step}: {_error(fact)}{again}"
        case h.RollbackPlanned():
            return ", ".join(planned.step for planned in fact.plan) or "nothing to undo"
        case h.SagaFailed() | h.InterventionNeeded():
            return _error(fact)
        case h.InterventionMade():
            return " ".join(word for word in (fact.verb, fact.who, fact.why) if word)
        case h.SagaHandedOver():
            return "its worker had lost the store" if fact.lost else ""
        case _:
            named = (getattr(fact, field, "") for field in ("step", "name", "timer", "reason"))
            return next(filter(None, named), "")


def _error(fact: Any) -> str:
    """The error's class without its modules, and what it said."""
    return f"{fact.error_type.rpartition('.')[2]}: {fact.message}"
