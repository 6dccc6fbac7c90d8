"""The codec: values come back as they were, and what cannot is a typed error."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NotRequired, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from event_workflow_engine import codecs
from event_workflow_engine.codecs import DEEPEST, JSON, Codec, JsonCodec, Raw, digest
from event_workflow_engine.errors import DecodeError, EncodeError


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Line:
    sku: str
    count: int
    note: str | None = None


@dataclass
class Order:
    id: UUID
    lines: list[Line]
    placed: datetime
    total: Decimal
    tags: set[str] = field(default_factory=set)
    blob: bytes = b""
    _private: int = 0
    extra: dict[str, float] = field(default_factory=dict)


class Parcel(msgspec.Struct, frozen=True, tag="parcel"):
    id: int
    stops: tuple[str, ...] = ()
    colour: Colour = Colour.RED


class Address(TypedDict):
    street: str
    number: int
    flat: NotRequired[str]


class Customer(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str = Field(alias="customerName")
    since: datetime
    usual: Line | None = None


class Basket(msgspec.Struct):
    customer: Customer
    order: Order | None = None


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
moments = st.datetimes(timezones=st.just(UTC))
lines = st.builds(Line, texts, st.integers(-(2**63), 2**63 - 1), st.none() | texts)
orders = st.builds(
    Order,
    st.uuids(),
    st.lists(lines, max_size=3),
    moments,
    st.decimals(allow_nan=False, allow_infinity=False),
    st.sets(texts, max_size=3),
    st.binary(max_size=20),
    st.integers(-5, 5),
    st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
parcels = st.builds(Parcel, st.integers(0, 2**40), st.lists(texts, max_size=3).map(tuple))
addresses = st.fixed_dictionaries({"street": texts, "number": st.integers(0, 99)}, optional={"flat": texts})
customers = st.builds(Customer, customerName=texts, since=moments, usual=st.none() | lines)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def came_back(value: Any, kind: Any) -> Any:
    return JSON.decode(JSON.encode(value, "it"), kind, "it")


@given(orders)
def test_dataclasses_come_back(order: Order) -> None:
    assert came_back(order, Order) == order


@given(parcels)
def test_structs_come_back(parcel: Parcel) -> None:
    assert came_back(parcel, Parcel) == parcel


@given(addresses)
def test_typed_dicts_come_back(address: Address) -> None:
    assert came_back(address, Address) == address


@given(customers)
def test_pydantic_models_come_back_strict_and_by_alias(customer: Customer) -> None:
    assert came_back(customer, Customer) == customer


@given(customers, st.none() | orders)
def test_they_come_back_from_within_each_other(customer: Customer, order: Order | None) -> None:
    assert came_back(Basket(customer, order), Basket) == Basket(customer, order)
    assert came_back([customer], list[Customer]) == [customer]


@given(plain)
def test_plain_values_come_back(value: object) -> None:
    assert came_back(value, Any) == value


# Whatever a user may hand over by mistake.
anything = st.recursive(
    st.one_of(
        st.none(),
        st.floats(),
        st.integers(),
        st.text(),
        st.binary(max_size=5),
        st.complex_numbers(),
        st.just(object()),
        st.just(print),
        st.just(Order),
        st.just(int),
        customers,
        st.builds(Line, st.text(), st.floats()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Line, inner, inner),
    ),
    max_leaves=10,
)


@given(anything)
def test_fuzz_encoding_gives_json_or_a_typed_error(value: object) -> None:
    try:
        data = JSON.encode(value, "a payload")
    except EncodeError as error:
        note(str(error))
        return
    assert isinstance(data, bytes)
    json.loads(data)
    assert JSON.encode(JSON.decode(data, Any, "it"), "it") is not None


KINDS = [Any, Line, Order, Parcel, Address, Customer, Basket, int, float, str, list[Line], dict[str, Customer]]


@given(st.binary(max_size=60) | plain.map(msgspec.json.encode), st.sampled_from(KINDS))
def test_fuzz_decoding_gives_a_value_or_a_typed_error(data: bytes, kind: Any) -> None:
    try:
        value = JSON.decode(data, kind, "a payload")
    except DecodeError as error:
        note(str(error))
    else:
        assert JSON.encode(value, "it")


@given(st.data())
def test_fuzz_damaged_json_gives_a_value_or_a_typed_error(data: st.DataObject) -> None:
    encoded = bytearray(JSON.encode(data.draw(orders), "it"))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        JSON.decode(bytes(encoded), Order, "it")


def levels_of(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(levels_of, parts), default=0)


def nested(levels: int, inner: Any = None) -> Any:
    """Lists and objects in turn."""
    for level in range(levels):
        inner = [inner] if level % 2 else {"[{\\": inner}
    return inner


def called_within(calls: int, function: Callable[[], Any]) -> Any:
    return function() if not calls else called_within(calls - 1, function)


def test_what_is_written_is_read_where_the_stack_is_long() -> None:
    value = nested(DEEPEST)
    data = JSON.encode(value, "it")
    assert called_within(300, lambda: JSON.decode(data, Any, "it")) == value


@pytest.mark.parametrize("wide", [0, 1000])
@pytest.mark.parametrize("text", ["", '"]}' * 600, "[{" * 600, "\\" * 7 + "]"])
def test_what_is_too_deep_to_be_read_everywhere_is_not_written(wide: int, text: str) -> None:
    inner = [text, [{}] * wide, {text: text}]
    assert JSON.encode(nested(DEEPEST - 3, inner), "it")
    with pytest.raises(EncodeError, match=r"^it: its JSON has more than 500 levels"):
        JSON.encode(nested(DEEPEST - 2 + (not wide), inner), "it")


nests = st.recursive(
    st.text(alphabet='[]{}"\\\na') | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\\n'), inner, max_size=4),
    max_leaves=30,
)


@given(nests, st.integers(0, 8))
def test_fuzz_levels_are_counted_as_they_are(value: Any, deepest: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(codecs, "DEEPEST", deepest)
        if levels_of(value) > deepest:
            with pytest.raises(EncodeError):
                JSON.encode(value, "it")
        else:
            assert JSON.encode(value, "it")


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"", b"\xff", b'"\\ud800"'],
    ids=["deep list", "deep dict", "long number", "nothing", "no UTF-8", "surrogate"],
)
def test_json_made_to_hurt_is_a_typed_error_or_a_value(data: bytes) -> None:
    with suppress(DecodeError):
        JSON.decode(data, Any, "it")


@pytest.mark.parametrize(
    ("value", "path", "culprit"),
    [
        ({"a": [1, object()]}, "a.1", "builtins.object"),
        (Line("x", lambda: 0), "count", "builtins.function"),  # type: ignore[arg-type]
        ("\ud800", "the top", "builtins.str"),
        ([Parcel(1, (object(),))], "0.stops.0", "builtins.object"),  # type: ignore[arg-type]
        ({"n": [Line("x", 1), Line("y", float("nan"))]}, "n.1.count", "builtins.float"),  # type: ignore[arg-type]
        (float("inf"), "the top", "builtins.float"),
    ],
    ids=["nested", "field", "surrogate", "struct in list", "NaN", "infinity"],
)
def test_an_encode_error_names_the_type_and_the_field(value: object, path: str, culprit: str) -> None:
    with pytest.raises(EncodeError) as error:
        JSON.encode(value, "result of step 'x'")
    assert str(error.value).startswith("result of step 'x': ")
    assert f"at {path} " in str(error.value)
    assert culprit in str(error.value)
    assert error.value.__cause__ is not None


def test_a_value_that_holds_itself_is_a_typed_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(EncodeError, match=r"maximum recursion"):
        JSON.encode(value, "it")


@pytest.mark.parametrize("value", [None, [None], {"a": None, "b": "null"}, "null", Line("null", 1), [Raw(b"null")]])
def test_nothing_is_no_nan(value: object) -> None:
    assert b"null" in JSON.encode(value, "it")


def test_a_decode_error_names_the_type_and_the_place() -> None:
    with pytest.raises(DecodeError, match=r"event 'x': .* does not fit Line: .*\$\.count"):
        JSON.decode(b'{"sku":"a","count":"many"}', Line, "event 'x'")


def test_a_decode_error_says_of_nothing_that_it_was_stored() -> None:
    """What is decoded may be about to be stored, or to be refused."""
    with pytest.raises(DecodeError, match=r"^signal 'go': its JSON does not fit int: Expected `int`, got `str`$"):
        JSON.decode(b'"ahead"', int, "signal 'go'")


def test_what_a_models_own_code_raises_is_a_typed_error() -> None:
    class Sour(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            if value == 7:
                raise KeyError("any error at all")
            return value

    @dataclass
    class Picky:
        n: int

        def __post_init__(self) -> None:
            if self.n == 7:
                raise LookupError("seven")

    for kind in (Sour, Picky):
        assert JSON.decode(b'{"n":1}', kind, "it") == kind(n=1)
        with pytest.raises(DecodeError):
            JSON.decode(b'{"n":7}', kind, "it")


def test_a_type_that_json_cannot_give_is_a_typed_error() -> None:
    class Opaque:
        pass

    with pytest.raises(DecodeError, match=r"Opaque is no type that JSON can be decoded to"):
        JSON.decode(b"{}", Opaque, "it")
    with pytest.raises(DecodeError):
        JSON.decode(b"{}", Iterator[int], "it")


def test_an_annotation_that_cannot_be_hashed_decodes() -> None:
    assert JSON.decode(b"3", Annotated[int, {"unit": "cm"}], "it") == 3


def test_json_that_was_encoded_before_is_carried_as_it_is() -> None:
    assert JSON.encode({"a": Raw(b'{"b": 1}')}, "it") == b'{"a":{"b": 1}}'
    assert JSON.decode(Raw(b"[1]"), list[int], "it") == [1]


def test_the_digest_is_of_the_content_and_not_of_the_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}, "it") == digest({"b": [1, 2], "a": 1}, "it")
    assert digest(Line("a", 1), "it") != digest(Line("a", 2), "it")
    with pytest.raises(EncodeError, match=r"builtins\.object at a"):
        digest({"a": object()}, "it")


def test_the_digest_of_a_set_is_the_same_in_every_process() -> None:
    program = "from event_workflow_engine.codecs import digest; print(digest({str(n) for n in range(50)}, ''))"
    seeds = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert seeds == {digest({str(n) for n in range(50)}, "") + "\n"}


def test_it_is_a_codec() -> None:
    codec: Codec = JsonCodec()
    assert codec.decode(codec.encode(Line("a", 1), "it"), Line, "it") == Line("a", 1)
