"""The script of a declarative saga: its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine import history as h
from event_workflow_engine.journal import DEADLINE
from event_workflow_engine.planner import Dag, Ready
from event_workflow_engine.runner.commands import Command, Fail, Finish, StartStep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.saga import StepSpec

__all__ = ["GraphScript"]


class GraphScript:
    """Starts each step when all those before it have succeeded; fails with the first that does not."""

    __slots__ = ("_doomed", "_left", "_ready", "_specs")

    def __init__(self, specs: Mapping[str, StepSpec], dag: Dag) -> None:
        self._specs = specs
        self._ready = Ready(dag)
        self._left = len(specs)
        self._doomed = False

    def begin(self) -> list[Command]:
        """The steps that wait for nothing."""
        return [StartStep(name, self._specs[name]) for name in self._ready.first]

    def deliver(self, fact: Any, value: Any, error: BaseException | None) -> list[Command]:  # noqa: ARG002 - the protocol's
        """See `Script.deliver`."""
        kind = type(fact)
        if kind is h.StepSucceeded:
            self._left -= 1
            if self._doomed:
                return []
            if not self._left:
                return [Finish()]
            return [StartStep(name, self._specs[name]) for name in self._ready.succeeded(fact.step)]
        if self._doomed:
            return []
        if kind is h.StepFailed or kind is h.StepUnknown:
            self._doomed = True
            return [Fail(fact.error_type, fact.message, fact.step, error=error)]
        if kind is h.CancelRequested:
            self._doomed = True
            return [Fail("SagaCancelled", fact.reason or "cancelled", None, "cancelled")]
        if kind is h.TimerFired and fact.timer == DEADLINE:
            self._doomed = True
            return [Fail("SagaTimeout", "the saga's own deadline has passed", None, "timeout")]
        return []

    def requested(self, step: str) -> StartStep | None:
        """See `Script.requested`."""
        spec = self._specs.get(step)
        return None if spec is None else StartStep(step, spec)

    def cancels(self, step: str) -> bool:  # noqa: ARG002 - the protocol's
        """Once the saga is doomed there is no use in running a step again."""
        return self._doomed

    @property
    def awaited_timers(self) -> tuple[str, ...]:
        """None: a graph has no timers."""
        return ()

    @property
    def awaited_signals(self) -> tuple[tuple[str, str | None], ...]:
        """None: a graph has no signals."""
        return ()

    def close(self) -> None:
        """Nothing to close."""
