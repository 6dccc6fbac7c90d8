import asyncio
import functools
import gc
import shutil
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from uuid import UUID, uuid4

import msgspec
import pytest
from pydantic import BaseModel

from event_workflow_engine import CompensationContext, StepContext
from event_workflow_engine.callables import (
    CallInfo,
    call_info,
    called,
    check_readable,
    find_named,
    lasting_name,
    readable,
)
from event_workflow_engine.errors import DefinitionError

if typing.TYPE_CHECKING:
    from decimal import Decimal as NotThereAtRunTime

T = typing.TypeVar("T")


@dataclass
class Order:
    id: str


@dataclass
class Payment:
    id: str


class Model(BaseModel):
    id: str


class Opaque:
    pass


def nothing() -> None: ...
async def anothing() -> None: ...
def context(ctx: StepContext[Order]) -> Payment: ...
async def acontext(ctx: StepContext[Order]) -> Payment: ...
def undo(ctx: CompensationContext[Order, Payment]) -> None: ...
def bare(ctx: StepContext) -> None: ...
def optional(x: int = 1) -> int: ...
def positional_only(x, /): ...  # noqa: ANN001
def variadic(*args: int, **kwargs: int) -> int: ...
def keyword_only(*, key: str) -> None: ...
def keyword_optional(*, key: str = "") -> None: ...
def two(a: int, b: str, c: float = 1.0) -> None: ...
def promised() -> Awaitable[Payment]: ...
def a_future() -> asyncio.Future[int]: ...
def a_coroutine(x: int) -> Coroutine[typing.Any, typing.Any, str]: ...
def any_awaitable() -> Awaitable: ...
def generator():
    yield 1


async def agenerator():
    yield 1


def returns_object() -> object: ...
def returns_typevar(x: T) -> T: ...
def returns_never() -> typing.NoReturn: ...
def returns_literal_string() -> typing.LiteralString: ...
def annotated(ctx: typing.Annotated[StepContext[Order], "x"]) -> typing.Annotated[int, msgspec.Meta(ge=0)]: ...
def half_known(ctx: StepContext[Order]) -> "NotThereAtRunTime": ...


def first_unknown(ctx: "StepContext[NotThereAtRunTime]", y: "NotThereAtRunTime") -> int: ...


class Client:
    def charge(self, cents: int) -> Payment: ...
    async def acharge(self) -> Payment: ...
    @staticmethod
    def refund(ctx: CompensationContext[Order, str]) -> None: ...
    @classmethod
    def make(cls, x: int) -> Payment: ...


class Callables:
    async def __call__(self, ctx: StepContext[Order]) -> Payment: ...


class SyncCallable:
    def __call__(self) -> int: ...


