"""What a saga in memory does by the clock: timers, the waits between attempts, its deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from event_workflow_engine import history as h
from event_workflow_engine.journal import DEADLINE
from event_workflow_engine.planner import earliest_wake
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.waits import kept_waits, open_waits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.journal import Journal
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.waits import Wait

__all__ = ["fire_due", "next_wake", "waits_in_memory", "what_it_waits_for"]


def next_wake(run: SagaRun) -> int | None:
    """When something is due next, in microseconds since 1970; ``None``: nothing is."""
    journal = run.journal
    if run.pen.undecided:
        return run.kit.now()
    if not journal.timed:
        return None
    if run.paused or journal.state is WorkflowState.NEEDS_INTERVENTION:
        return None
    return earliest_wake(journal, _awaited_timers(run))


def what_it_waits_for(run: SagaRun) -> str | None:
    """What the saga's row says of that while it is out of memory."""
    return kept_waits(*_awaited(run))


def waits_in_memory(run: SagaRun) -> list[Wait]:
    """What it waits for, but for what runs of it."""
    return open_waits(*_awaited(run))


def _awaited(run: SagaRun) -> tuple[Journal, Iterable[str], Iterable[tuple[str, str | None]]]:
    script = run.forward.script
    return (run.journal, (), ()) if script is None else (run.journal, script.awaited_timers, script.awaited_signals)


def _awaited_timers(run: SagaRun) -> Iterable[str]:
    script = run.forward.script
    return () if script is None else script.awaited_timers


def fire_due(run: SagaRun) -> None:
    """Do what is due: the deadline first, then timers in the order of their times, then further attempts."""
    now, journal = run.kit.now(), run.journal
    overdue = journal.deadline is not None and journal.deadline <= now
    if overdue and not journal.deadline_passed and not journal.failing:
        _fire(run, DEADLINE)
    awaited = set(_awaited_timers(run))
    for timer, due in sorted(journal.timers.items(), key=lambda item: item[1]):
        if due <= now and timer in awaited:
            _fire(run, timer)
    for step, due in list(journal.retries.items()):
        if due <= now:
            half = run.rollback if journal.failing else run.forward
            half.retry(step)


def _fire(run: SagaRun, timer: str) -> None:
    fact = h.TimerFired(timer)
    run.emit(fact)
    run.forward.tell(fact)
