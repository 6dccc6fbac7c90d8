"""What type checkers are to make of definitions, beside the contract's programs. Checked, never run."""

from collections.abc import Coroutine
from functools import partial
from typing import Any, assert_type
from uuid import UUID, uuid4

from approvals import APPROVAL, Approval, approved_order
from orders import Order, Payment, charge_card, fulfil, refund_card, release_stock, reserve_stock, ship

from event_workflow_engine import (
    CompensationContext,
    Saga,
    SagaHandle,
    SagaStep,
    Signal,
    StepContext,
    StepResults,
    WorkflowEngine,
    run_saga,
    saga,
    step,
    wait_for_signal,
)


class BigOrder(Order):
    pass


def nothing() -> str:
    return ""


async def anothing() -> str:
    return ""


def undo() -> None: ...
async def undo_any(ctx: CompensationContext[Order, Any]) -> None: ...
async def undo_big(ctx: CompensationContext[BigOrder, str]) -> None: ...
def undo_whatever(ctx: StepContext[object]) -> None: ...
async def big(ctx: StepContext[BigOrder]) -> int:
    return 1


async def pair(a: int, b: str = "") -> tuple[int, str]:
    return a, b


def with_keyword(a: int, *, key: str) -> bytes:
    return b""


def steps() -> None:
    assert_type(SagaStep("a", nothing), SagaStep[object])
    assert_type(SagaStep("a", anothing, undo, timeout=3), SagaStep[object])
    assert_type(SagaStep("a", reserve_stock), SagaStep[Order])
    assert_type(SagaStep("a", reserve_stock, undo), SagaStep[Order])
    assert_type(SagaStep("a", reserve_stock, release_stock, after="x"), SagaStep[Order])
    assert_type(SagaStep("a", charge_card, refund_card, after=(ship, "x")), SagaStep[Order])
    assert_type(SagaStep("a", charge_card, undo_any), SagaStep[Order])
    assert_type(SagaStep("a", charge_card, undo_whatever), SagaStep[Order])
    assert_type(SagaStep("a", nothing, release_stock), SagaStep[Order])
    assert_type(SagaStep("a", anothing, release_stock), SagaStep[Order])
    assert_type(SagaStep("a", reserve_stock, undo_big), SagaStep[BigOrder])


def sagas() -> None:
    assert_type(Saga("s", [SagaStep("a", nothing)]), Saga[object, StepResults])
    # pyright finds the common input of these, mypy leaves it open.
    mixed: Saga[Order, StepResults] = Saga("s", [SagaStep("a", nothing), SagaStep("b", charge_card)], sequential=True)
    narrow: Saga[BigOrder, StepResults] = Saga("s", [SagaStep("a", charge_card), SagaStep("b", big)], timeout=5)
    assert mixed
    assert narrow
    assert_type(
        Saga("s", [SagaStep("a", nothing), SagaStep("b", big)], input_type=BigOrder), Saga[BigOrder, StepResults]
    )
    assert_type(Saga("s", [SagaStep("a", nothing)], input_type=Order), Saga[Order, StepResults])
    assert_type(Saga("s", [SagaStep("a", charge_card)], input_type=BigOrder), Saga[BigOrder, StepResults])
    assert_type(fulfil, Saga[Order, StepResults])
    assert_type(approved_order, Saga[Order, str])
    wider: Saga[BigOrder, object] = approved_order
    assert wider


@saga("no-input")
async def no_input() -> int:
    return 1


assert_type(no_input, Saga[None, int])


async def body() -> None:
    assert_type(await step(pair, 1, "x"), tuple[int, str])
    assert_type(await step(pair, 1), tuple[int, str])
    assert_type(await step(nothing), str)
    assert_type(await step(uuid4), UUID)
    assert_type(await step(partial(with_keyword, key="x"), 1, name="n", key="k"), bytes)
    assert_type(await step(anothing, compensation=undo, timeout=5, retry=None), str)
    waiting: Coroutine[Any, Any, str] = step(anothing)
    assert_type(await waiting, str)
    assert_type(await wait_for_signal(APPROVAL, timeout=5), Approval)
    assert_type(await wait_for_signal(Signal("n", int)), int)
    assert_type(await run_saga(approved_order, Order("o", "s", 1)), str)
    assert_type(await run_saga(no_input), int)
    assert_type((await run_saga(fulfil, Order("o", "s", 1)))[charge_card], Payment)


async def engine(engine: WorkflowEngine, order: Order) -> None:
    assert_type(await engine.execute(no_input), int)
    assert_type(await engine.execute(approved_order, order), str)
    assert_type((await engine.execute(fulfil, order))[ship], str)
    assert_type(await engine.start(approved_order, order), SagaHandle[str])
    assert_type(await (await engine.start(no_input)).result(), int)
    assert_type(await engine.execute("by-name", 3), Any)
    assert_type(engine.handle("x", approved_order), SagaHandle[str])