def wrapped(fn: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
    @functools.wraps(fn)
    async def wrapper(*args: typing.Any) -> typing.Any:
        return await fn(*args)

    return wrapper


@pytest.mark.parametrize(
    ("fn", "takes", "is_async", "result"),
    [
        (nothing, False, False, type(None)),
        (anothing, False, True, type(None)),
        (context, True, False, Payment),
        (acontext, True, True, Payment),
        (optional, False, False, int),
        (positional_only, True, False, typing.Any),
        (variadic, False, False, int),
        (two, True, False, type(None)),
        (promised, False, True, Payment),
        (a_future, False, True, int),
        (a_coroutine, True, True, str),
        (any_awaitable, False, True, typing.Any),
        (lambda: 1, False, False, typing.Any),
        (lambda ctx: 1, True, False, typing.Any),
        (Client().charge, True, False, Payment),
        (Client().acharge, False, True, Payment),
        (Client.refund, True, False, type(None)),
        (Client.make, True, False, Payment),
        (Callables(), True, True, Payment),
        (SyncCallable(), False, False, int),
        (functools.partial(acontext, None), False, True, Payment),
        (functools.partial(Client().charge, 5), False, False, Payment),
        (functools.partial(functools.partial(two, 1), b="x"), False, False, type(None)),
        (functools.partial(keyword_only, key="x"), False, False, type(None)),
        (functools.partial(Callables(), None), False, True, Payment),
        (wrapped(acontext), True, True, Payment),
        (Order, True, False, Order),
        (uuid4, False, False, typing.Any),
        (int, False, False, int),
        (len, True, False, typing.Any),
        (returns_object, False, False, typing.Any),
        (returns_typevar, True, False, typing.Any),
        (returns_never, False, False, typing.Any),
        (returns_literal_string, False, False, str),
    ],
)
def test_arity_async_and_result(fn: typing.Any, takes: bool, is_async: bool, result: typing.Any):
    info = call_info(fn)
    assert (info.takes_context, info.is_async, info.result_type) == (takes, is_async, result)
    assert call_info(fn) == info  # the second look, from memory, says the same


@pytest.mark.parametrize(
    ("fn", "wanted", "result"),
    [
        (context, Order, typing.Any),
        (undo, Order, Payment),
        (annotated, Order, typing.Any),
        (bare, typing.Any, typing.Any),
        (two, typing.Any, typing.Any),
        (nothing, typing.Any, typing.Any),
        (Client.refund, Order, str),
        (Callables(), Order, typing.Any),
    ],
)
def test_what_the_context_holds(fn: typing.Any, wanted: typing.Any, result: typing.Any):
    info = call_info(fn)
    assert (info.context_input, info.context_result) == (wanted, result)


def test_annotated_keeps_its_extras():
    assert call_info(annotated).result_type == typing.Annotated[int, msgspec.Meta(ge=0)]


def test_parameters_are_counted():
    assert (call_info(two).required, call_info(two).positional) == (2, 3)
    assert call_info(keyword_only).keyword_only == ("key",)
    assert call_info(keyword_optional).keyword_only == ()
    # What comes after an argument bound by keyword can be given by keyword only.
    bound = call_info(functools.partial(two, a=1))
    assert (bound.required, bound.keyword_only) == (0, ("b",))
    assert call_info(two).first_type is int


def test_generators_are_known():
    assert call_info(generator).yields
    assert call_info(agenerator).yields
    assert not call_info(agenerator).is_async


def test_an_annotation_out_of_reach_is_any_and_says_why():
    def fresh(ctx: StepContext[Order]) -> "NotThereAtRunTime": ...

    for fn in (half_known, fresh):
        info = call_info(fn)
        assert info.result_type is typing.Any
        assert info.context_input is Order  # one bad annotation does not hide the others
        assert "the annotation 'NotThereAtRunTime' in" in info.unresolved_result
        assert "TYPE_CHECKING" in info.unresolved_result
        assert info.unresolved_first == ""
    assert call_info(first_unknown).unresolved_first
    assert call_info(first_unknown).unresolved_result == ""


def test_a_local_class_is_found_where_the_code_mentions_it():
    class Local(msgspec.Struct):
        x: int

    def make() -> "Local":
        return Local(1)

    assert call_info(make).result_type is Local


def test_equal_functions_made_anew_are_known_by_what_is_behind_them():
    first = call_info(Client().charge)
    assert call_info(Client().charge) is first
    first = call_info(functools.partial(two, 1, b="x"))
    assert call_info(functools.partial(two, 2, b="y")) is first
    assert call_info(functools.partial(two, 2)) is not first


def test_functions_are_not_kept_alive():
    big = Order("x")
    gone = weakref.ref(big)

    def closure() -> str:
        return big.id  # noqa: F821 - deleted below

    bound = Client()
    gone_too = weakref.ref(bound)
    call_info(closure)
    call_info(bound.charge)
    call_info(functools.partial(bound.charge, 1))
    del closure, big, bound
    gc.collect()
    assert gone() is None
    assert gone_too() is None


def test_unhashable_objects_can_be_asked():
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

        def __call__(self, ctx: StepContext[Order]) -> int: ...

    assert call_info(Odd()).result_type is int


def test_call_info_is_a_value():
    assert CallInfo() == CallInfo()
    assert call_info(nothing) == CallInfo(result_type=type(None))


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (nothing, "nothing"),
        (functools.partial(functools.partial(two, 1), 2), "two"),
        (Client().charge, "charge"),
        (Callables(), "Callables"),
        (Order, "Order"),
        (lambda: 1, "<lambda>"),
        (3, "int"),
    ],
)
def test_called(fn: typing.Any, name: str):
    assert called(fn) == name


