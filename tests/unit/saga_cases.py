"""Payloads, actions and compensations that the tests of saga definitions share."""

import typing
from dataclasses import dataclass

import pytest

from event_workflow_engine import (
    CompensationContext,
    Saga,
    SagaStep,
    StepContext,
)
from event_workflow_engine.errors import DefinitionError


@dataclass
class Order:
    id: str


@dataclass
class BigOrder(Order):
    lines: int = 0


@dataclass
class Payment:
    id: str


class Opaque:
    pass


def book() -> str:
    return "flight-7"


async def cancel() -> None: ...
async def reserve(ctx: StepContext[Order]) -> str:
    return ""


async def release(ctx: CompensationContext[Order, str]) -> None: ...
def charge(ctx: StepContext[Order]) -> Payment:
    return Payment("")


def refund(ctx: CompensationContext[Order, Payment]) -> None: ...
async def ship(ctx: StepContext[Order]) -> str:
    return ""


async def big(ctx: StepContext[BigOrder]) -> str:
    return ""


async def pay(ctx: StepContext[Payment]) -> str:
    return ""


async def undo_pay(ctx: CompensationContext[Payment, typing.Any]) -> None: ...
async def plain(ctx: StepContext[typing.Any]) -> str:
    return ""


async def wants_float(ctx: StepContext[float]) -> str:
    return ""


async def wants_int(ctx: StepContext[int]) -> str:
    return ""


async def wants_union(ctx: StepContext[Order | Payment]) -> str:
    return ""


async def wants_list(ctx: StepContext[list[str]]) -> str:
    return ""


async def wants_sequence(ctx: StepContext[typing.Sequence[str]]) -> str:
    return ""


async def wants_order(order: Order) -> str:
    return ""


async def two(ctx: StepContext[Order], more: int) -> str:
    return ""


async def keyword(*, key: str) -> str:
    return ""


async def opaque() -> Opaque:
    return Opaque()


async def agenerator() -> typing.AsyncIterator[int]:
    yield 1


class Client:
    async def charge(self, ctx: StepContext[Order]) -> Payment:  # noqa: ARG002
        return Payment("")


class Small(typing.TypedDict):
    a: int


class Large(Small):
    b: int


async def wants_small(ctx: StepContext[Small]) -> None: ...
async def wants_large(ctx: StepContext[Large]) -> None: ...


def refused(text: str, *steps: SagaStep[typing.Any], **options: typing.Any) -> None:
    with pytest.raises(DefinitionError, match=text):
        Saga("o", steps, **options)
