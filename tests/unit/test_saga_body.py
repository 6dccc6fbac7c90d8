import functools
import typing
from collections.abc import Iterator
from datetime import timedelta

import pytest
from tests.unit.saga_cases import (
    Client,
    Opaque,
    Order,
    Payment,
    agenerator,
    book,
    keyword,
    opaque,
    refused,
    release,
    reserve,
    wants_order,
)

from event_workflow_engine import (
    CompensationContext,
    RetryPolicy,
    Saga,
    SagaStep,
    Signal,
    StepContext,
    run_saga,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.context import RUNTIME
from event_workflow_engine.errors import DefinitionError, OutsideSagaError
from event_workflow_engine.saga import StepSpec

if typing.TYPE_CHECKING:
    from decimal import Decimal as OutOfReach


@saga("approved", version=2, timeout=60, on_failure="cancel", on_exception="unknown", settle_timeout=5)
async def approved(order: Order) -> Payment:
    """Its text."""
    return Payment(order.id)


@saga("bare")
async def bare() -> None: ...


class Recorder:
    """A runtime that notes what it is asked for; the real one is the runner's."""

    def __init__(self) -> None:
        self.calls: list[tuple[typing.Any, ...]] = []

    async def _done(self) -> None: ...

    def step(self, fn: typing.Any, args: typing.Any, spec: typing.Any, key: str | None, /) -> typing.Any:
        self.calls.append((fn, args, spec, key))
        return self._done()

    def sleep(self, seconds: float, /) -> typing.Any:
        self.calls.append((seconds,))
        return self._done()

    def wait_for_signal(self, name: str, kind: typing.Any, timeout: float | None, /) -> typing.Any:
        self.calls.append((name, kind, timeout))
        return self._done()

    def run_saga(self, saga: typing.Any, input: typing.Any, saga_id: str | None, /) -> typing.Any:  # noqa: A002
        self.calls.append((saga, input, saga_id))
        return self._done()


@pytest.fixture
def body() -> Iterator[Recorder]:
    recorder = Recorder()
    token = RUNTIME.set(recorder)
    yield recorder
    RUNTIME.reset(token)


async def reserve_sku(sku: str, count: int = 1) -> str:
    return ""


async def test_step_is_fixed_when_it_is_called(body: Recorder):
    waiting = step(reserve_sku, "lamp")
    [(fn, args, spec, key)] = body.calls
    assert (fn, args, key) == (reserve_sku, ("lamp",), None)
    assert spec == StepSpec("reserve_sku", reserve_sku, spec.info)
    assert spec.info.result_type is str
    await waiting


async def test_options_of_step_reach_its_spec(body: Recorder):
    retry, undo_retry = RetryPolicy(attempts=3), RetryPolicy(attempts=9)
    await step(
        reserve_sku, "lamp", 2, compensation=release, name="stock", key="line-1", timeout=timedelta(seconds=5), retry=retry,
        compensation_retry=undo_retry, idempotent=False, compensate_failed=True, rejects=(ValueError,),
    )  # fmt: skip
    [(_, args, spec, key)] = body.calls
    assert (args, key, spec.name, spec.timeout, spec.retry) == (("lamp", 2), "line-1", "stock", 5.0, retry)
    assert (spec.idempotent, spec.compensate_failed, spec.rejects) == (False, True, (ValueError,))
    assert (spec.compensation.fn, spec.compensation.retry) == (release, undo_retry)
    assert spec.compensation.info.takes_context


async def test_the_default_name_is_that_of_the_function(body: Recorder):
    await step(functools.partial(reserve_sku, count=3), "lamp")
    await step(Client().charge, None)
    await step(lambda: 3)
    assert [spec.name for _, _, spec, _ in body.calls] == ["reserve_sku", "charge", "<lambda>"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: step(3), "step 'int': the action 3 cannot be called"),
        (lambda: step(reserve_sku), "reserve_sku needs 1 arguments, but step.. was given 0"),
        (lambda: step(book, name="a/b"), "step 'a/b': the name 'a/b' holds '/'"),
        (lambda: step(book, key="a#1"), "key 'a#1' holds '#'"),
        (lambda: step(book, key=""), "key ''"),
        (lambda: step(book, timeout=0), "step 'book': timeout=0"),
        (lambda: step(book, retry=3), "step 'book': retry=3"),
        (lambda: step(book, compensation=3), "step 'book': the compensation 3 cannot be called"),
        (lambda: step(book, compensation=wants_order), "wants a Order"),
        (lambda: step(book, compensation_retry=RetryPolicy()), "compensation_retry is given, but no compensation"),
        (lambda: step(book, compensate_failed=True), "compensate_failed is given, but no compensation"),
        (lambda: step(book, rejects=(3,)), "3 is no exception type"),
        (lambda: step(book, rejects=3), "step 'book': rejects=3: 3 is no exception type"),
        (lambda: step(book, probe=book), "step 'book': probe= is not available in this version"),
        (lambda: step(opaque), "step 'opaque': the result of opaque: Opaque"),
        (lambda: step(agenerator), "generator function"),
        (lambda: step(keyword), "keyword needs key=…"),
        (lambda: step(approved), "run by run_saga"),
        (lambda: sleep("3"), r"sleep\('3'\): seconds or a timedelta"),
        (lambda: sleep(True), "seconds or a timedelta"),
        (lambda: sleep(float("nan")), "seconds or a timedelta"),
        (lambda: wait_for_signal(""), "signal name ''"),
        (lambda: wait_for_signal(3), "signal name 3"),
        (lambda: wait_for_signal("x", timeout=-1), "signal 'x': timeout=-1: not negative"),
        (lambda: run_saga("approved"), r"run_saga\('approved'\): a Saga is needed"),
    ],
)
def test_what_is_wrong_is_raised_at_the_call(body: Recorder, call: typing.Any, text: str):
    with pytest.raises(DefinitionError, match=text):
        call()
    assert body.calls == []


