"""From records to events and back: upcasters, packed records, and what cannot be read."""

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NotRequired, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from event_workflow_engine import history as h
from event_workflow_engine.codecs import JSON, Raw
from event_workflow_engine.errors import DecodeError, DefinitionError, EncodeError, NotRegisteredError
from event_workflow_engine.events import EventRegistry, Metadata, NewEvent
from event_workflow_engine.serialization import (
    EventCursor,
    EventSerializer,
    category_of,
    committed,
    is_packed,
    unpack,
)
from event_workflow_engine.storage.port import Append, Appended, NewRecord, Record, Unit, Written


@dataclass(frozen=True)
class Paid:
    order: str
    cents: int
    at: datetime | None = None


class Sent(msgspec.Struct, frozen=True):
    order: str


class Noted(TypedDict):
    text: str
    by: NotRequired[str]


class Rated(BaseModel):
    stars: int


@dataclass
class Impatient:
    cents: int


def made() -> EventSerializer:
    registry = EventRegistry()
    registry.register("paid", 1, Paid)
    registry.register("sent", 1, Sent)
    registry.register("noted", 1, Noted)
    registry.register("rated", 1, Rated)
    return EventSerializer(JSON, registry)


def record(kind: str, data: bytes, *, schema: int = 1, metadata: bytes = b"", stream: str = "order-1") -> Record:
    return Record(7, stream, 3, 1, "e-1", kind, schema, data, metadata, 1_000_000)


# -- payloads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", [Paid("o", 5), Paid("o", 5, datetime(2026, 1, 1, tzinfo=UTC)), Sent("o"), Rated(stars=4)], ids=repr
)
def test_registered_payloads_come_back_typed(event: Any) -> None:
    serializer = made()
    new, payload = serializer.write(event)
    assert payload == event
    assert serializer.payload(record(new.type, new.data)) == event


def test_a_typed_dict_is_written_by_name_and_checked_when_read() -> None:
    serializer = made()
    new, payload = serializer.write(NewEvent("noted", Noted(text="x", by="ann")))
    assert payload == {"text": "x", "by": "ann"}
    assert serializer.payload(record("noted", new.data)) == {"text": "x", "by": "ann"}
    with pytest.raises(DecodeError, match="text"):
        serializer.payload(record("noted", b'{"by":"ann"}'))


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.integers(0, 9) | st.none()))
def test_unregistered_payloads_come_back_plain(data: dict[str, Any]) -> None:
    serializer = made()
    new, payload = serializer.write(NewEvent("whatever", data))
    assert payload == data
    assert serializer.payload(record("whatever", new.data)) == data


def test_an_event_has_all_that_is_stored() -> None:
    event = made().event(record("paid", b'{"order":"o","cents":5}', metadata=b'{"actor":"ann","extra":{"a":"b"}}'))
    assert (event.id, event.type, event.stream, event.version, event.position) == ("e-1", "paid", "order-1", 3, 7)
    assert event.data == Paid("o", 5)
    assert event.recorded_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert event.metadata == Metadata(actor="ann", extra={"a": "b"})


def test_a_type_that_is_registered_later_counts_from_then_on() -> None:
    serializer = made()
    stored = record("late", b'{"cents":5}')
    assert serializer.payload(stored) == {"cents": 5}
    serializer.registry.register("late", 1, Impatient)
    assert serializer.payload(stored) == Impatient(5)
    with pytest.raises(NotRegisteredError):
        serializer.write(Noted(text="x"))


@given(st.binary(max_size=40), st.sampled_from(["paid", "sent", "noted", "rated", "whatever"]), st.binary(max_size=20))
def test_fuzz_stored_bytes_give_an_event_or_a_typed_error(data: bytes, kind: str, metadata: bytes) -> None:
    try:
        assert made().event(record(kind, data, metadata=metadata)).type == kind
    except DecodeError as error:
        message = str(error)
        assert all(part in message for part in ("e-1", "order-1", "version 3"))


