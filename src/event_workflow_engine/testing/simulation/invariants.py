"""What must hold in every run, whatever the seed: looked at with each commit and each action, and at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from event_workflow_engine.journal import saga_stream
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.testing.simulation.loop import process_here
from event_workflow_engine.testing.simulation.server import Watcher

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Unit
    from event_workflow_engine.testing.simulation.feeds import Feeds
    from event_workflow_engine.testing.simulation.ledger import Ledger
    from event_workflow_engine.testing.simulation.plan import Plan, SagaPlan, StepPlan
    from event_workflow_engine.testing.simulation.server import SimulatedServer

__all__ = ["Invariants"]

_ENDS = frozenset({"saga-completed", "saga-compensated", "saga-cancelled"})
_BEGINNINGS = frozenset({"step-started", "compensation-started"})
_PREFIX = saga_stream("")


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
        self.facts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._acted: set[tuple[str, str, int]] = set()
        self._begun: set[tuple[str, str, str, int]] = set()
        server.watchers.append(self)

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
        before = self.facts[saga]
        if before and _is_end(before[-1]):
            self.breaks(f"{saga}: {kind} behind its end")
        before.append({**fact, "t": kind})
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

    def action_begins(self, saga: str, plan: StepPlan, attempt: int) -> None:
        """A step's action: on record, not again when it is known to have succeeded, and by the saga's owner alone."""
        step = plan.name
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

    def check_end(self, accepted: set[str], cancelled: set[str]) -> None:
        """All that was accepted has ended, as it should."""
        for saga in self._plan.sagas:
            if saga.id in accepted or self.facts[saga.id]:
                self._check_saga(saga, cancelled=saga.id in cancelled)
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

    def _check_saga(self, saga: SagaPlan, *, cancelled: bool) -> None:
        facts = self.facts[saga.id]
        ends = [one["t"] for one in facts if _is_end(one)]
        if len(ends) != 1:
            self.breaks(f"{saga.id}: ended {len(ends)} times: {ends}; last {facts[-1:]}")
            return
        undone = {"saga-compensated", "saga-cancelled", "rollback-planned"}
        fails = saga.refuses or any(one.outcomes[-1] != "ok" for one in saga.steps)
        wanted = undone if fails else {"saga-completed"}
        if cancelled or saga.timeout or any(one.timeout or not one.idempotent for one in saga.steps):
            wanted |= undone
        if ends[0] not in wanted:
            self.breaks(f"{saga.id}: {ends[0]}, expected {' or '.join(sorted(wanted))}")
        for step in saga.steps:
            self._check_step(saga, step, completed=ends[0] == "saga-completed")
        if ends[0] != "saga-completed":
            self._check_order(saga)

    def _check_step(self, saga: SagaPlan, step: StepPlan, *, completed: bool) -> None:
        effects = [one.what for one in self._ledger.of(saga.id, step.name)]
        keys = {one.key for one in self._ledger.of(saga.id, step.name)}
        if len(keys) > 1:
            self.breaks(f"{saga.id}: step {step.name} had the keys {sorted(keys)}")
        if completed and "undid" in effects:
            self.breaks(f"{saga.id} completed, and step {step.name} is undone")
        if completed and "did" not in effects:
            self.breaks(f"{saga.id} completed, and step {step.name} was not done")
        if not completed and step.undo and "did" in effects and effects[-1] != "undid":
            self.breaks(f"{saga.id} was undone, and step {step.name} is done: {effects}")

    def _check_order(self, saga: SagaPlan) -> None:
        """A step is undone before what it came after."""
        order = [(one["t"], one.get("step")) for one in self.facts[saga.id]]
        earlier = {step.name: set(step.after) for step in saga.steps}
        if saga.form == "sequential":
            names = [step.name for step in saga.steps]
            earlier = {name: set(names[:n]) for n, name in enumerate(names)}
        for step, before in earlier.items():
            undone = ("compensation-succeeded", step)
            for one in before:
                begun = ("compensation-started", one)
                if undone in order and begun in order and order.index(undone) > order.index(begun):
                    self.breaks(f"{saga.id}: {one} was undone before {step}, which came after it")


def _is_end(fact: dict[str, Any]) -> bool:
    """Whether a saga ends with it: of one that failed with nothing to undo, the plan that says so is the last."""
    return fact["t"] in _ENDS or (fact["t"] == "rollback-planned" and not fact.get("plan"))