@pytest.mark.parametrize(
    ("delay", "length"), [(3, 3.0), (timedelta(days=2), 172800.0), (-5, 0.0), (timedelta(days=-1), 0.0), (0, 0.0)]
)
async def test_sleep(body: Recorder, delay: typing.Any, length: float):
    await sleep(delay)
    assert body.calls == [(length,)]


async def test_wait_for_signal(body: Recorder):
    await wait_for_signal(Signal("approval", Payment), timeout=timedelta(days=2))
    await wait_for_signal("go")
    await wait_for_signal("go", timeout=0)
    assert body.calls == [("approval", Payment, 172800.0), ("go", typing.Any, None), ("go", typing.Any, 0.0)]


async def test_run_saga(body: Recorder):
    await run_saga(approved, Order("x"), id="child-1")
    await run_saga(bare)
    assert body.calls == [(approved, Order("x"), "child-1"), (bare, None, None)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: step(book), "step"),
        (lambda: sleep(1), "sleep"),
        (lambda: wait_for_signal("x"), "wait_for_signal"),
        (lambda: run_saga(bare), "run_saga"),
    ],
)
def test_outside_of_a_body(call: typing.Any, name: str):
    with pytest.raises(OutsideSagaError, match=rf"{name}\(\) was called outside"):
        call()


def test_signals_are_values():
    assert Signal("a", Payment) == Signal("a", Payment)
    assert len({Signal("a", int), Signal("a", int), Signal("a", str)}) == 2


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [("", int, "signal name ''"), ("a", Opaque, "signal 'a': Opaque"), ("a\n", int, "signal name")],
)
def test_bad_signals(name: str, kind: typing.Any, text: str):
    with pytest.raises(DefinitionError, match=text):
        Signal(name, kind)


# Annotations that only a type checker can resolve: a stored value would come back as something else after a crash


async def result_out_of_reach() -> "OutOfReach": ...
async def input_out_of_reach(ctx: "StepContext[OutOfReach]") -> str:
    return ""


async def undoes_out_of_reach(ctx: "CompensationContext[Order, OutOfReach]") -> None: ...


def test_annotations_out_of_reach_are_refused_where_they_matter(body: Recorder):
    refused(
        "saga 'o', step 'a': the annotation 'OutOfReach' in result_out_of_reach .*TYPE_CHECKING",
        SagaStep("a", result_out_of_reach),
    )
    refused("in input_out_of_reach .*or give the saga its input_type", SagaStep("a", input_out_of_reach))
    assert Saga("o", [SagaStep("a", input_out_of_reach)], input_type=Order).input_type is Order
    assert Saga("o", [SagaStep("a", input_out_of_reach), SagaStep("b", reserve)]).input_type is Order
    # In a list of steps the action says what it returns; a function's compensation stands alone.
    assert Saga("o", [SagaStep("a", reserve, undoes_out_of_reach)]).input_type is Order
    with pytest.raises(DefinitionError, match=r"step 'book': .*in undoes_out_of_reach"):
        step(book, compensation=undoes_out_of_reach)
    with pytest.raises(DefinitionError, match=r"step 'result_out_of_reach': .*in result_out_of_reach"):
        step(result_out_of_reach)
    with pytest.raises(DefinitionError, match=r"saga 'o': .*in result_out_of_reach"):
        saga("o")(result_out_of_reach)

    async def opaque_result(ctx: CompensationContext[Order, Opaque]) -> None: ...

    with pytest.raises(DefinitionError, match="the result that opaque_result undoes: Opaque"):
        step(book, compensation=opaque_result)
