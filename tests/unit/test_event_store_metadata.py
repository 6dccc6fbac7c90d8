"""What is stored beside an event's payload, and how the payload is encoded."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.store_cases import Opened, Shut, data_of, everything

from event_workflow_engine.codecs import JsonCodec
from event_workflow_engine.context import SAGA, SagaContext
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import CURRENT_EVENT, Metadata, NewEvent
from event_workflow_engine.storage import Storage, open_storage


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> EventStore:
    return EventStore(storage)


# -- metadata ----------------------------------------------------------------------------------------------------------


async def metadata_of(store: EventStore, stream: str = "door-1") -> list[Metadata]:
    return [event.metadata for event in await everything(store.read(stream))]


async def test_without_context_there_is_no_metadata(store: EventStore) -> None:
    await store.append("door-1", Shut())
    assert await metadata_of(store) == [Metadata()]


async def test_metadata_is_of_the_append_and_of_each_event(store: EventStore) -> None:
    given = {"actor": "ann", "traceparent": "00-1", "shop": 7}
    own = NewEvent("a", 1, metadata={"actor": "bob", "till": "3"})
    await store.append("door-1", [Shut(), own], metadata=given)
    assert await metadata_of(store) == [
        Metadata(actor="ann", traceparent="00-1", extra={"shop": "7"}),
        Metadata(actor="bob", traceparent="00-1", extra={"shop": "7", "till": "3"}),
    ]


async def test_inside_of_a_saga_its_ids_are_filled_in(store: EventStore) -> None:
    token = SAGA.set(SagaContext("s-1", "trip", "flight", "c-1", "s-1:1:flight"))
    try:
        await store.append("door-1", [Shut(), NewEvent("a", 1, metadata={"causation_id": "mine"})])
    finally:
        SAGA.reset(token)
    assert await metadata_of(store) == [
        Metadata(correlation_id="c-1", causation_id="s-1:1:flight", saga_id="s-1"),
        Metadata(correlation_id="c-1", causation_id="mine", saga_id="s-1"),
    ]


async def test_inside_of_a_handler_the_event_is_the_cause(store: EventStore) -> None:
    await store.append("door-1", NewEvent("a", 1, id="root"))
    await store.append("door-1", NewEvent("a", 2, id="child", metadata={"correlation_id": "c"}))
    for handled in await everything(store.read("door-1")):
        token = CURRENT_EVENT.set(handled)
        try:
            await store.append("door-2", Shut())
        finally:
            CURRENT_EVENT.reset(token)
    assert await metadata_of(store, "door-2") == [
        Metadata(correlation_id="root", causation_id="root"),
        Metadata(correlation_id="c", causation_id="child"),
    ]


class SteadyClock:
    def now(self) -> datetime:
        return datetime(2020, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)

    async def sleep_until(self, when: datetime, /) -> None:
        raise AssertionError(when)


async def test_the_time_is_the_clocks(storage: Storage) -> None:
    store = EventStore(storage, clock=SteadyClock())
    await store.append("door-1", Shut())
    (recorded,) = await everything(store.read("door-1"))
    assert recorded.recorded_at == SteadyClock().now()


class Rot13:
    """A codec of a user's: what is stored is JSON that is not the payload's."""

    def __init__(self) -> None:
        self._json = JsonCodec()

    def encode(self, value: Any, what: str) -> bytes:
        return self._json.encode({"secret": self._json.encode(value, what).hex()}, what)

    def decode(self, data: Any, type: Any, what: str) -> Any:  # noqa: A002
        return self._json.decode(bytes.fromhex(self._json.decode(data, Any, what)["secret"]), type, what)


async def test_payloads_go_through_the_codec(storage: Storage) -> None:
    store = EventStore(storage, codec=Rot13())
    await store.append("door-1", [Opened("ann"), NewEvent("store-painted", {"a": 1})])
    assert await data_of(store.read("door-1")) == [Opened("ann"), {"a": 1}]
    (stored,) = await storage.read_stream("door-1", limit=1)
    assert b"ann" not in stored.data
