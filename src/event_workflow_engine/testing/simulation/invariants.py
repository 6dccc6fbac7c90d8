"""What must hold in every run, whatever the seed: looked at with each commit and each action, and at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from event_workflow_engine.journal import saga_stream
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.testing.simulation.codes import OTHER_NAME, changed, second
from event_workflow_engine.testing.simulation.loop import process_here
from event_workflow_engine.testing.simulation.server import Watcher
from event_workflow_engine.testing.simulation.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from event_workflow_engine.storage.port import Unit
    from event_workflow_engine.testing.simulation.feeds import Feeds
    from event_workflow_engine.testing.simulation.ledger import Ledger
    from event_workflow_engine.testing.simulation.plan import Plan, SagaPlan, StepPlan
    from event_workflow_engine.testing.simulation.server import SimulatedServer

__all__ = ["Invariants"]

_ENDS = frozenset({"saga-completed", "saga-compensated", "saga-cancelled"})
_BEGINNINGS = frozenset({"step-started", "compensation-started"})
_PREFIX = saga_stream("")
_YOUNG_S = 20.0
"""Schedules start sagas to the last; those that began within this do not have to have ended."""


class Invariants(Watcher):
    """Collects what was broken.

    Args:
        plan: Of the run.
        server: Whose commits are looked at.
        ledger: Of the run.
        feeds: Of the run.

    Attributes:
        broken: What does not hold, in order.
        facts: Of each saga, in order, as JSON.
        slots: What must hold of schedules.
    """

    def __init__(self, plan: Plan, server: SimulatedServer, ledger: Ledger, feeds: Feeds) -> None:
        self.broken: list[str] = []
        self._plan = plan
        self._server = server
        self._ledger = ledger
        self._feeds = feeds
        self._succeeded: set[tuple[str, str]] = set()
        self._undone: set[tuple[str, str]] = set()
        self._position = 0
        self._turns: set[str] = set()
        self._owners: dict[str, str] = {}
        self.facts: dict[str, list[dict[str, Any]]] = {}
        self._sagas = {one.id: one for one in plan.sagas}
        self._changed = {
            saga for deploy in plan.deploys for saga, code in deploy.codes.items() if code in ("reordered", "renamed")
        }
        self._begun_of: defaultdict[str, list[str]] = defaultdict(list)
        self._began_at: dict[str, float] = {}
        self._acted: set[tuple[str, str, int]] = set()
        self._begun: set[tuple[str, str, str, int]] = set()
        server.watchers.append(self)
        self.slots = Slots(plan.schedules, server, self.breaks, lambda saga: saga in self.facts)

    def breaks(self, what: str) -> None:
        """Something does not hold."""
        self.broken.append(f"at {self._server.loop.time():.3f} s: {what}")

    # -- commits -------------------------------------------------------------------------------------------------

    def before(self, unit: Unit) -> None:
        """Note whose the journals are that it writes to."""
        sagas = [one.stream[len(_PREFIX) :] for one in unit.appends if one.stream.startswith(_PREFIX)]
        self._owners = {saga: owner for saga in sagas if (owner := self._owner(saga))}

    def written(self, unit: Unit) -> None:
        """What was written goes on where the log ended, and is nothing that had ended."""
        log = self._server.state.log
        if log and log[-1].position <= self._position and any(append.records for append in unit.appends):
            self.breaks(f"position {log[-1].position} was given behind {self._position}")
        if log:
            self._position = log[-1].position
        for saga, owner in self._owners.items():
            if unit.worker is None or unit.worker.id != owner:
                self.breaks(f"{saga} is {owner}'s, and was written to by {unit.worker}")
        for append in unit.appends:
            if not append.stream.startswith(_PREFIX):
                continue
            for record in append.records:
                facts = msgspec.json.decode(record.data)
                for fact in facts if isinstance(facts, list) else [facts]:
                    self._happened(append.stream[len(_PREFIX) :], record.type, fact)

    def _happened(self, saga: str, kinds: str, fact: dict[str, Any]) -> None:
        kind = fact.get("t", kinds)
        before = self.facts.setdefault(saga, [])
        if before and _is_end(before[-1]):
            self.breaks(f"{saga}: {kind} behind its end")
        before.append({**fact, "t": kind})
        if len(before) == 1:
            self._begins(saga, before[0])
        ends = _is_end(before[-1])
        if ends or kind == "saga-admitted":
            self._in_turn(saga, ends=ends)
        if kind == "step-succeeded":
            if (saga, fact["step"]) in self._succeeded:
                self.breaks(f"{saga}: step {fact['step']} succeeded twice")
            self._succeeded.add((saga, fact["step"]))
        elif kind in _BEGINNINGS:
            self._begun.add((saga, kind, fact["step"], fact.get("attempt", 1)))
        elif kind == "compensation-succeeded":
            if (saga, fact["step"]) in self._undone:
                self.breaks(f"{saga}: step {fact['step']} was undone twice")
            self._undone.add((saga, fact["step"]))
        elif kind == "intervention-needed":
            self._turns.discard(saga)  # one that stands is in nobody's way
            self._stands(saga, before[-1])

    def _begins(self, saga: str, fact: dict[str, Any]) -> None:
        """A saga begins once, and for somebody who asked for it."""
        plan = self._sagas.get(fact.get("saga", ""))
        if plan is None:
            self.breaks(f"{saga} was begun by nobody: {fact}")
            return
        self._began_at[saga] = self._server.loop.time()
        others = self._begun_of[plan.id]
        others.append(saga)
        if plan.begun_by == "schedule":
            self.slots.started(saga)
        elif len(others) > 1:
            self.breaks(f"{plan.id} was begun as {others}, and is to begin once")

    def _stands(self, saga: str, fact: dict[str, Any]) -> None:
        """Only what was changed under its number stands, and the step is named that does not match."""
        plan = self.code(saga)
        named = any(f"'{name}'" in fact["message"] for name in self._names(plan))
        if plan.id not in self._changed or fact["kind"] != "nondeterminism" or not named:
            self.breaks(f"{saga} stands: {fact}")
        if not fact["error_type"].endswith("NonDeterminismError"):
            self.breaks(f"{saga} stands by {fact['error_type']}")

    def _names(self, plan: SagaPlan) -> set[str]:
        """Whatever a saga's journal may tell of."""
        waits = {"~sleep", *(f"~sleep#{n}" for n in range(9)), *(f"~run:{child}" for child in plan.children)}
        return {OTHER_NAME, *(one.name for one in plan.steps), *waits}

    def code(self, saga: str) -> SagaPlan:
        """What a saga has followed so far."""
        facts = self.facts[saga]
        plan = self._sagas[facts[0]["saga"]]
        if facts[0].get("version", 1) > 1:
            return second(plan)
        renamed = any(one.get("step") == OTHER_NAME for one in facts)
        return changed(plan, "renamed") if renamed else plan

    def _in_turn(self, saga: str, *, ends: bool) -> None:
        """The queue lets one of its sagas run at a time."""
        if ends:
            self._turns.discard(saga)
            return
        self._turns.add(saga)
        if len(self._turns) > 1:
            self.breaks(f"{sorted(self._turns)} run at once, and their queue lets one")

    def _owner(self, saga: str) -> str:
        image = self._server.state.tables["sagas"].get((saga,))
        return "" if image is None else str(shape_of("sagas").as_dict(image)["owner"])

    # -- actions -------------------------------------------------------------------------------------------------

    def action_begins(self, saga: str, plan: StepPlan, attempt: int, version: int) -> None:
        """A step's action: on record, not again when it is known to have succeeded, by the owner and its code."""
        step = plan.name
        began_with = self.facts[saga][0].get("version", 1) if saga in self.facts else None
        if began_with != version:
            self.breaks(f"{saga}: step {step} of version {version} began, and the saga is of version {began_with}")
        if not plan.idempotent and (saga, step, attempt) in self._acted:
            self.breaks(f"{saga}: attempt {attempt} of step {step} ran again, which is not idempotent")
        self._acted.add((saga, step, attempt))
        if (saga, "step-started", step, attempt) not in self._begun:
            self.breaks(f"{saga}: attempt {attempt} of step {step} began before its start was on record")
        if (saga, step) in self._succeeded:
            self.breaks(f"{saga}: step {step} began again, which had succeeded")
        self._by_owner(saga, f"step {step}")

    def compensation_begins(self, saga: str, step: str, attempt: int) -> None:
        """The same for a compensation."""
        if (saga, "compensation-started", step, attempt) not in self._begun:
            self.breaks(f"{saga}: attempt {attempt} to undo {step} began before its start was on record")
        if (saga, step) in self._undone:
            self.breaks(f"{saga}: the compensation of {step} began again, which had succeeded")
        self._by_owner(saga, f"the compensation of {step}")

    def _by_owner(self, saga: str, what: str) -> None:
        process, owner = process_here(), self._owner(saga)
        mine = [storage.worker for storage in self._server.storages if storage.process is process]
        if owner not in mine:
            self.breaks(f"{saga}: {what} began in {process}, and the saga is {owner or 'nobody'}'s")

    # -- the end -------------------------------------------------------------------------------------------------

    def ended(self, image: Any) -> bool:
        """Whether a saga has ended, by its row; one that a schedule has just started does not have to."""
        row = shape_of("sagas").as_dict(image)
        return row["ended_at"] is not None or self._is_young(row["id"])

    def _is_young(self, saga: str) -> bool:
        plan = self._sagas[self.facts[saga][0]["saga"]]
        return plan.begun_by == "schedule" and self._began_at[saga] > self._server.loop.time() - _YOUNG_S

    def check_end(self, accepted: Mapping[str, AbstractSet[int]], cancelled: set[str]) -> None:
        """All that was accepted has ended, as it should.

        Args:
            accepted: The sagas that a client was promised, with the versions that were its newest when it asked.
            cancelled: Those that it cancelled.
        """
        for saga, versions in accepted.items():
            if saga not in self.facts:
                self.breaks(f"{saga} was accepted, and there is none")
            elif self.facts[saga][0].get("version", 1) not in versions:
                self.breaks(f"{saga} began with {self.facts[saga][0]}, and the newest were {sorted(versions)}")
        for saga, facts in self.facts.items():
            if _is_end(facts[-1]) or not self._is_young(saga):
                self._check_saga(saga, self.code(saga), cancelled=saga in cancelled)
        self._check_feeds()
        log = self._server.state.log
        heads: Counter[str] = Counter()
        for record in log:
            heads[record.stream] += record.count
            if record.version != heads[record.stream]:
                self.breaks(f"stream {record.stream} has no version {heads[record.stream]}")
        if [one.position for one in log] != sorted({one.position for one in log}):
            self.breaks("the log's positions do not grow")

    def _check_feeds(self) -> None:
        """The read model holds each event once, in order; the subscription had each, and first in order."""
        happened = self._feeds.happened
        asked = sorted(n for n, one in enumerate(self._plan.requests) if one.what == "append")
        if sorted(one.number for one in happened) != asked:
            self.breaks(f"appended {asked}, and the log has {happened}")
        documents = self._feeds.documents()
        for stream in {one.stream for one in happened} | set(documents):
            numbers = tuple(one.number for one in happened if one.stream == stream)
            if documents.get(stream) != numbers:
                self.breaks(f"the read model of {stream} has {documents.get(stream)}, and there are {numbers}")
            if tuple(dict.fromkeys(one.number for one in self._feeds.heard if one.stream == stream)) != numbers:
                self.breaks(f"the subscription heard {self._feeds.heard} of {stream}, and there are {numbers}")

    def _fails(self, plan: SagaPlan) -> bool:
        fails = plan.refuses or any(one.outcomes[-1] != "ok" for one in plan.steps)
        return fails or any(self._fails(self._sagas[child]) for child in plan.children)

    def _may_fail(self, plan: SagaPlan) -> bool:
        may = plan.timeout is not None or any(one.timeout or not one.idempotent for one in plan.steps)
        return may or any(self._may_fail(self._sagas[child]) for child in plan.children)

    def _check_saga(self, saga: str, plan: SagaPlan, *, cancelled: bool) -> None:
        facts = self.facts[saga]
        ends = [one["t"] for one in facts if _is_end(one)]
        if len(ends) != 1:
            self.breaks(f"{saga}: ended {len(ends)} times: {ends}; last {facts[-1:]}")
            return
        undone = {"saga-compensated", "saga-cancelled", "rollback-planned"}
        wanted = undone if self._fails(plan) else {"saga-completed"}
        if cancelled or self._may_fail(plan):
            wanted |= undone
        if ends[0] not in wanted:
            self.breaks(f"{saga}: {ends[0]}, expected {' or '.join(sorted(wanted))}")
        completed = ends[0] == "saga-completed"
        for step in plan.steps:
            self._check_step(saga, step, completed=completed)
        if not completed:
            self._check_order(saga, plan)
        for child in plan.children:
            if completed and not self._completed(child):
                self.breaks(f"{saga} completed, and its child {child} did not")

    def _completed(self, child: str) -> bool:
        return any(self.facts[one][-1]["t"] == "saga-completed" for one in self._begun_of[child])

    def child_returned(self, saga: str, child: str, result: Any) -> None:
        """A child's result came back in its parent's body, now or in a replay."""
        plan = self._sagas[child]
        wanted: Any = len(plan.steps) if plan.form == "function" else {one.name for one in plan.steps}
        if (result if plan.form == "function" else set(result)) != wanted:
            self.breaks(f"{saga}: its child {child} returned {result!r}, not {wanted}")
        if not self._completed(child):
            self.breaks(f"{saga}: its child {child} returned, and has not completed")

    def _check_step(self, saga: str, step: StepPlan, *, completed: bool) -> None:
        effects = [one.what for one in self._ledger.of(saga, step.name)]
        keys = {one.key for one in self._ledger.of(saga, step.name)}
        if len(keys) > 1:
            self.breaks(f"{saga}: step {step.name} had the keys {sorted(keys)}")
        if completed and "undid" in effects:
            self.breaks(f"{saga} completed, and step {step.name} is undone")
        if completed and "did" not in effects:
            self.breaks(f"{saga} completed, and step {step.name} was not done")
        if not completed and step.undo and "did" in effects and effects[-1] != "undid":
            self.breaks(f"{saga} was undone, and step {step.name} is done: {effects}")

    def _check_order(self, saga: str, plan: SagaPlan) -> None:
        """A step is undone before what it came after."""
        order = [(one["t"], one.get("step")) for one in self.facts[saga]]
        earlier = {step.name: set(step.after) for step in plan.steps}
        if plan.form == "sequential":
            names = [step.name for step in plan.steps]
            earlier = {name: set(names[:n]) for n, name in enumerate(names)}
        for step, before in earlier.items():
            undone = ("compensation-succeeded", step)
            for one in before:
                begun = ("compensation-started", one)
                if undone in order and begun in order and order.index(undone) > order.index(begun):
                    self.breaks(f"{saga}: {one} was undone before {step}, which came after it")


def _is_end(fact: dict[str, Any]) -> bool:
    """Whether a saga ends with it: of one that failed with nothing to undo, the plan that says so is the last."""
    return fact["t"] in _ENDS or (fact["t"] == "rollback-planned" and not fact.get("plan"))
