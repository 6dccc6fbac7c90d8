"""What a saga waits for, told in full to whoever wrote the test: times to their ends, reasons of retries, children."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from event_workflow_engine import history as h
from event_workflow_engine.engine import glance_at
from event_workflow_engine.waits import said

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.waits import Wait

__all__ = ["Waiting", "look_at", "waits_in_words"]

_DECIMALS: Final = 6
"""The virtual clock is moved by hand, to the microsecond: whoever moves it too short must see it."""
_MOST: Final = 8
"""A saga may wait for thousands of children at once: so many are told of, those first that go on first."""
_UNDER_WAY: Final = frozenset(("step", "compensation", "child", "worker", "code", "queue"))
_DECIDED: Final = frozenset(("resume", "decision"))
"""What no time ends, nor does it end what else its saga waits for."""
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Waiting(NamedTuple):
    """What a saga waits for, or does, and where it waits for children, what they do.

    Attributes:
        waits: Without its children.
        errors: What the last attempt of each step, or of its compensation, raised; by the kind of wait and the step.
        children: By their ids; ``None``: of a saga that is told of already, for it waits for this one.
    """

    waits: tuple[Wait, ...]
    errors: dict[tuple[str, str], str]
    children: dict[str, Waiting | None]

    def in_words(self) -> str:
        """All of it."""
        words = [self._said(wait) for wait in self.waits]
        children = sorted(self.children.items(), key=lambda child: (child[1] and child[1].first()) or _NEVER)
        for child_id, child in children[:_MOST]:
            does = "which waits for it" if child is None else child.in_words()
            words.append(f"waits for child saga {child_id!r} ({does})")
        if len(children) > _MOST:
            words.append(f"and {len(children) - _MOST} more")
        return ", ".join(words) or "is under way"

    def _said(self, wait: Wait) -> str:
        error = self.errors.get((wait.kind, wait.name))
        return said(wait, decimals=_DECIMALS) + ("" if error is None else f" ({error})")

    def is_under_way(self) -> bool:
        """Whether something of it goes on, or is about to."""
        if not self.waits and not self.children:
            return True
        if any(wait.kind in _UNDER_WAY for wait in self.waits):
            return True
        return any(child.is_under_way() for child in self.children.values() if child is not None)

    def first(self) -> datetime | None:
        """When the first of all that it waits for comes by itself; ``None``: there is no such time."""
        return min(self.times(), default=None)

    def times(self) -> Iterator[datetime]:
        """When any of it comes by itself."""
        if any(wait.kind in _DECIDED for wait in self.waits):
            return
        yield from (wait.at for wait in self.waits if wait.at is not None)
        for child in self.children.values():
            if child is not None:
                yield from child.times()


async def look_at(engine: WorkflowEngine, saga_id: str, *, above: frozenset[str] = frozenset()) -> Waiting:
    """What a saga that has not ended waits for.

    Args:
        engine: The engine that runs it, which alone knows what is in its memory.
        saga_id: The saga's id.
        above: Those that wait for it, and were looked at.

    Raises:
        SagaNotFoundError: There is no such saga.
    """
    handle = engine.handle(saga_id)
    stored, history = await handle.waits_for(), await handle.history()
    glance = glance_at(engine)
    children = glance.children_of(saga_id)
    told = {("step", step) for step in children} | {("child", child_id) for child_id in children.values()}
    waits = [wait for wait in stored if (wait.kind, wait.name) not in told]
    waits += [wait for wait in glance.waits_of(saga_id) if wait not in waits]
    above |= {saga_id}
    found = {
        child_id: None if child_id in above else await look_at(engine, child_id, above=above)
        for child_id in children.values()
    }
    return Waiting(tuple(waits), _last_errors(event.data for event in history), found)


async def waits_in_words(engine: WorkflowEngine, saga_id: str) -> str:
    """What a saga that has not ended waits for, or does.

    Raises:
        SagaNotFoundError: There is no such saga.
    """
    return (await look_at(engine, saga_id)).in_words()


def _last_errors(facts: Iterable[object]) -> dict[tuple[str, str], str]:
    errors: dict[tuple[str, str], str] = {}
    for fact in facts:
        if isinstance(fact, h.StepFailed | h.StepUnknown | h.CompensationFailed):
            kind = "undo" if isinstance(fact, h.CompensationFailed) else "attempt"
            error = f"{fact.error_type.rpartition('.')[2]}: {fact.message}"
            errors[kind, fact.step] = f"attempt {fact.attempt} raised {error}"
    return errors
