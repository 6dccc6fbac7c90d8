"""The demo's saga: an order is fulfilled in three steps, against a world that is a file of its own."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

# Steps' contexts are read at run time: they tell the saga its input.
from event_workflow_engine.context import CompensationContext, StepContext  # noqa: TC001
from event_workflow_engine.errors import StepRejectedError
from event_workflow_engine.saga import Saga, SagaStep

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["ORDERS", "Entry", "Order", "Shop", "World", "fulfilment", "sums"]

FULFIL: Final = "fulfil-order"


@dataclass(frozen=True)
class Order:
    """What somebody bought."""

    id: str
    sku: str
    cents: int
    to: str


ORDERS: Final = (
    Order("order-lamp", "lamp", 4_900, "Utrecht"),
    Order("order-boat", "boat", 250_000, "Atlantis"),  # no carrier goes there
)


@dataclass(frozen=True)
class Entry:
    """A line of the world's ledger: something that happened outside, under the key that asked for it."""

    key: str
    order: str
    account: str
    amount: int
    what: str


class World:
    """Stock, bank and carrier: a JSON-lines file that no crash of a worker touches.

    Like services in earnest, they know a request by its idempotency key, and do nothing when it comes again.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """All that happened, in order."""
        if not self.path.exists():
            return []
        return [Entry(**json.loads(line)) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def record(self, entry: Entry) -> bool:
        """Let it happen, once for each key; whether it happened now."""
        with self._lock:
            if any(known.key == entry.key for known in self.entries()):
                return False
            line = json.dumps(vars(entry)) + "\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return True

    def reverse(self, key: str, order: str, what: str) -> None:
        """Undo what happened under a key, if it did; once."""
        for entry in self.entries():
            if entry.key == key:
                self.record(Entry(f"undo:{key}", order, entry.account, -entry.amount, what))


class Shop:
    """The steps.

    Args:
        world: Where they have their effects.
        carrier_takes: How long the carrier takes to answer, in seconds.
    """

    def __init__(self, world: World, carrier_takes: float) -> None:
        self.world = world
        self.carrier_takes = carrier_takes

    def reserve(self, ctx: StepContext[Order]) -> str:
        """Take the article from stock; sync, so it runs in a thread."""
        order = ctx.input
        self.world.record(Entry(ctx.idempotency_key, order.id, "stock", -1, f"reserve 1 {order.sku}"))
        return f"reservation of {order.sku}"

    def release(self, ctx: CompensationContext[Order, str]) -> None:
        """Put it back."""
        self.world.reverse(ctx.idempotency_key, ctx.input.id, f"release 1 {ctx.input.sku}")

    def charge(self, ctx: StepContext[Order]) -> str:
        """Take the money."""
        order = ctx.input
        self.world.record(Entry(ctx.idempotency_key, order.id, "cash", order.cents, f"charge {order.cents / 100:.2f}"))
        return f"payment {ctx.idempotency_key}"

    def refund(self, ctx: CompensationContext[Order, str]) -> None:
        """Give it back."""
        self.world.reverse(ctx.idempotency_key, ctx.input.id, f"refund {ctx.input.cents / 100:.2f}")

    async def ship(self, ctx: StepContext[Order]) -> str:
        """Book a parcel; the carrier notes it at once and answers later."""
        order = ctx.input
        if order.to != "Atlantis":
            self.world.record(Entry(ctx.idempotency_key, order.id, "parcels", 1, f"book a parcel to {order.to}"))
        await asyncio.sleep(self.carrier_takes)
        if order.to == "Atlantis":
            raise StepRejectedError(f"no carrier to {order.to}")
        return f"parcel to {order.to}"


def fulfilment(shop: Shop) -> Saga[Order, Any]:
    """The saga over a shop's steps."""
    return Saga(
        FULFIL,
        [
            SagaStep("stock", shop.reserve, shop.release),
            SagaStep("payment", shop.charge, shop.refund),
            SagaStep("shipment", shop.ship),
        ],
        sequential=True,
        input_type=Order,
    )


def sums(entries: Sequence[Entry], order: str) -> dict[str, int]:
    """What an order moved in each account, all in all."""
    totals = {"stock": 0, "cash": 0, "parcels": 0}
    for entry in entries:
        if entry.order == order:
            totals[entry.account] += entry.amount
    return totals
