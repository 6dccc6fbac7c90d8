"""A saga comes back into memory: its journal is folded and replayed, and what was cut off goes on (rules 4, 7, 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from event_workflow_engine import history as h
from event_workflow_engine.errors import DecodeError, NonDeterminismError, WorkflowError
from event_workflow_engine.runner.attempts import may_have_happened, read_result
from event_workflow_engine.runner.commands import Fail, Replay
from event_workflow_engine.runner.mail import is_decision
from event_workflow_engine.runner.scripts import new_script, set_up
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from event_workflow_engine.journal import StepState
    from event_workflow_engine.runner.commands import StartStep
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.storage.port import Record

__all__ = ["resume"]

_MICROS: Final = 1_000_000
_CODE_KINDS: Final = frozenset({"nondeterminism", "code", "decode"})
_FOR_THE_SCRIPT: Final = (
    h.StepSucceeded,
    h.StepFailed,
    h.StepUnknown,
    h.SignalReceived,
    h.TimerFired,
    h.CancelRequested,
)


def resume(
    run: SagaRun, journal: Sequence[Record], inbox: Sequence[Record], *, row: Mapping[str, Any], retry_code: bool
) -> None:
    """Bring a saga back from its records, and let it go on.

    Args:
        run: Empty, and owned by this worker.
        journal: All records of its stream, in order.
        inbox: The records of its inbox; those it has read are passed over.
        row: Its row. The state in it is ``PENDING`` where it was accepted without a worker and begins now.
        retry_code: It stands because of its code, and code was registered: see whether it matches now.

    Raises:
        DecodeError: The journal cannot be read. Nothing was changed.
    """
    facts: list[Any] = []
    for record in journal:
        facts += run.journal.load(record.data, record.version)
    state = run.journal
    if state.started is None:
        raise DecodeError(f"saga {run.saga_id!r} has a row and no journal: the store was altered by hand")
    run.pen.loaded(stored=state.version, seen=state.cursor, state=WorkflowState(row["state"]), losses=state.losses)
    if state.ended:
        run.flush()
        return
    fresh = row["state"] == WorkflowState.PENDING.value
    stands = state.intervention
    decision = None
    if stands is not None:
        decision = _decision(run, stands, inbox, looked=row["cursor"] or 0, retry_code=retry_code)
        if decision is None:
            _stand(run, inbox)
            return
        run.emit(h.InterventionMade(decision.verb, decision.who, decision.why, stands.state))
    try:
        cancelled = decision or (_cancelled(inbox) if fresh else None)
        if cancelled is not None and cancelled.verb == "cancel":
            _undo(run, cancelled)
        else:
            if fresh:
                _admit(run)
            _go_on(run, facts, again=decision is not None)
        if state.state is not WorkflowState.NEEDS_INTERVENTION:
            run.mail.receive(inbox)
    except (NonDeterminismError, DecodeError) as error:
        run.needs_intervention("decode" if isinstance(error, DecodeError) else "nondeterminism", error, None)
    if state.state is WorkflowState.NEEDS_INTERVENTION and decision is not None:
        run.forget()  # that did not help: it stands as it stood, and nothing is written
        _stand(run, inbox)
        return
    run.flush()


def _stand(run: SagaRun, inbox: Sequence[Record]) -> None:
    """Leave memory as it was. All of the inbox was looked at; what is for the body stays there until it runs again."""
    if inbox:
        run.pen.seen = max(run.pen.seen, inbox[-1].version)
    run.flush()


class _Decision(NamedTuple):
    """What is to be done about a saga that stands, who says so, and up to where the inbox was read for it."""

    verb: str
    who: str
    why: str
    cursor: int = 0


def _decision(
    run: SagaRun, stands: h.InterventionNeeded, inbox: Sequence[Record], *, looked: int, retry_code: bool
) -> _Decision | None:
    for record in inbox:
        if record.version > looked:
            for entry in h.decode_facts(record.data):
                if not is_decision(run.journal, entry):
                    continue
                if isinstance(entry, h.CancelSent):
                    return _Decision("cancel", "operator", entry.reason, record.version)
                return _Decision("retry", "operator", "")
    if retry_code and stands.kind in _CODE_KINDS:
        return _Decision("retry", "engine", "code was registered that may match")
    return None


def _cancelled(inbox: Sequence[Record]) -> _Decision | None:
    """Whether a saga was cancelled before it began: then nothing of it begins."""
    for record in inbox:
        for entry in h.decode_facts(record.data):
            if isinstance(entry, h.CancelSent):
                return _Decision("cancel", "", entry.reason, record.version)
    return None


def _admit(run: SagaRun) -> None:
    """It came through a queue and begins: so does the time that it has."""
    queue, timeout = run.journal.queue, run.saga.timeout
    if queue is not None:
        deadline = None if timeout is None else run.kit.now() + int(timeout * _MICROS)
        run.emit(h.SagaAdmitted(queue.queue, deadline))


def _set_up(run: SagaRun) -> None:
    started = run.journal.started
    assert started is not None, "checked by the caller"
    value = None
    if run.saga.fn is None or run.saga.takes_input:
        what = f"input of saga {run.saga_id!r}"
        value = run.kit.codec.decode(started.input, run.saga.input_type or Any, what)
    set_up(run, started, value)


def _set_up_without_script(run: SagaRun) -> None:
    """For the rollback, which never replays the body."""
    _set_up(run)
    _remember_results(run)
    run.forward.close()


def _undo(run: SagaRun, decision: _Decision) -> None:
    """Undo a saga that stands in its forward half; what was under way there is not known to have happened or not."""
    run.emit(h.CancelRequested(decision.why, decision.cursor))
    run.pen.seen = decision.cursor
    _set_up_without_script(run)
    why = "the saga was cancelled while it stood"
    for state in [state for state in run.journal.steps.values() if not state.settled]:
        certain = state.status == "waiting" and not may_have_happened(state, run.saga.specs.get(state.step))
        kind = h.StepFailed if certain else h.StepUnknown
        run.emit(kind(state.step, state.error_type or "Interrupted", state.message or why, state.attempt))
    run.rollback.begin(Fail("SagaCancelled", decision.why or "cancelled", None, "cancelled"))


def _go_on(run: SagaRun, facts: list[Any], *, again: bool) -> None:
    journal = run.journal
    if journal.failing:
        _set_up_without_script(run)
        if not run.paused:
            run.rollback.go_on(again=again)
        return
    _set_up(run)
    _replay(run, facts)
    if journal.state is WorkflowState.NEEDS_INTERVENTION:
        return
    cut_off = [state for state in journal.steps.values() if state.status == "started"]
    # All of it before anything new is asked for: what code that does not match asks for is not to be recorded.
    for step in (*(state.step for state in cut_off), *journal.retries):
        _check_requested(run, step)
    handed_over = journal.handed_over  # until the next step starts
    run.forward.go_live()
    for state in cut_off:
        if not state.settled:
            _interrupted(run, state, handed_over=handed_over)


def _replay(run: SagaRun, facts: list[Any]) -> None:
    run.forward.begin(Replay(frozenset(fact.timer for fact in facts if isinstance(fact, h.TimerSet))))
    held: list[Any] = []
    holding = False
    for fact in facts:
        if isinstance(fact, h.SagaPaused):
            holding = True
        elif isinstance(fact, h.SagaResumed):
            holding = False
            for one in held:
                _tell(run, one)
            held = []
        elif isinstance(fact, _FOR_THE_SCRIPT) and getattr(fact, "retry_at", None) is None:
            if holding:
                held.append(fact)
            else:
                _tell(run, fact)
    if held and run.saga.fn is not None:
        _try(run, facts)
    run.forward.hold([(fact, _value(run, fact)) for fact in held])


def _try(run: SagaRun, facts: list[Any]) -> None:
    """What came while it was paused is told when it is resumed: whether the code knows it has to be known now.

    Raises:
        NonDeterminismError: It does not, and nothing that it asks for is to be recorded.
    """
    trial = new_script(run)
    try:
        trial.begin()
        for fact in facts:
            if not isinstance(fact, _FOR_THE_SCRIPT) or getattr(fact, "retry_at", None) is not None:
                continue
            value = None
            if isinstance(fact, h.StepSucceeded) and (call := trial.requested(fact.step)) is not None:
                value = read_result(run, fact.step, fact.result, call.spec.info.result_type)
            trial.deliver(fact, value, None)
    finally:
        trial.close()


def _tell(run: SagaRun, fact: Any) -> None:
    run.forward.tell(fact, _value(run, fact))


def _value(run: SagaRun, fact: Any) -> Any:
    """A step's typed result, where the fact tells of one."""
    if not isinstance(fact, h.StepSucceeded):
        return None
    call = _requested(run, fact.step)
    kind = Any if call is None else call.spec.info.result_type
    value = run.by_name[fact.step] = read_result(run, fact.step, fact.result, kind)
    return value


