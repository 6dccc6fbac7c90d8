"""What ran when the journals of this folder were recorded. It stays as it is: what changes the code of a saga is another version.

Each saga exists once whole and once for each point at which its engine crashed, under a name of its own: `shipping@before-3`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from event_workflow_engine import (
    Aggregate,
    DocumentProjection,
    RetryPolicy,
    Saga,
    SagaStep,
    Signal,
    StepContext,
    current_step,
    event,
    saga,
    sleep,
    step,
    wait_for_signal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

GO = Signal("go", str)
SOON = RetryPolicy(attempts=3, delay=0, jitter=0)
DONE: list[str] = []
"""Keys of what actions did in this process."""


@dataclass
class Order:
    item: str
    cents: int


async def act(ctx: StepContext[Any]) -> str:
    DONE.append(ctx.idempotency_key)
    await asyncio.sleep(0)
    return ctx.step


async def undo() -> None:
    await asyncio.sleep(0)


async def refuse() -> None:
    raise ValueError("refused")


async def fail_once(ctx: StepContext[Any]) -> str:
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return await act(ctx)


async def time_out(ctx: StepContext[Any]) -> None:
    DONE.append(ctx.idempotency_key)
    raise TimeoutError


async def book(what: str) -> str:
    DONE.append(current_step().idempotency_key)
    return what


def shipping(name: str) -> Saga[Any, Any]:
    steps = [SagaStep("a", act, undo), SagaStep("b", fail_once, undo, retry=SOON), SagaStep("c", act, undo)]
    return Saga(name, steps, sequential=True)


def side_by_side(name: str) -> Saga[Any, Any]:
    return Saga(name, [SagaStep(one, act, undo) for one in "abc"])


def refused(name: str) -> Saga[Any, Any]:
    steps = [
        SagaStep("root", act, undo),
        SagaStep("left", act, undo, after="root"),
        SagaStep("right", time_out, undo, after="root"),
        SagaStep("refuse", refuse, after="left"),
    ]
    return Saga(name, steps)


def in_transaction(name: str) -> Saga[Any, Any]:
    steps = [SagaStep("a", act, undo), SagaStep("b", act, transactional=True), SagaStep("c", act, undo)]
    return Saga(name, steps, sequential=True)


def trip(name: str) -> Saga[Any, Any]:
    @saga(name)
    async def body(order: Order) -> list[str]:
        flight, hotel = await asyncio.gather(
            step(book, f"flight {order.item}", compensation=undo), step(book, f"hotel {order.item}", compensation=undo)
        )
        word = await wait_for_signal(GO)
        await sleep(timedelta(milliseconds=1))
        return [flight, hotel, await step(book, word, compensation=undo)]

    return body


def broken_trip(name: str) -> Saga[Any, Any]:
    @saga(name)
    async def body(order: Order) -> None:
        for what in ("flight", "hotel"):
            await step(book, f"{what} {order.item}", compensation=undo, name=what)
        raise ValueError("refused")

    return body


CASES: dict[str, Callable[[str], Saga[Any, Any]]] = {
    "shipping": shipping,
    "side-by-side": side_by_side,
    "refused": refused,
    "in-transaction": in_transaction,
    "trip": trip,
    "broken-trip": broken_trip,
}
ORDER = Order("lamp", 900)


def named(name: str) -> Saga[Any, Any]:
    """The saga of that name."""
    return CASES[name.partition("@")[0]](name)


@event("account-opened")
@dataclass(frozen=True)
class Opened:
    account: str


@event("money-deposited")
@dataclass(frozen=True)
class Deposited:
    account: str
    cents: int


@dataclass
class Account(Aggregate[Opened | Deposited], category="account"):
    cents: int = 0

    def apply(self, happened: Opened | Deposited, /) -> None:
        if isinstance(happened, Deposited):
            self.cents += happened.cents


@dataclass
class Balance:
    cents: int = 0


balances = DocumentProjection("balances", Balance, mode="inline")


@balances.on(Deposited, key=lambda deposited: deposited.account)
def add(document: Balance | None, deposited: Deposited) -> Balance:
    return Balance((document or Balance()).cents + deposited.cents)
