"""Events and helpers that the tests of the event store share."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from event_workflow_engine import history as h
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import NewEvent, RecordedEvent, event
from event_workflow_engine.storage.port import Append, NewRecord, Unit


class Happened:
    """Base of this module's events."""


@event("store-opened")
@dataclass(frozen=True)
class Opened(Happened):
    by: str


@event("store-shut")
@dataclass(frozen=True)
class Shut(Happened):
    hard: bool = False


async def everything(events: AsyncIterator[RecordedEvent[Any]]) -> list[RecordedEvent[Any]]:
    return [event async for event in events]


async def data_of(events: AsyncIterator[RecordedEvent[Any]]) -> list[Any]:
    return [event.data async for event in events]


def numbered(count: int, prefix: str = "e") -> list[NewEvent]:
    return [NewEvent("store-numbered", n, id=f"{prefix}-{n}") for n in range(count)]


async def put_facts(store: EventStore, stream: str, *units: list[Any]) -> None:
    """As the engine does: the facts of a unit in one record."""
    for n, facts in enumerate(units):
        kinds = "+".join(sorted({str(type(fact).__struct_config__.tag) for fact in facts}))
        record = NewRecord(f"{stream}/{n}", kinds, h.encode_facts(facts), count=len(facts))
        await store.storage.write(Unit(record.id, 1, (Append(stream, (record,)),)))


FACTS = [
    [h.SagaStarted("s"), h.StepStarted("a"), h.StepStarted("b")],
    [h.StepSucceeded("a")],
    [h.StepSucceeded("b"), h.SagaCompleted()],
]