@pytest.mark.parametrize(
    "kind",
    [
        typing.Any, None, type(None), int, str, UUID, list[Order], dict[str, Payment], Order | None, Model, list[Model],
        typing.TypedDict("TD", {"a": int}), tuple[int, Order], typing.Annotated[int, msgspec.Meta(ge=0)],
        typing.Literal["a", "b"], set[int], typing.Annotated[int, {"unhashable": 1}],
    ],
)  # fmt: skip
def test_what_can_be_read_back(kind: typing.Any):
    check_readable(kind, "it")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Order | Payment, "may not contain more than one"),
        (Opaque, "Opaque cannot be read back"),
        (list[Opaque], "Opaque"),
        (dict[str, tuple[int, Opaque]], "Opaque"),
        (Opaque | None, "Opaque"),
        (Iterable[int], "Iterable"),
        (Exception, "Exception"),
        (Callable[[], int], "Callable"),
        (list[typing.Annotated[Opaque, {"unhashable": 1}]], "Opaque"),
    ],
)
def test_what_cannot_be_read_back_is_told_with_the_remedy(kind: typing.Any, why: str):
    with pytest.raises(DefinitionError, match=r"the result of ship: .*dataclass, Struct, TypedDict") as error:
        check_readable(kind, "the result of ship")
    assert why in str(error.value)


def test_readable_leaves_what_says_something():
    assert readable(int) is int
    assert readable(object) is typing.Any
    assert readable(typing.Never) is typing.Any
    assert readable({}) == {}


def test_lasting_names_lead_back():
    for fn in (nothing, Client.refund, shutil.rmtree, len):
        assert find_named(lasting_name(fn), globals() | {"len": len}) is fn
    assert lasting_name(Client.refund).endswith("test_callables:Client.refund")


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (lambda: 1, "a lambda"),
        (wrapped(anothing).__wrapped__.__get__(1), "a bound method"),
        (Client().charge, "a bound method"),
        (Client.make, "a bound method"),
        ([].append, "a bound method"),
        (functools.partial(nothing), "a partial"),
        (Callables(), "an object"),
        (Order, "an object"),
    ],
)
def test_what_has_no_lasting_name(fn: typing.Any, kind: str):
    with pytest.raises(DefinitionError, match=f"is {kind}.*top of a module"):
        lasting_name(fn)


def test_a_closure_has_no_lasting_name():
    def closure() -> None: ...

    with pytest.raises(DefinitionError, match="closure is a function within a function"):
        lasting_name(closure)


def module(name: str, **functions: typing.Any) -> types.ModuleType:
    made = types.ModuleType(name)
    for alias, fn in functions.items():
        setattr(made, alias, fn)
    return made


def named(address: str) -> typing.Any:
    def fn() -> None: ...

    fn.__module__, fn.__qualname__ = address.split(":")
    return fn


def test_find_named_looks_in_the_globals_and_one_level_into_modules():
    here, aliased, inner, reexported = (named(f"{m}:{q}") for m, q in
                                        [("shop", "a"), ("pay", "b"), ("pay", "c"), ("pay.refunds", "d")])  # fmt: skip
    pay = module("pay", c=inner, d=reexported)
    scope = {"a": here, "alias": aliased, "pay": pay, "other": 3}
    assert find_named("shop:a", scope) is here
    assert find_named("pay:b", scope) is aliased
    assert find_named("pay:c", scope) is inner
    assert find_named("pay.refunds:d", scope) is reexported
    assert find_named("pay:unknown", scope) is None
    # Two levels down is out of reach.
    assert find_named("pay:c", {"shop": module("shop", pay=pay)}) is None


def test_find_named_prefers_the_module_that_was_stored():
    mine, theirs = named("shop:undo"), named("pay:undo")
    scope = {"undo": mine, "theirs": theirs}
    assert find_named("pay:undo", scope) is theirs
    assert find_named("shop:undo", scope) is mine


def test_find_named_follows_a_function_that_moved_or_was_the_main_program():
    moved = named("shop.refunds:undo")
    assert find_named("shop:undo", {"undo": moved}) is moved
    assert find_named("__main__:undo", {"undo": moved}) is moved
    assert find_named("shop:undo", {"alias": moved}) is None


def test_find_named_asks_nothing_but_functions():
    class Lazy:
        def __getattr__(self, name: str) -> typing.Any:
            raise RuntimeError("no request is being handled")

    lazy = Lazy()
    assert find_named("shop:undo", {"lazy": lazy, "undo": lazy}) is None
    assert find_named("shop:undo.deeper", {"undo": lazy}) is None


def test_a_closure_over_a_name_that_is_bound_later_can_be_looked_at() -> None:
    async def act() -> int:
        return later

    info = call_info(act)
    later = 1
    assert (info.is_async, info.result_type) == (True, int)
    assert later == 1
