"""What is fed from the log of a simulation: a read model that is to hold each event once, and a subscription."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from event_workflow_engine.events import event
from event_workflow_engine.projections import DocumentProjection
from event_workflow_engine.storage.row_images import shape_of

if TYPE_CHECKING:
    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.storage.memory.state import MemoryState

__all__ = ["Feeds", "Thing"]

_NAME: Final = "simulated-things"


@event("simulated-thing")
@dataclass(frozen=True)
class Thing:
    """It happened in a stream."""

    stream: str
    number: int


@dataclass(frozen=True)
class Things:
    """The numbers of what happened in a stream, in order."""

    numbers: tuple[int, ...] = ()


class Feeds:
    """The feeds of one run.

    Args:
        state: What the server holds.

    Attributes:
        heard: What the subscription was given, in order: each event at least once.
    """

    def __init__(self, state: MemoryState) -> None:
        self.heard: list[Thing] = []
        self._state = state

    def register(self, engine: WorkflowEngine) -> None:
        """Have an engine run them."""
        things = DocumentProjection(_NAME, Things)
        things.on(Thing, key=lambda thing: thing.stream)(_add)
        engine.projections.register(things)
        engine.bus.subscribe(Thing, self._hear, durable=_NAME)

    async def _hear(self, thing: Thing) -> None:
        self.heard.append(thing)

    @property
    def happened(self) -> list[Thing]:
        """What is in the log, in its order."""
        return [msgspec.json.decode(one.data, type=Thing) for one in self._state.log if one.type == "simulated-thing"]

    @property
    def caught_up(self) -> bool:
        """Whether both have had all."""
        happened = self.happened
        return sum(map(len, self.documents().values())) >= len(happened) and set(self.heard) >= set(happened)

    def documents(self) -> dict[str, tuple[int, ...]]:
        """The read model."""
        shape = shape_of("documents")
        rows = [shape.as_dict(image) for image in self._state.tables["documents"].values()]
        return {row["key"]: msgspec.json.decode(row["body"], type=Things).numbers for row in rows}


def _add(document: Things | None, thing: Thing) -> Things:
    return Things((*(document or Things()).numbers, thing.number))
