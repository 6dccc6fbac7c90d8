"""All that the processes of a run may have registered: its sagas in each version, what schedules call, what is fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.queues import Queue
from event_workflow_engine.testing.simulation.codes import codes_of
from event_workflow_engine.testing.simulation.programs import actions_of, program_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.saga import Saga
    from event_workflow_engine.testing.simulation.feeds import Feeds
    from event_workflow_engine.testing.simulation.invariants import Invariants
    from event_workflow_engine.testing.simulation.ledger import Ledger
    from event_workflow_engine.testing.simulation.plan import Code, Plan, SagaPlan
    from event_workflow_engine.testing.simulation.programs import Actions

__all__ = ["QUEUE", "CodeBase"]

QUEUE: Final = "turns"


class CodeBase:
    """The code of one run: the same objects in all its processes.

    Args:
        plan: Of the run.
        ledger: Of the run.
        invariants: Of the run.
        feeds: Of the run.

    Attributes:
        actions: What the steps of each saga do.
        queue: Where sagas wait their turn.
        calls: What schedules call, by the schedule's id.
    """

    def __init__(self, plan: Plan, ledger: Ledger, invariants: Invariants, feeds: Feeds) -> None:
        self._plans = {one.id: one for one in plan.sagas}
        self._invariants = invariants
        self._feeds = feeds if any(one.what == "append" for one in plan.requests) else None
        self._queues = any(one.queued for one in plan.sagas)
        self.queue = Queue(QUEUE, limit=1)
        self._of_saga: dict[str, dict[str, Actions]] = {
            one.id: actions_of(one, ledger, invariants) for one in plan.sagas
        }
        self.actions = {(saga, name): one for saga, of_saga in self._of_saga.items() for name, one in of_saga.items()}
        self._programs: dict[tuple[str, Code], list[Saga[Any, Any]]] = {}
        self._first: dict[str, Saga[Any, Any]] = {}
        for one in sorted(plan.sagas, key=lambda saga: len(saga.children)):  # children first
            self._first[one.id] = self._program(one)
        self.calls = {one.id: _call(one.id, invariants) for one in plan.schedules if one.saga is None}

    def _program(self, plan: SagaPlan) -> Saga[Any, Any]:
        return program_of(plan, self._of_saga[plan.id], self._first, self._invariants)

    def programs(self, saga: str, code: Code) -> list[Saga[Any, Any]]:
        """The definitions that a process has of a saga."""
        known = self._programs.get((saga, code))
        if known is None:
            plan = self._plans[saga]
            known = [self._first[saga] if one == plan else self._program(one) for one in codes_of(plan, code)]
            if code == "new":  # the same object as beside the first version
                known = self.programs(saga, "both")[1:]
            self._programs[saga, code] = known
        return known

    def register(self, engine: WorkflowEngine, codes: Mapping[str, Code]) -> None:
        """Give an engine all that the plan needs, of the sagas as `codes` say."""
        engine.register(*(one for saga in self._plans for one in self.programs(saga, codes.get(saga, "old"))))
        for name, call in self.calls.items():
            engine.scheduler.register(call, name=name)
        if self._queues:
            engine.queues.register(self.queue)
        if self._feeds is not None:
            self._feeds.register(engine)

    def add(self, engine: WorkflowEngine, codes: Mapping[str, Code]) -> None:
        """Register what an engine has not. Changed code under a number that it has is refused."""
        for saga in self._plans:
            for one in self.programs(saga, codes.get(saga, "old")):
                try:
                    engine.register(one)
                except DefinitionError:
                    if codes.get(saga) not in ("reordered", "renamed") and one is not self._first[saga]:
                        raise


def _call(schedule: str, invariants: Invariants) -> Callable[[], Any]:
    async def call() -> None:
        invariants.slots.ran(schedule)

    return call
