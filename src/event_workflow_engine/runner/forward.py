"""The forward half of a saga: what its script asks for, one attempt after another, until it is done or doomed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine import history as h
from event_workflow_engine.errors import DecodeError, EncodeError, NonDeterminismError
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.runner.attempts import (
    launch_action,
    ready_action,
    record_completion,
    record_given_up,
    record_start,
    record_success,
    record_unsuccess,
)
from event_workflow_engine.runner.commands import CancelStep, DropTimer, Fail, Finish, SetTimer, StartStep
from event_workflow_engine.runner.leaving import is_wanted_elsewhere
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from event_workflow_engine.journal import StepState
    from event_workflow_engine.runner.attempts import ReadyAction
    from event_workflow_engine.runner.commands import Command, Replay, Script
    from event_workflow_engine.runner.execution import Attempt
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["ENOUGH", "Forward"]

_MICROS: Final = 1_000_000

ENOUGH: Final = 32 * 2**20
"""Bytes of results in a unit beyond which no other joins it. One more may have 64 MiB, and so may what a body returns:
that is far below what a unit may have, and what a store needs to write in one go."""


class Forward:
    """Runs the actions that the script of one saga asks for, and tells it the facts (rules 4, 5, 11)."""

    __slots__ = (
        "_aboard", "_calls", "_finish", "_held", "_interrupted", "_ready", "_replay", "_run", "_withholds", "attempts",
        "doom", "script", "starting",
    )  # fmt: skip

    def __init__(self, run: SagaRun) -> None:
        self._run = run
        self.script: Script | None = None
        """Says what is to be done; ``None``: this half is over, here or for good."""
        self.doom: Fail | None = None
        """Why the saga will not be done: it is undone when every step has settled."""
        self.attempts: dict[str, Attempt] = {}
        """The actions that run now, by their steps."""
        self.starting: list[str] = []
        """Steps whose action begins when the unit that says so is on disk."""
        self._aboard = 0  # so many of them, from the first, go with the unit in flight
        self._calls: dict[str, StartStep] = {}
        self._ready: ReadyAction | None = None
        self._finish: Finish | None = None
        self._replay: Replay | None = None
        self._withholds = False  # what comes next begins elsewhere
        # What comes up while the saga is paused.
        self._held: tuple[tuple[Any, Any, BaseException | None], ...] = ()
        self._interrupted: tuple[tuple[StartStep, int, int], ...] = ()

    @property
    def cause(self) -> BaseException | None:
        """What the failing step raised, while it is at hand."""
        return None if self.doom is None else self.doom.error

    # -- the script --------------------------------------------------------------------------------------------------

    def begin(self, replay: Replay | None = None) -> None:
        """Do what the script wants first.

        Args:
            replay: The journal is replayed, from here until `go_live`: what it tells of is not done again.
        """
        script = self.script
        assert script is not None, "it was set up"
        self._replay = replay
        try:
            commands = script.begin()
        except NonDeterminismError as mismatch:
            commands = self._stand(mismatch)
        self._obey(commands)

    def tell(self, fact: Any, value: Any = None, error: BaseException | None = None) -> None:
        """Tell the script a fact that the journal has, and do what follows; while paused, later."""
        script = self.script
        if script is None:
            return
        if self._replay is None and self._run.journal.state is WorkflowState.PAUSED:
            self._held += ((fact, value, error),)
            return
        try:
            commands = script.deliver(fact, value, error)
        except NonDeterminismError as mismatch:
            commands = self._stand(mismatch)
        self._obey(commands)

    def _stand(self, mismatch: NonDeterminismError) -> list[Command]:
        """Code that does not match its journal makes the saga stand (rule 11)."""
        self._run.needs_intervention("nondeterminism", mismatch, None)
        return []

    def _obey(self, commands: Iterable[Command]) -> None:
        """Do what the script asks: as further facts of this unit; in a replay only what the journal does not know."""
        journal, replay = self._run.journal, self._replay
        for command in commands:
            if isinstance(command, StartStep):
                self._calls[command.step] = command
                if replay is not None:
                    if command.step not in journal.steps:
                        replay.loose.append(command)
                elif self.doom is None:
                    self._start(command, 1, 0)
            elif replay is None:
                self._obey_other(command)
            elif not isinstance(command, SetTimer) or command.timer not in replay.timers:
                replay.loose.append(command)
        if replay is None and not journal.open_steps:
            self.conclude()

    def _obey_other(self, command: Command) -> None:
        run = self._run
        if isinstance(command, SetTimer):
            run.emit(h.TimerSet(command.timer, run.kit.now() + int(command.seconds * _MICROS)))
        elif isinstance(command, DropTimer):
            run.journal.timers.pop(command.timer, None)
        elif isinstance(command, CancelStep):
            self._give_up(command.step)
        elif isinstance(command, Finish):
            self._finish = command
            self._give_up_all()
        elif isinstance(command, Fail) and self.doom is None:
            self.doom = command
            if run.saga.on_failure == "cancel" or command.kind != "failed":
                self._give_up_all()
            else:
                self._give_up_waiting()

    def go_live(self) -> None:
        """The replay is over: do what the journal did not know of."""
        replay, self._replay = self._replay, None
        if replay is not None:
            self._obey(replay.loose)

    def close(self) -> None:
        """This half is over, here or for good."""
        if self.script is not None:
            self.script.close()
            self.script = None

    # -- steps -------------------------------------------------------------------------------------------------------

    def _start(self, command: StartStep, attempt: int, interruptions: int) -> None:
        run = self._run
        if self._withholds or run.draining:
            run.leaving = True  # no start is in the journal, so whoever has the saga next begins it
            return
        run.emit(record_start(run.saga, command, attempt, interruptions))
        self.starting.append(command.step)

    def start_again(self, command: StartStep, attempt: int, interruptions: int) -> None:
        """Run an interrupted attempt again, with the same idempotency key (rule 4)."""
        if self._run.paused:
            self._interrupted += ((command, attempt, interruptions),)
            return
        self._calls[command.step] = command
        self._start(command, attempt, interruptions)

    def retry(self, step: str) -> None:
        """The wait before another attempt is over."""
        if self.doom is None and step in self._calls:
            state = self._run.journal.steps[step]
            self._start(self._calls[step], state.attempt + 1, state.interruptions)

    def cancels(self, step: str) -> bool:
        """Whether no attempt of an open step may begin: the saga is doomed, or the step was given up."""
        return self.doom is not None or (self.script is not None and self.script.cancels(step))

    def _give_up_all(self) -> None:
        journal = self._run.journal
        if journal.open_steps:
            for step in [step for step, state in journal.steps.items() if not state.settled]:
                self._give_up(step)

    def _give_up_waiting(self) -> None:
        for step in list(self._run.journal.retries):
            self._give_up(step)

    def _give_up(self, step: str) -> None:
        """End a step that nobody waits for: cancel its action, or close it where it only waits for an attempt."""
        state = self._run.journal.steps.get(step)
        if state is None or state.settled:
            return
        attempt = self.attempts.get(step)
        if attempt is not None:
            attempt.cancel()
        elif state.status == "waiting":
            call = self._calls.get(step)  # changed code may not ask for it
            fact = record_given_up(state, None if call is None else call.spec, state.error_type, state.message)
            self._run.emit(fact)
            self.tell(fact)

    def conclude(self) -> None:
        """What there was to do is done and every step has settled: end, or roll back."""
        run = self._run
        journal = run.journal
        if journal.open_steps or journal.failing or journal.ended or journal.state is not WorkflowState.RUNNING:
            return
        if self.doom is None and self._finish is not None:
            finish, self._finish = self._finish, None
            try:
                run.emit(record_completion(journal, run.saga, run.kit.codec, finish))
            except (EncodeError, DecodeError) as error:
                self.doom = Fail(qualified_name(type(error)), str(error), None, error=error)
            else:
                return
        if self.doom is not None:
            self.close()
            run.rollback.begin(self.doom)

    # -- attempts ----------------------------------------------------------------------------------------------------

    def board(self) -> None:
        """All starts that have come up go with the unit that is sent now."""
        self._aboard = len(self.starting)

    def make_ready(self) -> None:
        """The unit is on its way: a single action that it starts is made ready meanwhile."""
        if len(self.starting) == 1:
            self._ready = ready_action(self._run, self._calls[self.starting[0]])

    def hold_back(self) -> bool:
        """The worker is on its way out: what may run again begins elsewhere. Whether anything is left to launch here.

        What may not run again would be taken for unknown there.
        """
        aboard, later = self.starting[: self._aboard], self.starting[self._aboard :]
        left = [step for step in aboard if not self._calls[step].spec.repeatable]
        self.starting = left + [step for step in aboard if self._calls[step].spec.repeatable] + later
        self._aboard = len(left)
        return bool(left)

    def launch_boarded(self) -> None:
        """The unit's starts are on disk: run them. What came up since waits for the next."""
        run = self._run
        journal = run.journal
        later = self.starting[self._aboard :]
        aboard = self.starting[: self._aboard] if later else self.starting
        self.starting = later
        self._aboard = 0
        ready, self._ready = self._ready, None
        for step in aboard:
            state = journal.steps[step]
            if state.status != "started" or journal.state is WorkflowState.NEEDS_INTERVENTION:
                continue
            if self.cancels(step):
                self._settle_unbegun(step, state)
            else:
                self.attempts[step] = launch_action(run, self._calls[step], state, ready)

    def _settle_unbegun(self, step: str, state: StepState) -> None:
        """Its start went to disk while the saga failed: it has not begun and will not. An earlier attempt may have."""
        spec = self._calls.pop(step).spec
        fact = record_given_up(state, spec, "NotBegun", "the saga failed before the action began")
        self._run.emit(fact)
        self.tell(fact)
        self.conclude()

    def attempt_ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        """An action's code has ended."""
        run, step = self._run, attempt.name
        if run.pen.gathered >= ENOUGH and self._is_full():
            # As if it ended when these are on disk: nothing has followed from it.
            later = partial(_ended_meanwhile, run, attempt, value, error)
            run.landed().add_done_callback(later, context=run.kit.context.copy())
            return
        del self.attempts[step]
        command = self._calls[step]
        if error is None:
            fact, value = record_success(run, command, value)
            if type(fact) is h.StepUnknown:
                error, value = value, None
            else:
                run.by_name[step] = value
        else:
            final = self._finish is not None or self.cancels(step)
            fact = record_unsuccess(run, command, error, timed_out=attempt.timed_out, final=final)
        run.emit(fact)
        if error is None or run.journal.steps[step].settled:
            self._settled(step, fact, value, error)
        run.flush()

    def _is_full(self) -> bool:
        """Whether what has gathered, which is enough for a unit, is yet to be sent."""
        run = self._run
        run.flush()  # the transaction that held it back may have failed just now, and sends nothing
        awaited = run.flying is not None or run.holds > 0 or run.waits_for_mail
        return run.pen.gathered >= ENOUGH and awaited

    def attempt_settled(self, step: str, fact: Any, value: Any) -> None:
        """An action has succeeded, and the record of that is on disk with what it wrote."""
        run = self._run
        del self.attempts[step]
        run.by_name[step] = value
        self._settled(step, fact, value, None)
        run.flush()

    def _settled(self, step: str, fact: Any, value: Any, error: BaseException | None) -> None:
        run = self._run
        del self._calls[step]
        if run.kit.giving is not None:
            self._withholds = is_wanted_elsewhere(run)
        if self.script is not None:
            self.tell(fact, value, error)
        elif not run.paused:
            self.conclude()
        self._withholds = False

    def attempt_stuck(self, attempt: Attempt) -> None:
        """See `AttemptOwner.attempt_stuck`."""
        self.attempts.pop(attempt.name, None)
        self._run.settle_timed_out(attempt.name)

    # -- pausing, and out of memory ----------------------------------------------------------------------------------

    def hold(self, facts: Iterable[tuple[Any, Any]]) -> None:
        """What came while the saga is paused, with its values, to be told when it is resumed."""
        self._held = tuple((fact, value, None) for fact, value in facts)

    def go_on(self) -> None:
        """Go on where the saga was paused."""
        interrupted, self._interrupted = self._interrupted, ()
        for command, attempt, count in interrupted:
            self.start_again(command, attempt, count)
        held, self._held = self._held, ()
        for fact, value, error in held:
            self.tell(fact, value, error)
        self.conclude()

    def abandon(self) -> list[Attempt]:
        """Leave memory; returns what still runs."""
        self.close()
        self._ready = None
        running = list(self.attempts.values())
        self.attempts.clear()
        del self._run  # no cycle is left to the garbage collector
        return running


def _ended_meanwhile(
    run: SagaRun, attempt: Attempt, value: Any, error: BaseException | None, _: asyncio.Future[None]
) -> None:
    if not run.closed:
        run.forward.attempt_ended(attempt, value, error)
