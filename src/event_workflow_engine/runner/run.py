"""One saga in memory: facts come in, decisions follow, one unit at a time goes to disk, and then things happen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine import history as h
from event_workflow_engine.context import SagaContext, StepResults
from event_workflow_engine.errors import EncodeError, NonDeterminismError, VersionConflictError, WorkflowError
from event_workflow_engine.journal import Journal, inbox_stream
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.runner.attempts import (
    ReadyAction,
    launch_action,
    ready_action,
    record_completion,
    record_given_up,
    record_start,
    record_success,
    record_unsuccess,
)
from event_workflow_engine.runner.commands import (
    CancelStep,
    Command,
    DropTimer,
    Fail,
    Finish,
    Replay,
    Script,
    SetTimer,
    StartStep,
)
from event_workflow_engine.runner.due import fire_due, next_wake, what_it_waits_for
from event_workflow_engine.runner.leaving import is_under_way, is_wanted_elsewhere, last_unit
from event_workflow_engine.runner.mail import Mail
from event_workflow_engine.runner.pen import Pen
from event_workflow_engine.runner.rollback import Rollback
from event_workflow_engine.runner.scripts import set_up
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextvars import Context

    from event_workflow_engine.journal import StepState
    from event_workflow_engine.planner import Dag
    from event_workflow_engine.runner.execution import Attempt, Ending
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.saga import Saga
    from event_workflow_engine.storage.port import Row, Unit, Written
    from event_workflow_engine.timers import Alarm

__all__ = ["SagaRun"]

_MICROS: Final = 1_000_000
_RESIDENT: Final = 1 * _MICROS
"""A saga that has to go on within this time stays in memory; one that waits longer leaves it and costs a row."""


class SagaRun:
    """A saga in memory, owned by this worker.

    Whatever happens comes in as a fact: it is folded into the journal, told to the script, and what the script then
    wants becomes further facts of the same unit. One unit is in flight at a time; what its facts ask for (an action to
    run, a timer) is done when it is on disk, never before.
    """

    __slots__ = (
        "_aboard", "_alarm", "_attempts", "_calls", "_ending", "_facts", "_finish", "_held", "_interrupted",
        "_landing", "_mail", "_ready", "_rollback", "accepted", "by_name", "cause", "closed", "context",
        "correlation_id", "dag", "doom", "draining", "fence", "flying", "handed_over", "holds", "input", "journal",
        "key_prefix", "kit", "parked_until", "parking", "pen", "place", "replay", "results", "saga", "saga_id",
        "script", "since", "starting", "waits_for_mail", "withheld", "withholds",
    )  # fmt: skip

    def __init__(self, kit: Kit, saga: Saga[Any, Any], dag: Dag, saga_id: str, fence: int) -> None:
        self.kit = kit
        self.saga = saga
        self.dag = dag
        self.saga_id = saga_id
        self.fence = fence
        self.journal = Journal(saga_id)
        self.pen = Pen(kit, saga_id, fence)
        self.script: Script | None = None
        self.input: Any = None
        self.key_prefix = f"{saga_id}:1:"
        self.correlation_id: str | None = None
        self.context: Context = kit.context
        self.place: SagaContext
        """Where code of the saga stands, but for its step."""
        self.by_name: dict[str, Any] = {}
        self.results = StepResults(self.by_name, saga.by_action)
        self.doom: Fail | None = None
        self.replay: Replay | None = None
        """While the journal is replayed; ``None``: live."""
        self.handed_over = False
        self.accepted: asyncio.Future[None] | None = None  # of a new saga: resolved when its first unit is on disk
        self.cause: BaseException | None = None
        """What the failing step raised, while it is at hand."""
        self.draining = False
        """The worker is on its way out: what runs may end, nothing begins."""
        self.parked_until: int | None = None
        self.parking = False
        self.closed = False
        self.holds = 0  # transactions with one of which the next unit goes: until they have ended, no other is sent
        self._finish: Finish | None = None
        self._facts: list[Any] = []
        self.flying: list[Any] | None = None
        # Most sagas in memory are never undone or spoken to: what that needs is made when it is needed.
        self._mail: Mail | None = None
        self._rollback: Rollback | None = None
        self._held: tuple[tuple[Any, Any, BaseException | None], ...] = ()
        self._calls: dict[str, StartStep] = {}
        self._attempts: dict[str, Attempt] = {}
        self._ending: Sequence[Ending] = ()
        self._interrupted: tuple[tuple[StartStep, int, int], ...] = ()
        self.since = kit.loop.time()
        self.withholds = False  # what comes next begins elsewhere
        self.withheld = False  # and there was something: it leaves memory as soon as nothing of it runs
        self._ready: ReadyAction | None = None
        self.starting: list[str] = []  # steps whose start has come up, and is not on disk
        self._aboard = 0  # so many of them, from the first, go with the unit in flight
        self._alarm: Alarm | None = None
        self.waits_for_mail = False
        self._landing: asyncio.Future[None] | None = None  # made for who waits for the unit in flight

    @property
    def mail(self) -> Mail:
        """Reads its inbox."""
        if self._mail is None:
            self._mail = Mail(self)
        return self._mail

    @property
    def rollback(self) -> Rollback:
        """Undoes it."""
        if self._rollback is None:
            self._rollback = Rollback(self)
        return self._rollback

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
        self.obey(self.begin())
        self.flush()

    def hold(self, facts: Iterable[tuple[Any, Any]]) -> None:
        """What came while the saga is paused, with its values, to be told when it is resumed."""
        self._held = tuple((fact, value, None) for fact, value in facts)

    def start_again(self, command: StartStep, attempt: int, interruptions: int) -> None:
        """Run an interrupted attempt again, with the same idempotency key (rule 4)."""
        if self.paused:
            self._interrupted += ((command, attempt, interruptions),)
            return
        self._calls[command.step] = command
        self._start(command, attempt, interruptions)

    def forget(self) -> None:
        """Drop what has come up and is not on its way to disk."""
        self._facts.clear()
        self.starting.clear()
        if self._rollback is not None:
            self._rollback.starting.clear()

    # -- facts in, decisions out -------------------------------------------------------------------------------------

    def emit(self, fact: Any) -> None:
        """Fold a fact; it goes to disk with the next unit."""
        self.journal.apply(fact)
        self._facts.append(fact)

    def tell(self, fact: Any, value: Any = None, error: BaseException | None = None) -> None:
        """Tell the script a fact that the journal has, and do what follows; while paused, later."""
        if self.script is None:
            return
        if self.paused and self.replay is None:
            self._held += ((fact, value, error),)
            return
        try:
            commands = self.script.deliver(fact, value, error)
        except NonDeterminismError as mismatch:
            commands = self._stand(mismatch)
        self.obey(commands)

    def begin(self) -> list[Command]:
        """What the script wants first."""
        if self.script is None:
            return []
        try:
            return self.script.begin()
        except NonDeterminismError as mismatch:
            return self._stand(mismatch)

    def _stand(self, mismatch: NonDeterminismError) -> list[Command]:
        """Code that does not match its journal makes the saga stand (rule 11)."""
        self.needs_intervention("nondeterminism", mismatch, None)
        return []

    def obey(self, commands: Iterable[Command]) -> None:
        """Do what the script asks: as further facts of this unit; in a replay only what the journal does not know."""
        replay = self.replay
        for command in commands:
            if isinstance(command, StartStep):
                self._calls[command.step] = command
                if replay is not None:
                    if command.step not in self.journal.steps:
                        replay.loose.append(command)
                elif self.doom is None:
                    self._start(command, 1, 0)
            elif replay is None:
                self._obey_other(command)
            elif not isinstance(command, SetTimer) or command.timer not in replay.timers:
                replay.loose.append(command)
        if replay is None and not self.journal.open_steps:
            self.conclude()

    def _obey_other(self, command: Command) -> None:
        if isinstance(command, SetTimer):
            self.emit(h.TimerSet(command.timer, self.kit.now() + int(command.seconds * _MICROS)))
        elif isinstance(command, DropTimer):
            self.journal.timers.pop(command.timer, None)
        elif isinstance(command, CancelStep):
            self._give_up(command.step)
        elif isinstance(command, Finish):
            self._finish = command
            self._give_up_all()
        elif isinstance(command, Fail) and self.doom is None:
            self.doom = command
            self.cause = command.error
            if self.saga.on_failure == "cancel" or command.kind != "failed":
                self._give_up_all()
            else:
                self._give_up_waiting()

    def obey_loose(self) -> None:
        """The replay is over: do what the journal did not know of."""
        replay, self.replay = self.replay, None
        if replay is not None:
            self.obey(replay.loose)

    def _start(self, command: StartStep, attempt: int, interruptions: int) -> None:
        if self.withholds or self.draining:
            self.withheld = True  # no start is in the journal, so whoever has the saga next begins it
            return
        self.emit(record_start(self.saga, command, attempt, interruptions))
        self.starting.append(command.step)

    def _give_up_all(self) -> None:
        if self.journal.open_steps:
            for step in [step for step, state in self.journal.steps.items() if not state.settled]:
                self._give_up(step)

    def _give_up_waiting(self) -> None:
        for step in list(self.journal.retries):
            self._give_up(step)

    def _give_up(self, step: str) -> None:
        """End a step that nobody waits for: cancel its action, or close it where it only waits for an attempt."""
        state = self.journal.steps.get(step)
        if state is None or state.settled:
            return
        attempt = self._attempts.get(step)
        if attempt is not None:
            attempt.cancel()
        elif state.status == "waiting":
            call = self._calls.get(step)  # changed code may not ask for it
            fact = record_given_up(state, None if call is None else call.spec, state.error_type, state.message)
            self.emit(fact)
            self.tell(fact)

    def conclude(self) -> None:
        """The forward half is over and every step has settled: end, or roll back."""
        journal = self.journal
        if journal.open_steps or journal.failing or journal.ended or journal.state is not WorkflowState.RUNNING:
            return
        if self.doom is None and self._finish is not None:
            finish, self._finish = self._finish, None
            try:
                self.emit(record_completion(journal, self.kit.codec, finish))
            except EncodeError as error:
                self.doom = Fail(qualified_name(EncodeError), str(error), None, error=error)
            else:
                return
        if self.doom is not None:
            self.close_script()
            self.rollback.begin()

    def attempt_ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        """An action's code has ended."""
        step = attempt.name
        del self._attempts[step]
        command = self._calls[step]
        if error is None:
            fact, value = record_success(self, command, value)
            if isinstance(fact, h.StepUnknown):
                error, value = value, None
            else:
                self.by_name[step] = value
        else:
            final = self.doom is not None or self._finish is not None
            final = final or (self.script is not None and self.script.cancels(step))
            fact = record_unsuccess(self, command, error, timed_out=attempt.timed_out, final=final)
        self.emit(fact)
        if self.journal.steps[step].settled:
            self._settled(step, fact, value, error)
        self.flush()

    def attempt_settled(self, step: str, fact: Any, value: Any) -> None:
        """An action has succeeded, and the record of that is on disk with what it wrote."""
        del self._attempts[step]
        self.by_name[step] = value
        self._settled(step, fact, value, None)
        self.flush()

    def _settled(self, step: str, fact: Any, value: Any, error: BaseException | None) -> None:
        del self._calls[step]
        if self.kit.giving is not None:
            self.withholds = is_wanted_elsewhere(self)
        if self.script is not None:
            self.tell(fact, value, error)
        elif not self.paused:
            self.conclude()
        self.withholds = False

    def attempt_stuck(self, attempt: Attempt) -> None:
        """Code that was asked to end has not ended within the settle timeout (rule 5)."""
        error = WorkflowError(
            f"saga {self.saga_id!r}: the code of step {attempt.name!r} was asked to end and has not within "
            f"{self.saga.settle_timeout:g} s; it may still act, so neither a retry nor a compensation may start"
        )
        self._attempts.pop(attempt.name, None)
        self.needs_intervention("settle", error, attempt.name)
        self.flush()

    def needs_intervention(self, kind: str, error: BaseException, step: str | None) -> None:
        """Stand until somebody decides, or until matching code is registered (rules 5, 8, 11)."""
        if self.journal.state is WorkflowState.NEEDS_INTERVENTION:
            return
        # What the script already wanted in this unit has not begun: the code is to blame, the journal stays as it was.
        self.emit(h.InterventionNeeded(kind, qualified_name(type(error)), str(error), step, self.journal.state.value))
        self.close_script()

    # -- to disk -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what has come up as one unit, unless one is in flight already."""
        unit = None if self.holds else self.next_unit()
        if unit is not None:
            self.kit.storage.post(unit, self.told)
            if len(self.starting) == 1:
                self._ready = ready_action(self, self._calls[self.starting[0]])

    def next_unit(self) -> Unit | None:
        """What has come up, in flight from here on; ``None`` while a unit is, or where there is nothing to say."""
        if self.flying is not None or self.waits_for_mail or self.closed:
            return None
        journal = self.journal
        wake: int | None = None
        park = False
        rollback = self._rollback
        busy = self.busy
        if self.withheld and not busy and is_under_way(self):
            return last_unit(self)
        if not (busy or journal.ended):
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
        self._aboard = len(self.starting)
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
        if self._attempts or self.starting:
            return True
        return self._rollback is not None and (self._rollback.busy or bool(self._rollback.starting))

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
            if self._facts or not self._attempts or self.journal.timed or self._alarm is not None:
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
        later = self.starting[self._aboard :]
        begin = self.starting[: self._aboard] if later else self.starting
        if self.draining:
            # What may run again need not begin here any more. What may not would be taken for unknown elsewhere.
            later = [step for step in begin if self._calls[step].spec.repeatable] + later
            begin = [step for step in begin if not self._calls[step].spec.repeatable]
            if not begin:
                return
        if not self.kit.is_sure():
            self.lose(self.kit.doubt())
            return
        if self._rollback is not None and not self.draining:
            self._rollback.launch_boarded()
        self.starting = later
        self._aboard = 0
        ready, self._ready = self._ready, None
        for step in begin:
            state = self.journal.steps[step]
            if state.settled or self.journal.state is WorkflowState.NEEDS_INTERVENTION:
                continue
            if self.doom is not None or (self.script is not None and self.script.cancels(step)):
                self._settle_unbegun(step, state)
            else:
                self._attempts[step] = launch_action(self, self._calls[step], state, ready)

    def _settle_unbegun(self, step: str, state: StepState) -> None:
        """Its start went to disk while the saga failed: it has not begun and will not. An earlier attempt may have."""
        spec = self._calls.pop(step).spec
        fact = record_given_up(state, spec, "NotBegun", "the saga failed before the action began")
        self.emit(fact)
        self.tell(fact)
        self.conclude()

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

    def retry(self, step: str) -> None:
        """The wait before another attempt is over."""
        if self.journal.failing:
            self.rollback.retry(step)
        elif self.doom is None and step in self._calls:
            state = self.journal.steps[step]
            self._start(self._calls[step], state.attempt + 1, state.interruptions)

    def wake(self) -> None:
        """Something may be in the inbox."""
        if not self.closed and not self.parking:  # a unit that parks asserts the inbox: it will see
            self.mail.look()

    def unpause(self, cursor: int) -> None:
        """Go on where it was paused."""
        self.emit(h.SagaResumed(cursor))
        if self.journal.failing:
            self.rollback.go_on()
            return
        interrupted, self._interrupted = self._interrupted, ()
        for command, attempt, count in interrupted:
            self.start_again(command, attempt, count)
        held, self._held = self._held, ()
        for fact, value, error in held:
            self.tell(fact, value, error)
        self.conclude()

    # -- out of memory -----------------------------------------------------------------------------------------------

    def close_script(self) -> None:
        """The forward half is over, here or for good."""
        if self.script is not None:
            self.script.close()
            self.script = None

    def evict(self) -> None:
        """Leave memory at once: nothing is recorded from here on."""
        if self.closed:
            return
        self.closed = True
        self._ready = None
        if self._alarm is not None:
            self._alarm.cancel()
        self.close_script()
        if self._mail is not None:
            self._mail.close()
        undoing = self._rollback.abandon() if self._rollback is not None else ()
        if self._attempts or undoing:
            ending = [attempt.abandon() for attempt in (*self._attempts.values(), *undoing)]
            self._attempts.clear()
            self._ending = [one for one in ending if one is not None and not one.future.done()]

    @property
    def running(self) -> list[Attempt]:
        """The actions and compensations that run now."""
        return [*self._attempts.values(), *(self._rollback.running if self._rollback is not None else ())]

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