# -- upcasters ---------------------------------------------------------------------------------------------------------


def with_chain(version: int, **steps: Any) -> EventSerializer:
    """`Paid` registered at `version`, with upcasters from v1, v2, …"""
    registry = EventRegistry()
    registry.register("paid", version, Paid)
    for name, step in steps.items():
        registry.register_upcaster("paid", int(name[1:]), step)
    return EventSerializer(JSON, registry)


def from_euros(data: dict[str, Any]) -> dict[str, Any]:
    return {"order": data["order"], "cents": data["euros"] * 100}


def rename_order(data: dict[str, Any]) -> dict[str, Any]:
    return {"order": data["id"], "euros": data["euros"]}


def test_old_payloads_go_through_every_step_from_their_version() -> None:
    serializer = with_chain(3, v1=rename_order, v2=from_euros)
    assert serializer.payload(record("paid", b'{"id":"o","euros":5}', schema=1)) == Paid("o", 500)
    assert serializer.payload(record("paid", b'{"order":"o","euros":5}', schema=2)) == Paid("o", 500)
    assert serializer.payload(record("paid", b'{"order":"o","cents":5}', schema=3)) == Paid("o", 5)


def test_what_an_upcaster_returns_may_hold_rich_values() -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    serializer = with_chain(2, v1=lambda data: {**data, "at": when})
    assert serializer.payload(record("paid", b'{"order":"o","cents":5}')) == Paid("o", 5, when)


def test_steps_beyond_the_registered_version_are_not_taken() -> None:
    serializer = with_chain(1, v1=from_euros)
    assert serializer.payload(record("paid", b'{"order":"o","cents":5}')) == Paid("o", 5)


def test_plain_payloads_go_to_the_end_of_their_chain() -> None:
    registry = EventRegistry()
    registry.register_upcaster("paid", 1, rename_order)
    registry.register_upcaster("paid", 2, from_euros)
    serializer = EventSerializer(JSON, registry)
    assert serializer.payload(record("paid", b'{"id":"o","euros":5}')) == {"order": "o", "cents": 500}


def test_a_missing_link_names_the_step_to_add() -> None:
    for steps in ({}, {"v1": rename_order}, {"v2": from_euros}):
        serializer = with_chain(3, **steps)
        at = 2 if "v1" in steps else 1
        with pytest.raises(DecodeError, match=rf"add one with @upcaster\('paid', from_version={at}\)"):
            serializer.payload(record("paid", b'{"id":"o","euros":5}'))


def test_a_payload_from_the_future_asks_for_an_upgrade() -> None:
    with pytest.raises(DecodeError, match=r"schema version 4, but version 2 of 'paid' is registered.*upgrade"):
        with_chain(2).payload(record("paid", b"{}", schema=4))


def test_an_upcaster_that_raises_is_a_decode_error_with_its_cause() -> None:
    with pytest.raises(DecodeError, match=r"event 'e-1' \(paid\), version 3 of stream 'order-1'.*KeyError") as error:
        with_chain(2, v1=from_euros).payload(record("paid", b'{"order":"o"}'))
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("bad", [None, [], 5], ids=repr)
def test_an_upcaster_must_return_a_dict(bad: Any) -> None:
    with pytest.raises(DecodeError, match="not a dict"):
        with_chain(2, v1=lambda _: bad).payload(record("paid", b"{}"))
    with pytest.raises(DecodeError, match="takes and returns a dict"):
        with_chain(3, v1=lambda _: bad, v2=from_euros).payload(record("paid", b"{}"))


def test_a_payload_that_is_no_dict_has_nothing_to_upcast() -> None:
    with pytest.raises(DecodeError, match="but there is list"):
        with_chain(2, v1=from_euros).payload(record("paid", b"[]"))


# -- writing -----------------------------------------------------------------------------------------------------------