def _remember_results(run: SagaRun) -> None:
    """For compensations that look at the results of other steps: typed where the definition tells the type."""
    for name, state in run.journal.steps.items():
        if state.result is not None:
            spec = run.saga.specs.get(name)
            run.by_name[name] = read_result(run, name, state.result, Any if spec is None else spec.info.result_type)


def _requested(run: SagaRun, step: str) -> StartStep | None:
    script = run.forward.script
    return None if script is None else script.requested(step)


def _check_requested(run: SagaRun, step: str) -> StartStep:
    call = _requested(run, step)
    if call is None:
        raise NonDeterminismError(
            f"saga {run.saga.name!r} version {run.saga.version}: the journal of {run.saga_id!r} has a step {step!r} "
            "under way that the code does not ask for: register the code that it was started with, or give the changed "
            "code a higher version"
        )
    return call


def _interrupted(run: SagaRun, state: StepState, *, handed_over: bool) -> None:
    """An attempt's start is on disk and its end is not: its worker died, or handed the saga over."""
    call = _check_requested(run, state.step)
    count = state.interruptions + (0 if handed_over else 1)
    policy, forward = call.spec.retry, run.forward
    if forward.cancels(state.step):
        why = "its worker ended in the middle, and the saga has failed since"
    elif not call.spec.repeatable:
        why = "its worker ended in the middle, and it is not idempotent, so it is not run again blindly"
    elif count > policy.max_interruptions:
        lost = ", or its transaction's connection alone was cut," if call.spec.transactional else ""
        why = f"its worker ended in the middle{lost} {count} times, and max_interruptions is {policy.max_interruptions}"
    else:
        forward.start_again(call, state.attempt, count)
        return
    kind = h.StepFailed if call.spec.transactional else h.StepUnknown  # had it committed, its end would be on disk
    fact = kind(state.step, "Interrupted", why, state.attempt)
    run.emit(fact)
    forward.tell(fact, None, WorkflowError(why))
    forward.conclude()
