"""The backward half of a saga: the plan, one compensation after another, until it is undone or stands."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine import history as h
from event_workflow_engine.callables import call_info
from event_workflow_engine.errors import DecodeError, WorkflowError
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.planner import Dag, Ready, plan_rollback, unpack_retry
from event_workflow_engine.retries import COMPENSATION_RETRY
from event_workflow_engine.runner.attempts import launch_compensation, record_compensation
from event_workflow_engine.saga import CompensationSpec

if TYPE_CHECKING:
    from event_workflow_engine.runner.commands import Fail
    from event_workflow_engine.runner.execution import Attempt
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["Rollback"]

_log: Final = logging.getLogger("event_workflow_engine.runner")


class Rollback:
    """Plans and runs the compensations of one saga (rules 2, 8, 9). It never replays the body."""

    __slots__ = ("_aboard", "_ready", "_run", "_specs", "attempts", "starting")

    def __init__(self, run: SagaRun) -> None:
        self._run = run
        self.attempts: dict[str, Attempt] = {}
        """The compensations that run now, by their steps."""
        self.starting: list[str] = []
        """Steps whose compensation begins when the unit that says so is on disk."""
        self._aboard = 0
        self._ready: Ready | None = None
        self._specs: dict[str, CompensationSpec] = {}

    def begin(self, failure: Fail) -> None:
        """Put the plan into the unit that enters FAILED, and begin; every step has settled."""
        run = self._run
        saga = run.saga
        plan = plan_rollback(run.journal, saga.specs, run.dag if saga.ordered else None)
        if failure.kind == "cancelled" and not plan.plan:
            run.emit(h.SagaCancelled())
            return
        run.emit(h.SagaFailed(failure.error_type, failure.message, failure.failed_step, failure.kind))
        run.emit(plan)
        if plan.plan:
            self.go_on()

    def go_on(self, *, again: bool = False) -> None:
        """Start what the plan allows now; after a restart, go on where the journal ends.

        Args:
            again: Somebody decided that what has failed for good is tried once more.
        """
        run = self._run
        plan = run.journal.plan
        assert plan is not None, "the plan is an event before it runs"
        self._ready = Ready(Dag({entry.step: entry.after for entry in plan.plan}))
        due = dict.fromkeys(self._ready.first)
        for step in run.journal.report_order:
            due.update(dict.fromkeys(self._ready.succeeded(step)))
        for step in due:
            if run.journal.compensations[step].status == "planned":
                self._start(step, 1)
        for step, state in run.journal.compensations.items():
            if state.status == "failed" and again:
                self._start(step, state.attempt + 1)
            elif state.status == "started" and step not in self.starting and step not in self.attempts:
                # Its start is on disk, its end is not, and it does not run: it runs again as the same attempt.
                self.starting.append(step)
        self._conclude()

    def _start(self, step: str, attempt: int) -> None:
        self._run.emit(h.CompensationStarted(step, attempt))
        self.starting.append(step)

    def retry(self, step: str) -> None:
        """The wait before another attempt is over."""
        self._start(step, self._run.journal.compensations[step].attempt + 1)

    def board(self) -> None:
        """All starts that have come up go with the unit that is sent now."""
        self._aboard = len(self.starting)

    def launch_boarded(self) -> None:
        """The unit's starts are on disk: run them. What came up since waits for the next."""
        starting, self.starting = self.starting[: self._aboard], self.starting[self._aboard :]
        self._aboard = 0
        for step in starting:
            self._launch(step)

    def _launch(self, step: str) -> None:
        run = self._run
        state = run.journal.compensations[step]
        try:
            spec = self._specs[step] = self._find(step)
            self.attempts[step] = launch_compensation(run, spec, run.journal.steps[step], state)
        except WorkflowError as error:
            kind = "decode" if isinstance(error, DecodeError) else "code"
            run.needs_intervention(kind, error, step)

    def _find(self, step: str) -> CompensationSpec:
        run = self._run
        declared = run.saga.specs.get(step)
        if declared is not None and declared.compensation is not None:
            return declared.compensation
        undo = run.journal.compensations[step].planned.undo
        if undo is None:
            raise WorkflowError(
                f"saga {run.saga.name!r} {run.saga_id!r}: step {step!r} was planned to be compensated, but the "
                "registered definition has no compensation for it: register code that has"
            )
        fn = run.saga.find_compensation(undo.name)
        if fn is None:
            raise WorkflowError(
                f"saga {run.saga.name!r} {run.saga_id!r}: the compensation {undo.name!r} of step {step!r} is not to be "
                "found: import it into the saga function's module, or register it, and register the saga again"
            )
        return CompensationSpec(fn, call_info(fn), unpack_retry(undo.retry, COMPENSATION_RETRY))

    def attempt_ended(self, attempt: Attempt, _: Any, error: BaseException | None) -> None:
        """A compensation's code has ended."""
        run, step = self._run, attempt.name
        del self.attempts[step]
        if error is None:
            run.emit(h.CompensationSucceeded(step))
            assert self._ready is not None, "it was planned"
            if not run.paused:
                for name in self._ready.succeeded(step):
                    self._start(name, 1)
        else:
            run.emit(record_compensation(run, self._specs[step], run.journal.compensations[step], error))
            context = {"saga_id": run.saga_id, "step": step}
            _log.warning("compensation of step %r of saga %r raised %s", step, run.saga_id, qualified_name(type(error)),
                         exc_info=error, extra=context)  # fmt: skip
        self._conclude()
        run.flush()

    def attempt_stuck(self, attempt: Attempt) -> None:
        """See `AttemptOwner.attempt_stuck`."""
        self._run.settle_timed_out(attempt.name)

    def _conclude(self) -> None:
        run = self._run
        journal = run.journal
        if len(journal.report_order) == len(journal.compensations):
            if not run.paused:  # else it ends when it is resumed
                run.emit(h.SagaCompensated())
            return
        if self.attempts or self.starting or journal.retries or run.paused:
            return
        failed = [state for state in journal.compensations.values() if state.status == "failed"]
        if failed:
            state = failed[0]
            error_type, step = state.error_type, state.planned.step
            run.emit(h.InterventionNeeded("compensation", error_type, state.message, step, journal.state.value))

    def abandon(self) -> list[Attempt]:
        """Leave memory; returns what still runs."""
        running = list(self.attempts.values())
        self.attempts.clear()
        del self._run  # no cycle is left to the garbage collector
        return running
