"""One saga in memory: facts come up, one unit at a time goes to disk, and then what they ask for happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine import history as h
from event_workflow_engine.context import StepResults
from event_workflow_engine.errors import VersionConflictError, WorkflowError
from event_workflow_engine.journal import Journal, inbox_stream
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.runner.due import fire_due, next_wake, what_it_waits_for
from event_workflow_engine.runner.forward import Forward
from event_workflow_engine.runner.leaving import is_under_way, last_unit
from event_workflow_engine.runner.mail import Mail
from event_workflow_engine.runner.pen import Pen
from event_workflow_engine.runner.rollback import Rollback
from event_workflow_engine.runner.scripts import set_up
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import Context

    from event_workflow_engine.context import SagaContext
    from event_workflow_engine.planner import Dag
    from event_workflow_engine.runner.execution import Attempt, Ending
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.saga import Saga
    from event_workflow_engine.storage.port import Row, Unit, Written
    from event_workflow_engine.timers import Alarm

__all__ = ["SagaRun"]

_RESIDENT: Final = 1_000_000
"""A saga that has to go on within this time stays in memory; one that waits longer leaves it and costs a row."""


class SagaRun:
    """A saga in memory, owned by this worker: its journal, and the way to disk of what comes up.

    Whatever happens comes in as a fact, and what its forward half or its rollback then wants becomes further facts of
    the same unit. One unit is in flight at a time; what its facts ask for (an action to run, a timer) is done when it
    is on disk, never before.
    """

    __slots__ = (
        "_alarm", "_ending", "_facts", "_landing", "_mail", "_rollback", "accepted", "by_name", "closed", "context",
        "dag", "draining", "fence", "flying", "forward", "holds", "input", "journal", "key_prefix", "kit", "leaving",
        "parked_until", "parking", "pen", "place", "results", "saga", "saga_id", "since", "waits_for_mail",
    )  # fmt: skip

    def __init__(self, kit: Kit, saga: Saga[Any, Any], dag: Dag, saga_id: str, fence: int) -> None:
        self.kit = kit
        self.saga = saga
        self.dag = dag
        self.saga_id = saga_id
        self.fence = fence
        self.journal = Journal(saga_id)
        self.pen = Pen(kit, saga_id, fence)
        self.forward = Forward(self)
        # Most sagas in memory are never undone or spoken to: what that needs is made when it is needed.
        self._rollback: Rollback | None = None
        self._mail: Mail | None = None
        # What its code finds around it: `set_up` says.
        self.input: Any
        self.key_prefix: str
        self.context: Context
        self.place: SagaContext
        """Where code of the saga stands, but for its step."""
        self.by_name: dict[str, Any] = {}
        self.results = StepResults(self.by_name, saga.by_action)
        self.accepted: asyncio.Future[None] | None = None  # of a new saga: resolved when its first unit is on disk
        self.since = kit.loop.time()
        self.draining = False
        """The worker is on its way out: what runs may end, nothing begins."""
        self.leaving = False
        """It goes on elsewhere: it leaves memory as soon as nothing of it runs."""
        self.parked_until: int | None = None
        self.parking = False
        self.closed = False
        self.holds = 0  # transactions with one of which the next unit goes: until they have ended, no other is sent
        self.waits_for_mail = False
        self._facts: list[Any] = []
        self.flying: list[Any] | None = None
        self._landing: asyncio.Future[None] | None = None  # made for who waits for the unit in flight
        self._alarm: Alarm | None = None
        self._ending: Sequence[Ending] = ()

    @property
    def rollback(self) -> Rollback:
        """Undoes it."""
        if self._rollback is None:
            self._rollback = Rollback(self)
        return self._rollback

    @property
    def mail(self) -> Mail:
        """Reads its inbox."""
        if self._mail is None:
            self._mail = Mail(self)
        return self._mail

    @property
    def paused(self) -> bool:
        """Whether nothing new may start for now."""
        return self.journal.state is WorkflowState.PAUSED

    # -- coming into memory ------------------------------------------------------------------------------------------

    def accept(self, started: h.SagaStarted, value: Any, rows: tuple[Row, ...]) -> None:
        """Begin a new saga: its first unit holds its start, its rows and the starts of its first steps."""
        self.pen.new(rows)
        self.emit(started)
        set_up(self, started, value)
        self.forward.begin()
        self.flush()

    def forget(self) -> None:
        """Drop what has come up and is not on its way to disk."""
        self._facts.clear()
        self.forward.starting.clear()
        if self._rollback is not None:
            self._rollback.starting.clear()

    # -- facts -------------------------------------------------------------------------------------------------------

    def emit(self, fact: Any) -> None:
        """Fold a fact; it goes to disk with the next unit."""
        self.journal.apply(fact)
        self._facts.append(fact)

    def settle_timed_out(self, step: str) -> None:
        """Code that was asked to end has not ended within the settle timeout (rule 5)."""
        error = WorkflowError(
            f"saga {self.saga_id!r}: the code of step {step!r} was asked to end and has not within "
            f"{self.saga.settle_timeout:g} s; it may still act, so neither a retry nor a compensation may start"
        )
        self.needs_intervention("settle", error, step)
        self.flush()

    def needs_intervention(self, kind: str, error: BaseException, step: str | None) -> None:
        """Stand until somebody decides, or until matching code is registered (rules 5, 8, 11)."""
        if self.journal.state is WorkflowState.NEEDS_INTERVENTION:
            return
        # What the script already wanted in this unit has not begun: the code is to blame, the journal stays as it was.
        self.emit(h.InterventionNeeded(kind, qualified_name(type(error)), str(error), step, self.journal.state.value))
        self.forward.close()

    # -- to disk -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what has come up as one unit, unless one is in flight already."""
        unit = None if self.holds else self.next_unit()
        if unit is not None:
            self.kit.storage.post(unit, self.told)
            self.forward.make_ready()

    def next_unit(self) -> Unit | None:
        """What has come up, in flight from here on; ``None`` while a unit is, or where there is nothing to say."""
        if self.flying is not None or self.waits_for_mail or self.closed:
            return None
        wake: int | None = None
        park = False
        rollback = self._rollback
        if not self.busy:
            if self.leaving and is_under_way(self):
                return last_unit(self)
            if not self.journal.ended:
                wake = next_wake(self)
                park = wake is None or wake - self.kit.now() > _RESIDENT or self.pen.undecided > 0
        if not self._facts and not park:
            if rollback is not None and rollback.starting:
                rollback.board()
                self._act()  # their starts are on disk from a life before
                if self._facts:
                    return self.next_unit()
            self._set_alarm(wake)
            return None
        facts = self.board(wake, park=park)
        self.forward.board()
        if rollback is not None:
            rollback.board()
        waits = what_it_waits_for(self) if park else None
        return self.pen.unit(facts, self.journal, wake, park=park, waits=waits)

    def board(self, wake: int | None, *, park: bool) -> list[Any]:
        """What has come up is in flight from here on; with `park` the saga leaves memory when that is on disk."""
        facts, self._facts = self._facts, []
        self.parking = park
        self.parked_until = wake
        self.flying = facts
        if park and self._alarm is not None:
            self._alarm.cancel()
        return facts

    @property
    def busy(self) -> bool:
        """Whether code of it runs, or is about to."""
        forward, rollback = self.forward, self._rollback
        if forward.attempts or forward.starting:
            return True
        return rollback is not None and bool(rollback.attempts or rollback.starting)

    def told(self, verdict: Written | Exception) -> None:
        """What became of the unit in flight."""
        facts, self.flying = self.flying or [], None
        lost = verdict if isinstance(verdict, Exception) else None
        if lost is None:
            self.pen.written(facts)
        if self._landing is not None:
            self._landing.set_result(None)
            self._landing = None
        if self.accepted is not None and (lost is None or self.closed):  # else it is told with what comes of the loss
            accepted, self.accepted = self.accepted, None
            if lost is not None and not accepted.done():
                accepted.set_exception(lost)
            elif not accepted.done():
                accepted.set_result(None)
        if self.closed:
            return
        if lost is not None:
            self._not_written(facts, lost)
            return
        if self.journal.ended and not self._facts:  # its end may wait for the next unit
            self.evict()
            self.kit.host.run_ended(self)
        elif self.parking:
            self.evict()
            self.kit.host.run_parked(self)
        else:
            self._act()
            if self._facts or not self.forward.attempts or self.journal.timed or self._alarm is not None:
                self.flush()

    def _not_written(self, facts: list[Any], error: BaseException) -> None:
        inbox = isinstance(error, VersionConflictError) and error.stream == inbox_stream(self.saga_id)
        if not inbox or self.pen.is_new:
            self.lose(error)
            return
        # Somebody wrote to the inbox meanwhile. Nothing of the unit was stored: it grows by what came, and goes again.
        self._facts = facts + self._facts
        self.parking = False
        self.waits_for_mail = True
        self.mail.look()

    def lose(self, error: BaseException) -> None:
        """What is in memory is no longer what is stored."""
        self.evict()
        self.kit.host.run_lost(self, error)

    def mail_read(self) -> None:
        """The inbox has been read to its end."""
        self.waits_for_mail = False
        self.flush()

    def _act(self) -> None:
        """What was asked for is on disk: let it happen."""
        if self.draining and not self.forward.hold_back():
            return
        if not self.kit.is_sure():
            self.lose(self.kit.doubt())
            return
        if self._rollback is not None:
            self._rollback.launch_boarded()
        self.forward.launch_boarded()

    # -- time and the inbox ------------------------------------------------------------------------------------------

    def _set_alarm(self, wake: int | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if wake is None:
            wake = next_wake(self)
        if wake is not None:
            self._alarm = self.kit.alarms.at(wake, self.ring)

    def ring(self) -> None:
        """Something is due: timers, retries, the deadline."""
        stands = self.paused or self.draining or self.journal.state is WorkflowState.NEEDS_INTERVENTION
        if self.closed or self.parking or stands or self.journal.ended:  # its end may wait for the next unit
            return
        fire_due(self)
        self.flush()
        if self.flying is None and not self.closed:
            self._set_alarm(None)

    def wake(self) -> None:
        """Something may be in the inbox."""
        if not self.closed and not self.parking:  # a unit that parks asserts the inbox: it will see
            self.mail.look()

    def unpause(self, cursor: int) -> None:
        """Go on where it was paused."""
        self.emit(h.SagaResumed(cursor))
        if self.journal.failing:
            self.rollback.go_on()
        else:
            self.forward.go_on()

    # -- out of memory -----------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """Leave memory at once: nothing is recorded from here on."""
        if self.closed:
            return
        self.closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._mail is not None:
            self._mail.close()
        running = self.forward.abandon()
        if self._rollback is not None:
            running += self._rollback.abandon()
        if running:
            ending = [attempt.abandon() for attempt in running]
            self._ending = [one for one in ending if one is not None and not one.future.done()]

    @property
    def running(self) -> list[Attempt]:
        """The actions and compensations that run now."""
        undoing = () if self._rollback is None else self._rollback.attempts.values()
        return [*self.forward.attempts.values(), *undoing]

    @property
    def acting_on(self) -> list[asyncio.Future[Any]]:
        """The code that runs now, and the unit that is in flight."""
        running: list[asyncio.Future[Any] | None] = [attempt.future for attempt in self.running]
        if self.flying is not None:
            running.append(self.landed())
        return [future for future in running if future is not None and not future.done()]

    def landed(self) -> asyncio.Future[None]:
        """Done when what became of the unit in flight has been told."""
        if self._landing is None:
            self._landing = self.kit.loop.create_future()
        return self._landing

    def still_ending(self) -> Sequence[Ending]:
        """Code of a saga that left memory, which was asked to end and has not yet."""
        if self._ending:
            self._ending = [one for one in self._ending if not one.future.done()]
        return self._ending

    async def hand_over(self) -> None:
        """Give an evicted saga to whoever claims it next: what was cut off is no interruption."""
        if self.flying is not None:
            await asyncio.wait((self.landed(),))
        if not self.journal.ended and not self.parking and not self.pen.is_new:
            await self.pen.hand_over()