def test_what_is_not_registered_is_refused_with_the_remedy() -> None:
    with pytest.raises(NotRegisteredError, match=r'Impatient is not registered.*@event\("its-name"\).*NewEvent'):
        made().write(Impatient(5))
    with pytest.raises(NotRegisteredError, match=r'dict is not registered as an event: wrap it: NewEvent\("its-name"'):
        made().write({"a": 1})


def test_what_could_not_be_read_back_is_never_written() -> None:
    with pytest.raises(EncodeError, match=r"event 'paid': .*Paid could not be read back .*cents"):
        made().write(Paid("o", "5"))  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="could not be read back"):
        made().write(NewEvent("paid", {"order": "o"}))
    with pytest.raises(EncodeError, match="no upcaster"):
        with_chain(3).write(NewEvent("paid", {"order": "o", "cents": 5}, version=1))


def test_what_is_no_json_is_never_written() -> None:
    with pytest.raises(EncodeError, match=r"event 'paid': builtins\.object at order"):
        made().write(Paid(object(), 5))  # type: ignore[arg-type]


def test_an_old_payload_may_be_written_by_name() -> None:
    new, payload = with_chain(2, v1=from_euros).write(NewEvent("paid", {"order": "o", "euros": 5}, version=1))
    assert (new.schema, payload) == (1, Paid("o", 500))


def test_an_instance_is_written_at_its_own_version_whatever_its_wrapper_says_not() -> None:
    serializer = with_chain(2, v1=from_euros)
    assert serializer.write(NewEvent("paid", Paid("o", 5), id="own"))[0].schema == 2
    assert serializer.write(NewEvent("paid", Paid("o", 5), version=2))[0].schema == 2
    with pytest.raises(DefinitionError, match="which is version 2"):
        serializer.write(NewEvent("paid", Paid("o", 5), version=3))
    with pytest.raises(DefinitionError, match="holds a Paid, which is registered as 'paid'"):
        serializer.write(NewEvent("refunded", Paid("o", 5)))


@pytest.mark.parametrize(
    "event",
    [
        NewEvent("", {}),
        NewEvent("a b", {}),
        NewEvent("a", {}, id=""),
        NewEvent("a", {}, id="x" * 401),
        NewEvent("a", {}, id="a\nb"),
        NewEvent("a", {}, id=7),  # type: ignore[arg-type]
        NewEvent("a", {}, version=0),
        NewEvent("a", {}, version=True),
        NewEvent("saga-completed", {}),
    ],
    ids=repr,
)
def test_a_new_event_that_is_wrong_in_itself_is_refused(event: NewEvent) -> None:
    with pytest.raises(DefinitionError):
        made().write(event)


def test_the_engines_own_facts_are_not_for_others() -> None:
    with pytest.raises(DefinitionError, match="only the engine writes"):
        EventSerializer().write(h.SagaCompleted())


def test_an_event_that_is_a_tuple_is_one_event() -> None:
    from typing import NamedTuple

    class Moved(NamedTuple):
        x: int
        y: int

    serializer = made()
    serializer.registry.register("moved", 1, Moved)
    assert serializer.listed(Moved(1, 2)) == (Moved(1, 2),)
    assert serializer.listed((Moved(1, 2),)) == (Moved(1, 2),)
    assert serializer.write(Moved(1, 2))[1] == Moved(1, 2)


def test_one_event_or_several() -> None:
    one = Paid("o", 5)
    for several in ([one, one], (one, one), deque([one, one])):
        assert list(made().listed(several)) == [one, one]
    for single in (one, Rated(stars=1), NewEvent("a", []), "text", b"bytes", {"a": 1}, None):
        assert list(made().listed(single)) == [single]


# -- packed records ----------------------------------------------------------------------------------------------------

FACTS = [
    h.StepSucceeded("a", Raw(b'{"x":1}')),
    h.StepStarted("b"),
    h.TimerSet("t", 5),
]


def packed(facts: list[Any], *, stream: str = "saga-1") -> Record:
    kinds = "+".join(sorted({str(type(fact).__struct_config__.tag) for fact in facts}))
    return Record(10, stream, 6, len(facts), "u", kinds, 1, h.encode_facts(facts), b'{"actor":"w"}', 5)


