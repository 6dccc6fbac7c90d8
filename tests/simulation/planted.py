"""Bugs of the kind that such engines have had, to be put into this one: each a promise broken in one place.

What is patched is our own, on purpose: a simulation that finds none of them proves nothing by finding no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine import history as h
from event_workflow_engine import planner
from event_workflow_engine._scheduling.firing import Firing
from event_workflow_engine.context import StepContext
from event_workflow_engine.errors import StorageError
from event_workflow_engine.feeds import Feed, Tail
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import Journal
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.runner import attempts, resume, rollback
from event_workflow_engine.runner.body import BodyScript
from event_workflow_engine.runner.children import Children
from event_workflow_engine.runner.claiming import Claimer
from event_workflow_engine.runner.definitions import Definitions
from event_workflow_engine.runner.forward import Forward
from event_workflow_engine.runner.mail import Mail
from event_workflow_engine.runner.pen import Pen
from event_workflow_engine.runner.rollback import Rollback
from event_workflow_engine.runner.run import SagaRun
from event_workflow_engine.runner.unwritten import Unwritten
from event_workflow_engine.scheduler import WorkflowScheduler
from event_workflow_engine.storage.liveness import HeartbeatLiveness
from event_workflow_engine.storage.memory import queries
from event_workflow_engine.storage.memory.state import MemoryState
from event_workflow_engine.storage.port import Written
from event_workflow_engine.testing.simulation.server import SimulatedStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from event_workflow_engine.storage.port import Record

PLANTED: Final[dict[str, Callable[[pytest.MonkeyPatch], None]]] = {}


def planted(plant: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    PLANTED[plant.__name__] = plant
    return plant


SEEN_AT: Final = {
    "the_fence_is_not_checked": 172,
    "a_worker_in_doubt_of_its_life_acts": 1394,
    "changed_code_is_not_noticed": 203,
    "sagas_that_stand_are_not_looked_at_when_code_comes": 17,
    "slots_of_a_dead_worker_are_forgotten": 245,
    "what_was_missed_is_run_whatever_the_policy": 74,
    "a_saga_that_was_lost_is_not_loaded_again": 60,
    "a_child_begins_anew_with_each_attempt": 38,
    "a_slot_is_not_claimed": 31,
}
"""The first seeds at which those were found that need many: they are tried before the others."""

BY_SINGLE_ERRORS: Final[dict[str, Callable[[pytest.MonkeyPatch], None]]] = {}
"""Those that show where one call of many fails."""


def planted_in_a_call(plant: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    BY_SINGLE_ERRORS[plant.__name__] = plant
    return plant


# -- who may write ---------------------------------------------------------------------------------------------------


@planted
def the_fence_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    write = MemoryState.write

    def trusting(self: MemoryState, unit: Any) -> Any:
        rows = tuple(msgspec.structs.replace(row, where={}) if row.table == "sagas" else row for row in unit.rows)
        return write(self, msgspec.structs.replace(unit, worker=None, rows=rows))

    patch.setattr(MemoryState, "write", trusting)


@planted
def a_saga_is_claimed_twice(patch: pytest.MonkeyPatch) -> None:
    claim = queries.claim_sagas

    def generous(store: Any, *, now: int, **given: Any) -> Any:
        for row in store.rows("sagas"):
            if row["ended_at"] is None and row["wake_at"] is None and row["owner"]:
                queries._put(store, "sagas", row, owner="", wake_at=now)
        return claim(store, now=now, **given)

    patch.setitem(queries.CLAIM_FUNCTIONS, "claim_sagas", generous)


@planted
def a_worker_in_doubt_of_its_life_acts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HeartbeatLiveness, "is_sure", lambda _: True)


@planted
def sagas_of_a_dead_worker_stay_its_own(patch: pytest.MonkeyPatch) -> None:
    def bury(store: Any, *, id: str, incarnation: int, beat: int | None, now: int) -> list[Any]:  # noqa: A002
        for row in store.rows("workers"):
            if row["id"] == id and row["incarnation"] == incarnation:
                queries._put(store, "workers", row, alive=0)
        return []

    patch.setitem(queries.CLAIM_FUNCTIONS, "bury_worker", bury)


@planted
def a_saga_that_was_given_and_not_taken_comes_back_to_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queries, "_given", lambda _: False)
    bury = queries.bury_worker

    def forgetful(store: Any, *, id: str, **given: Any) -> Any:  # noqa: A002
        kept = [row for row in store.rows("sagas") if row["owner"] == queries.GIVEN + id and row["ended_at"] is None]
        freed = bury(store, id=id, **given)
        for row in kept:
            queries._put(store, "sagas", row)
        return freed

    patch.setitem(queries.CLAIM_FUNCTIONS, "bury_worker", forgetful)


# -- what is on disk, and when ---------------------------------------------------------------------------------------


@planted
def a_commit_is_acknowledged_before_it_is_made(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: SimulatedStorage, units: list[Any], done: Any) -> None:
        done([Written(unit.id, ()) for unit in units])
        self._send(lambda: self._server.commit(units, self), lambda _: None, commits=True)

    patch.setattr(SimulatedStorage, "_execute", hasty)


@planted
def an_action_begins_before_its_start_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    launch = Forward.launch_boarded

    def at_once(self: Forward) -> None:
        self.board()
        launch(self)

    patch.setattr(Forward, "launch_boarded", at_once)


@planted
def a_compensation_begins_before_its_start_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    launch = Rollback.launch_boarded

    def at_once(self: Rollback) -> None:
        self.board()
        launch(self)

    patch.setattr(Rollback, "launch_boarded", at_once)


@planted
def what_a_step_returned_is_forgotten_on_resume(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        resume, "_FOR_THE_SCRIPT", tuple(kind for kind in resume._FOR_THE_SCRIPT if kind is not h.StepSucceeded)
    )


# -- time ------------------------------------------------------------------------------------------------------------


def _after_loading(patch: pytest.MonkeyPatch, change: Callable[[Journal], None]) -> None:
    load = Journal.load

    def changed(self: Journal, *given: Any) -> Any:
        facts = load(self, *given)
        change(self)
        return facts

    patch.setattr(Journal, "load", changed)


@planted
def timers_are_forgotten_on_resume(patch: pytest.MonkeyPatch) -> None:
    _after_loading(patch, lambda journal: journal.timers.clear())


@planted
def retries_are_forgotten_on_resume(patch: pytest.MonkeyPatch) -> None:
    _after_loading(patch, lambda journal: journal.retries.clear())


@planted
def a_saga_that_sleeps_has_no_time_to_wake(patch: pytest.MonkeyPatch) -> None:
    unit = Pen.unit

    def timeless(self: Pen, facts: Any, journal: Any, wake: Any, *, park: bool) -> Any:
        return unit(self, facts, journal, None if park else wake, park=park)

    patch.setattr(Pen, "unit", timeless)


# -- the inbox -------------------------------------------------------------------------------------------------------


@planted
def a_signal_between_the_last_look_and_sleep_is_lost(patch: pytest.MonkeyPatch) -> None:
    unit = Pen.unit

    def blind(self: Pen, *given: Any, park: bool) -> Any:
        made = unit(self, *given, park=park)
        return msgspec.structs.replace(made, appends=made.appends[:1])

    patch.setattr(Pen, "unit", blind)


@planted
def the_inbox_is_read_on_resume_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SagaRun, "wake", lambda _: None)
    patch.setattr(Mail, "look", lambda _: None)


@planted
def a_resume_is_overlooked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SagaRun, "unpause", lambda *_: None)


# -- undoing ---------------------------------------------------------------------------------------------------------


@planted
def steps_are_undone_in_any_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "_reverse_completion", lambda undone: {state.step: () for state in undone})
    patch.setattr(planner, "_reverse_dag", lambda undone, _: {state.step: () for state in undone})


@planted
def unknown_steps_are_not_undone(patch: pytest.MonkeyPatch) -> None:
    plan = rollback.plan_rollback

    def certain(journal: Any, specs: Any, dag: Any) -> Any:
        whole = plan(journal, specs, dag)
        kept = {one.step for one in whole.plan if one.outcome is not Outcome.UNKNOWN}
        entries = tuple(
            msgspec.structs.replace(one, after=tuple(name for name in one.after if name in kept))
            for one in whole.plan
            if one.step in kept
        )
        return h.RollbackPlanned(entries, whole.skipped)

    patch.setattr(rollback, "plan_rollback", certain)


@planted
def a_failure_speaks_for_the_attempts_before_it(patch: pytest.MonkeyPatch) -> None:
    apply = Journal.apply

    def forgetful(self: Journal, fact: Any, *rest: Any) -> None:
        apply(self, fact, *rest)
        for state in self.steps.values():
            state.maybe = False

    patch.setattr(Journal, "apply", forgetful)


@planted
def a_failed_compensation_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        rollback, "record_compensation", lambda _r, _s, state, _e: h.CompensationSucceeded(state.planned.step)
    )


@planted
def an_interrupted_compensation_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    go_on = Rollback.go_on

    def credulous(self: Rollback, *, again: bool = False) -> None:
        for step, state in self._run.journal.compensations.items():
            if state.status == "started":
                self._run.emit(h.CompensationSucceeded(step))
        go_on(self, again=again)

    patch.setattr(Rollback, "go_on", credulous)


@planted
def an_interrupted_step_counts_as_not_done(patch: pytest.MonkeyPatch) -> None:
    def interrupted(run: Any, state: Any, **_: Any) -> None:
        fact = h.StepFailed(state.step, "Interrupted", "", state.attempt)
        resume._check_requested(run, state.step)
        run.emit(fact)
        run.forward.tell(fact, None, ValueError(""))
        run.forward.conclude()

    patch.setattr(resume, "_interrupted", interrupted)


@planted
def a_rollback_begins_beside_steps_in_flight(patch: pytest.MonkeyPatch) -> None:
    conclude = Forward.conclude

    def hasty(self: Forward) -> None:
        run = self._run
        if self.doom is not None and run.journal.open_steps:
            for step, state in list(run.journal.steps.items()):
                if not state.settled:
                    run.emit(h.StepFailed(step, "Given up", "", state.attempt))
        conclude(self)

    patch.setattr(Forward, "conclude", hasty)


# -- steps -----------------------------------------------------------------------------------------------------------


@planted
def each_attempt_has_a_key_of_its_own(patch: pytest.MonkeyPatch) -> None:
    class Numbered(StepContext[Any]):
        __slots__ = ()

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.idempotency_key += f":{self.attempt}"

    patch.setattr(attempts, "StepContext", Numbered)


@planted
def a_saga_that_was_lost_is_not_loaded_again(patch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        return

    patch.setattr(Unwritten, "_give_back", never)


# -- other code ------------------------------------------------------------------------------------------------------


@planted
def the_version_that_a_saga_began_with_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Definitions, "find", lambda self, name, _: self.resolve(name))


@planted
def new_sagas_begin_with_the_oldest_version(patch: pytest.MonkeyPatch) -> None:
    resolve = Definitions.resolve

    def conservative(self: Definitions, saga: Any) -> Any:
        versions = sorted(version for name, version in self._sagas if name == saga)
        return self._sagas[saga, versions[0]] if versions else resolve(self, saga)

    patch.setattr(Definitions, "resolve", conservative)


@planted
def changed_code_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    deliver = BodyScript._deliver_outcome

    def trusting(self: BodyScript, fact: Any, *rest: Any) -> None:
        if fact.step in self._open:
            deliver(self, fact, *rest)

    patch.setattr(BodyScript, "_deliver_outcome", trusting)


@planted
def sagas_that_stand_are_not_looked_at_when_code_comes(patch: pytest.MonkeyPatch) -> None:
    async def never(_: Any) -> None:
        return

    patch.setattr(Claimer, "_retry_standing", never)


# -- children --------------------------------------------------------------------------------------------------------


@planted
def a_child_begins_anew_with_each_attempt(patch: pytest.MonkeyPatch) -> None:
    end_of = Children._end_of

    async def another(self: Any, saga: Any, value: Any, _: str) -> Any:
        return await end_of(self, saga, value, uuid7())

    patch.setattr(Children, "_end_of", another)


@planted
def a_start_without_an_answer_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Claimer, "doubt", lambda _: None)


# -- schedules -------------------------------------------------------------------------------------------------------


@planted
def a_slot_is_not_claimed(patch: pytest.MonkeyPatch) -> None:
    write = WorkflowScheduler._write

    async def trusting(self: WorkflowScheduler, *rows: Any) -> None:
        await write(
            self,
            *(
                msgspec.structs.replace(row, op="upsert" if row.op == "insert" else row.op, where={})
                if row.table == "slots" or "next_run" in row.where
                else row
                for row in rows
            ),
        )

    patch.setattr(WorkflowScheduler, "_write", trusting)


@planted
def slots_of_a_dead_worker_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    async def never(_: Any) -> None:
        return

    patch.setattr(Firing, "_repair", never)


@planted
def what_was_missed_is_run_whatever_the_policy(patch: pytest.MonkeyPatch) -> None:
    slots = Firing._slots

    def always(self: Firing, row: Any, slot: int, now: int) -> Any:
        fired, following = slots(self, row, slot, now)
        return fired or [slot], following

    patch.setattr(Firing, "_slots", always)


# -- readers of the log ----------------------------------------------------------------------------------------------


@planted
def whoever_had_a_feed_still_moves_it(patch: pytest.MonkeyPatch) -> None:
    move = Feed.move

    def trusting(self: Feed, position: int, **values: Any) -> Any:
        return msgspec.structs.replace(move(self, position, **values), where={})

    patch.setattr(Feed, "move", trusting)


@planted
def a_tail_knows_the_end_that_it_looks_at_behind_the_records(patch: pytest.MonkeyPatch) -> None:
    async def look(self: Tail, limit: int, types: Sequence[str] = (), categories: Sequence[str] = ()) -> list[Record]:
        records = await self._storage.read_log(after=self.position, limit=limit, types=types, categories=categories)
        self._end = await self._look_at_end()
        self.more = len(records) == limit
        return records

    patch.setattr(Tail, "look", look)


# -- reads that fail -------------------------------------------------------------------------------------------------


@planted
def a_failed_claim_is_not_made_again(patch: pytest.MonkeyPatch) -> None:
    claim = Claimer._claim_due

    async def once(self: Any) -> None:
        try:
            await claim(self)
        except StorageError:
            return

    patch.setattr(Claimer, "_claim_due", once)


# -- single calls that fail ------------------------------------------------------------------------------------------


@planted_in_a_call
def a_parent_fails_when_the_store_does_not_answer(patch: pytest.MonkeyPatch) -> None:
    async def impatient(self: Any, saga: Any, value: Any, child: str) -> Any:
        await self._start(saga, value, child)
        return await self._ends.wait(child, saga)

    patch.setattr(Children, "_end_of", impatient)


@planted_in_a_call
def code_that_came_is_forgotten_where_the_look_fails(patch: pytest.MonkeyPatch) -> None:
    async def once(self: Any) -> None:
        came, self._code_came = self._code_came, False
        if came:
            await self._retry_standing()

    patch.setattr(Claimer, "_look_at_code", once)
