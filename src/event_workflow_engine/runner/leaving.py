"""A saga leaves memory to go on elsewhere, in good order: between two steps, with nothing of it cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine import history as h
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    import asyncio

    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.storage.port import Unit

__all__ = ["is_under_way", "is_wanted_elsewhere", "last_unit", "leave", "may_leave", "threads"]

_UNDER_WAY: Final = frozenset({WorkflowState.RUNNING, WorkflowState.COMPENSATING})


def is_under_way(run: SagaRun) -> bool:
    """Whether it has something to go on with."""
    return run.journal.state in _UNDER_WAY


def may_leave(run: SagaRun) -> bool:
    """Whether nothing of it runs, and all that has come up can go with its next unit."""
    bound = run.flying is not None or run.holds or run.waits_for_mail or run.closed or run.pen.is_new
    return not bound and not run.busy and is_under_way(run)


def is_wanted_elsewhere(run: SagaRun) -> bool:
    """Whether it may leave, and there is a worker with fewer sagas that can run it."""
    giving = run.kit.giving
    return giving is not None and may_leave(run) and giving.receiver(run) != ""


def leave(run: SagaRun) -> None:
    """Go where it is wanted; it may leave."""
    run.leaving = True
    run.flush()


def last_unit(run: SagaRun) -> Unit:
    """Its last unit here: it says to which worker the saga goes, or that it is free."""
    giving = run.kit.giving
    receiver = giving.take(run) if giving is not None and not run.draining else ""
    until = giving.until if giving is not None and receiver else run.kit.now()
    run.emit(h.SagaHandedOver())
    return run.pen.leaving(run.board(until, park=True), run.journal, receiver, until)


def threads(run: SagaRun) -> dict[str, asyncio.Future[Any]]:
    """The code of its steps that runs now in threads, where nothing can cut it off; also where it has left memory."""
    acting = run.still_ending() if run.closed else run.running
    return {one.name: one.future for one in acting if one.threaded and one.future is not None}