def test_a_packed_record_comes_apart_into_its_events() -> None:
    events = EventSerializer().events(packed(FACTS))
    assert [event.id for event in events] == ["u", "u:1", "u:2"]
    assert [event.type for event in events] == ["step-succeeded", "step-started", "timer-set"]
    assert [(event.version, event.position) for event in events] == [(4, 8), (5, 9), (6, 10)]
    assert {event.metadata.actor for event in events} == {"w"}
    assert bytes(events[0].data.result) == b'{"x":1}'
    assert [event.data for event in events[1:]] == FACTS[1:]


def test_a_saga_streams_single_fact_is_packed_too() -> None:
    (event,) = EventSerializer().events(packed([h.SagaPaused("lunch")]))
    assert (event.id, event.version, event.position, event.data) == ("u", 6, 10, h.SagaPaused("lunch"))
    (event,) = EventSerializer().events(packed([h.SignalSent("s")], stream="inbox-1"))
    assert event.type == "signal-sent"
    assert not is_packed(record("paid", b"{}", stream="sagas-1"))


def test_a_fact_of_a_newer_library_comes_back_plain() -> None:
    stored = Record(
        2, "saga-1", 2, 2, "u", "x", 1, b'[{"t":"step-started","step":"a"},{"t":"from-the-future","n":1}]', b"", 0
    )
    first, second = EventSerializer().events(stored)
    assert first.data == h.StepStarted("a")
    assert second.data == {"t": "from-the-future", "n": 1}


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"[1]", b"[{}]", b'[{"t":1}]', b'[{"t":"step-started"}', b"\xff", b"[" * 100_000],
    ids=lambda d: repr(d[:20]),
)
def test_a_packed_record_that_holds_something_else_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="'saga-1'"):
        unpack(Record(1, "saga-1", 1, 1, "u", "x", 1, data, b"", 0))


@given(st.binary(max_size=60))
def test_fuzz_packed_records_give_events_or_a_typed_error(data: bytes) -> None:
    try:
        EventSerializer().events(Record(2, "saga-1", 2, 2, "u", "x", 1, data, b"", 0))
    except DecodeError as error:
        message = str(error)
        assert "'saga-1'" in message


def test_damaged_metadata_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="its metadata cannot be read"):
        made().event(record("sent", b'{"order":"o"}', metadata=b'{"actor":7}'))


def test_a_commit_hook_sees_records_as_they_stand_in_the_log() -> None:
    first, second = NewRecord("a", "x", b"1", 1, b"{}"), NewRecord("b", "y+z", b"2", 2, b"", 3)
    unit = Unit(
        "a",
        99,
        (Append("s-1", (first, second), 4), Append("s-2", (), 0), Append("s-3", (NewRecord("c", "w", b"3"),))),
    )
    written = Written("a", (Appended("s-1", 8, 24, 4), Appended("s-3", 1, 25, 1)))
    assert committed(unit, written) == [
        Record(21, "s-1", 5, 1, "a", "x", 1, b"1", b"{}", 99),
        Record(24, "s-1", 8, 3, "b", "y+z", 2, b"2", b"", 99),
        Record(25, "s-3", 1, 1, "c", "w", 1, b"3", b"", 99),
    ]


def test_a_cursor_makes_the_event_that_the_fold_is_at_once() -> None:
    cursor = EventCursor(made())
    first, second = record("sent", b'{"order":"a"}'), record("sent", b'{"order":"b"}')
    cursor.record = first
    event = cursor()
    assert event.data == Sent("a")
    assert cursor() is event
    cursor.record = second
    assert cursor().data == Sent("b")


def test_a_category_ends_at_the_first_dash() -> None:
    assert [category_of(name) for name in ("order-1-2", "order", "-1", "saga-x")] == ["order", "order", "", "saga"]
