"""What an engine has in memory, for the testing kit to look at: nothing of it can be changed from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from event_workflow_engine.runner.due import waits_in_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from event_workflow_engine.runner.children import Children
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.waits import Wait

__all__ = ["Glance"]


class Glance:
    """A look at the sagas that an engine has in this process's memory.

    Args:
        runs: The sagas in memory.
        children: Tells which steps only wait for children.
        claims: Whether sagas are claimed, or are about to be.
    """

    __slots__ = ("_children", "_claims", "_runs")

    def __init__(self, runs: Mapping[str, SagaRun], children: Children, claims: Callable[[], bool]) -> None:
        self._runs = runs
        self._children = children
        self._claims = claims

    @property
    def is_idle(self) -> bool:
        """Whether no action, compensation or write of a saga is under way, and nothing waits to be claimed.

        A step that waits for a child saga is not under way; what the child does is.
        """
        return not self._claims() and not any(self._children.acting_on(run) for run in self._runs.values())

    def children_of(self, saga_id: str) -> Mapping[str, str]:
        """The ids of the child sagas whose ends a saga waits for, by its steps."""
        return self._children.of(saga_id)

    def waits_of(self, saga_id: str) -> Sequence[Wait]:
        """What a saga in memory waits for, but for steps: the store knows only of those that are not. Else nothing."""
        run = self._runs.get(saga_id)
        return () if run is None or run.closed else waits_in_memory(run)
