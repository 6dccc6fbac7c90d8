"""Event types and their names, metadata, and the event that is being handled."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from event_workflow_engine.errors import DefinitionError, OutsideSagaError
from event_workflow_engine.events import (
    CURRENT_EVENT,
    NO_METADATA,
    REGISTRY,
    EventRegistry,
    Metadata,
    NewEvent,
    RecordedEvent,
    current_event,
    event,
    upcaster,
)


def class_named(name: str, module: str = "shop") -> type:
    return type(name, (), {"__module__": module, "__qualname__": name})


def test_a_class_gets_its_name_and_stays_itself() -> None:
    @event("events-paid", version=3)
    @dataclass(frozen=True)
    class Paid:
        cents: int

    assert Paid(5).cents == 5
    known = REGISTRY.by_type(Paid)
    assert known is not None
    assert (known.name, known.version, known.python_type) == ("events-paid", 3, Paid)
    assert REGISTRY.by_name("events-paid") is known


def test_every_kind_of_payload_can_be_named() -> None:
    @event("events-struct")
    class S(msgspec.Struct):
        a: int

    @event("events-typed-dict")
    class D(TypedDict):
        a: int

    @event("events-model")
    class M(BaseModel):
        a: int

    assert [REGISTRY.by_name(f"events-{kind}").python_type for kind in ("struct", "typed-dict", "model")] == [S, D, M]  # type: ignore[union-attr]
    assert REGISTRY.names_for(D) == {"events-typed-dict"}
    assert "events-typed-dict" in REGISTRY.names_for(dict)


@pytest.mark.parametrize("name", ["", " ", "a b", "a\tb", "a+b", "a\x00", "\ud800", "x" * 201, None, 7], ids=repr)
def test_bad_names_are_refused(name: Any) -> None:
    registry = EventRegistry()
    with pytest.raises(DefinitionError, match="event name"):
        registry.register(name, 1, class_named("A"))
    with pytest.raises(DefinitionError, match="event name"):
        registry.register_upcaster(name, 1, dict)


@given(
    st.text(
        st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"), exclude_characters="+"),
        min_size=1,
        max_size=200,
    )
)
def test_all_other_names_are_good(name: str) -> None:
    registry = EventRegistry()
    registry.register(name, 1, class_named("A"))
    assert registry.by_name(name) is not None


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "1", 2**31], ids=repr)
def test_bad_versions_are_refused(version: Any) -> None:
    registry = EventRegistry()
    with pytest.raises(DefinitionError, match="must be an integer from 1"):
        registry.register("a", version, class_named("A"))
    with pytest.raises(DefinitionError, match="must be an integer from 1"):
        registry.register_upcaster("a", version, dict)


def test_only_classes_have_names() -> None:
    with pytest.raises(DefinitionError, match="is no class"):
        event("events-function")(lambda: None)  # type: ignore[type-var]


def test_a_name_belongs_to_one_class() -> None:
    registry = EventRegistry()
    registry.register("a", 1, class_named("A"))
    with pytest.raises(DefinitionError, match=r"'a' is taken by shop\.A; shop\.B needs another"):
        registry.register("a", 1, class_named("B"))


def test_a_module_that_is_loaded_again_replaces_its_classes() -> None:
    registry = EventRegistry()
    first, again = class_named("A"), class_named("A")
    registry.register("a", 1, first)
    registry.register("a", 2, again)
    assert registry.by_type(first) is None
    assert registry.by_type(again) == registry.by_name("a")
    assert registry.by_name("a").version == 2  # type: ignore[union-attr]


def test_a_class_is_read_under_all_its_names_and_written_under_the_last() -> None:
    registry, kind = EventRegistry(), class_named("A")
    registry.register("old", 1, kind)
    registry.register("new", 1, kind)
    assert registry.by_type(kind).name == "new"  # type: ignore[union-attr]
    assert registry.by_name("old").python_type is kind  # type: ignore[union-attr]
    assert registry.names_for(kind) == {"old", "new"}


def test_a_base_class_stands_for_what_derives_from_it() -> None:
    registry, base = EventRegistry(), class_named("Base")
    for name in ("a", "b"):
        registry.register(name, 1, type(name, (base,), {}))
    registry.register("c", 1, class_named("C"))
    assert registry.names_for(base) == {"a", "b"}
    assert registry.names_for(object) == {"a", "b", "c"}
    assert registry.names_for(int) == frozenset()


def test_every_registration_is_a_revision() -> None:
    registry = EventRegistry()
    registry.register("a", 1, class_named("A"))
    registry.register_upcaster("a", 1, dict)
    assert registry.revision == 2


def two(data: dict[str, Any]) -> dict[str, Any]:
    return data


def three(data: dict[str, Any]) -> dict[str, Any]:
    return data


def test_upcasters_chain_from_the_stored_version() -> None:
    registry = EventRegistry()
    registry.register_upcaster("a", 2, three)
    registry.register_upcaster("a", 1, two)
    assert registry.upcast_chain("a", 1) == [two, three]
    assert registry.upcast_chain("a", 2) == [three]
    assert registry.upcast_chain("a", 3) == []
    assert registry.upcast_chain("b", 1) == []


def test_a_version_has_one_upcaster() -> None:
    registry = EventRegistry()
    registry.register_upcaster("a", 1, two)
    registry.register_upcaster("a", 1, two)
    with pytest.raises(DefinitionError, match="has an upcaster from version 1 already"):
        registry.register_upcaster("a", 1, three)


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    @upcaster("events-upcast", from_version=1)
    def add(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "b": 2}

    assert add({"a": 1}) == {"a": 1, "b": 2}
    assert REGISTRY.upcast_chain("events-upcast", 1) == [add]


def test_the_fingerprint_changes_with_whatever_changes_how_payloads_are_read() -> None:
    def made(*, version: int = 1, upcasters: tuple[Any, ...] = (), others: bool = False) -> str:
        registry = EventRegistry()
        registry.register("a", version, class_named("A"))
        for n, fn in enumerate(upcasters, start=1):
            registry.register_upcaster("a", n, fn)
        if others:
            registry.register("b", 5, class_named("B"))
        return registry.fingerprint(["a"])

    assert made() == made(others=True)
    assert len({made(), made(version=2), made(version=2, upcasters=(two,)), made(version=2, upcasters=(three,))}) == 4
    assert EventRegistry().fingerprint([]) == ""


# -- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_takes_known_fields_and_puts_the_rest_into_extra() -> None:
    made = Metadata.of({"actor": "ann", "saga_id": None, "shop": 7, "extra": {"till": "3"}})
    assert made == Metadata(actor="ann", extra={"till": "3", "shop": "7"})


@pytest.mark.parametrize(
    "values", [{"actor": 7}, {"correlation_id": b"x"}, {"extra": "text"}, ["actor"], "actor"], ids=repr
)
def test_bad_metadata_is_refused(values: Any) -> None:
    with pytest.raises(DefinitionError, match="an event's metadata"):
        Metadata.of(values)


def test_metadata_over_other_metadata_fills_its_gaps() -> None:
    above = Metadata(actor="ann", extra={"a": "1", "b": "1"})
    below = Metadata(actor="bob", saga_id="s", extra={"b": "2", "c": "2"})
    assert above.over(below) == Metadata(actor="ann", saga_id="s", extra={"a": "1", "b": "1", "c": "2"})


def test_a_new_event_has_a_name_and_data_and_the_rest_by_keyword() -> None:
    made = NewEvent("a", {"b": 1})
    assert (made.type, made.data, made.id, made.version, made.metadata) == ("a", {"b": 1}, None, 1, None)
    with pytest.raises(TypeError):
        NewEvent("a", {}, "id")  # type: ignore[misc]


# -- the event that is being handled ---------------------------------------------------------------------------------


def recorded(event_id: str) -> RecordedEvent[Any]:
    return RecordedEvent(event_id, "a", None, "s", 1, 1, datetime(2026, 1, 1, tzinfo=UTC), NO_METADATA)


def test_outside_of_a_handler_there_is_no_current_event() -> None:
    with pytest.raises(OutsideSagaError, match="current_event"):
        current_event()


def test_the_current_event_is_what_was_set() -> None:
    token = CURRENT_EVENT.set(recorded("1"))
    try:
        assert current_event().id == "1"
    finally:
        CURRENT_EVENT.reset(token)


def test_a_maker_is_asked_each_time_since_the_fold_goes_on() -> None:
    ids = iter("123")
    token = CURRENT_EVENT.set(lambda: recorded(next(ids)))
    try:
        assert [current_event().id for _ in range(3)] == ["1", "2", "3"]
    finally:
        CURRENT_EVENT.reset(token)


def test_a_recorded_event_is_frozen() -> None:
    with pytest.raises(AttributeError):
        recorded("1").id = "2"  # type: ignore[misc]
