import functools
import inspect
import shutil
import typing

import pytest
from tests.unit.saga_cases import Client, Opaque, Order, Payment, agenerator, book, cancel, keyword

from event_workflow_engine import (
    Saga,
    SagaStep,
    saga,
)
from event_workflow_engine.errors import DefinitionError


@saga("approved", version=2, timeout=60, on_failure="cancel", on_exception="unknown", settle_timeout=5)
async def approved(order: Order) -> Payment:
    """Its text."""
    return Payment(order.id)


@saga("bare")
async def bare() -> None: ...


def test_a_function_becomes_a_saga():
    assert isinstance(approved, Saga)
    assert (approved.name, approved.version, approved.timeout, approved.settle_timeout) == ("approved", 2, 60.0, 5.0)
    assert (approved.on_failure, approved.on_exception) == ("cancel", "unknown")
    assert (approved.input_type, approved.output_type, approved.takes_input) == (Order, Payment, True)
    assert (approved.steps, dict(approved.specs), dict(approved.by_action), approved.ordered) == ((), {}, {}, False)
    assert inspect.iscoroutinefunction(approved.fn)
    assert approved.__doc__ == "Its text."
    assert repr(approved) == "<Saga 'approved' version 2: function approved>"


def test_a_function_without_input():
    assert (bare.input_type, bare.output_type, bare.takes_input) == (type(None), type(None), False)


def test_a_saga_is_not_called():
    for made in (approved, Saga("o", [SagaStep("a", book)])):
        with pytest.raises(DefinitionError, match=r"is not called: await engine.execute.*run_saga\(saga, input\)"):
            made(Order("x"))  # type: ignore[operator]


def test_unannotated_functions_take_and_give_anything():
    @saga("u")
    async def fn(x): ...  # noqa: ANN001, ANN202

    assert (fn.input_type, fn.output_type) == (typing.Any, typing.Any)


async def too_many(a: int, b: int) -> None: ...
async def default(a: int = 1) -> None: ...
def no_coroutine(a: int) -> None: ...
async def unreadable(a: Opaque) -> None: ...
async def unreadable_result() -> Order | Payment: ...


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (too_many, "too_many takes more than one parameter"),
        (keyword, "keyword takes more than one parameter"),
        (default, "default has a default"),
        (no_coroutine, "no async function: write async def no_coroutine"),
        (agenerator, "agenerator is no async function"),
        (Client().charge, "charge is no async function"),
        (functools.partial(too_many, 1), "too_many is no async function"),
        (3, "not for 3"),
        (unreadable, "the input of unreadable: Opaque"),
        (unreadable_result, "the result of unreadable_result: .*more than one"),
    ],
)
def test_functions_that_are_no_sagas(fn: typing.Any, text: str):
    with pytest.raises(DefinitionError, match=f"saga 'o': .*{text}"):
        saga("o")(fn)


def test_the_decorator_needs_a_name():
    with pytest.raises(DefinitionError, match=r'write @saga\("no_coroutine"\)'):
        saga(no_coroutine)  # type: ignore[arg-type]


# Compensations of saga functions


HERE = cancel.__module__


def test_compensations_are_found_by_name_in_the_module_and_one_level_down():
    for fn, name in ((cancel, f"{HERE}:cancel"), (shutil.rmtree, "shutil:rmtree")):
        assert approved.compensation_name(fn) == name
        assert approved.compensation_name(fn) == name
        assert approved.find_compensation(name) is fn
    assert approved.find_compensation(f"{HERE}:none") is None


def test_compensations_from_elsewhere_are_registered():
    from os.path import join

    with pytest.raises(DefinitionError, match=r"saga 'bare', compensation join: .*register_compensation\(join\)"):
        bare.compensation_name(join)
    assert bare.register_compensation(join) is join
    assert bare.find_compensation(bare.compensation_name(join)) is join


def test_what_cannot_be_found_again_is_refused():
    def closure() -> None: ...

    for fn in (lambda: 1, closure, functools.partial(cancel), Client().charge):
        with pytest.raises(DefinitionError, match="saga 'approved', compensation"):
            approved.compensation_name(fn)
        with pytest.raises(DefinitionError, match="saga 'approved'"):
            approved.register_compensation(fn)


def test_a_name_that_leads_to_another_function_is_refused():
    twin = type(cancel)(cancel.__code__, cancel.__globals__, "cancel")
    twin.__qualname__ = "cancel"
    with pytest.raises(DefinitionError, match=f"{HERE}:cancel leads to another function"):
        approved.compensation_name(twin)


def test_a_decorated_function_looks_in_its_own_module():
    def decorate(fn: typing.Any) -> typing.Any:
        # A wrapper from elsewhere has the globals of its own module.
        scope: dict[str, typing.Any] = {"fn": fn}
        code = compile("async def wrapper(*args):\n    return await fn(*args)", "elsewhere", "exec")
        exec(code, scope)
        return functools.wraps(fn)(scope["wrapper"])

    @saga("d")
    @decorate
    async def fn(order: Order) -> Payment: ...  # type: ignore[empty-body]

    assert fn.compensation_name(cancel) == f"{HERE}:cancel"
    assert (fn.input_type, fn.output_type) == (Order, Payment)


def test_a_declarative_saga_knows_only_registered_ones():
    made = Saga("o", [SagaStep("a", book)])
    assert made.find_compensation(f"{HERE}:cancel") is None
    made.register_compensation(cancel)
    assert made.compensation_name(cancel) == f"{HERE}:cancel"
