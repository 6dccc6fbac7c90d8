# approvals.py
import asyncio
from dataclasses import dataclass
from datetime import timedelta
from event_workflow_engine import CompensationContext, Signal, current_step, saga, sleep, step, wait_for_signal
from orders import Order

@dataclass(frozen=True)
class Approval:
    by: str
    granted: bool

APPROVAL = Signal("approval", Approval)

async def reserve(sku: str) -> str: return f"reservation-{sku}"
async def release(ctx: CompensationContext[Order, str]) -> None: print("release", ctx.result)
def charge(cents: int, currency: str = "EUR") -> str: return current_step().idempotency_key
async def refund(ctx: CompensationContext[Order, str]) -> None: print("refund", ctx.result)
async def ship(order_id: str) -> str: return f"parcel-{order_id}"

@saga("approved-order", version=2)
async def approved_order(order: Order) -> str:
    stock, payment = await asyncio.gather(
        step(reserve, order.sku, compensation=release),
        step(charge, order.cents, compensation=refund, timeout=10),
    )
    approval = await wait_for_signal(APPROVAL, timeout=timedelta(days=2))
    if not approval.granted:
        raise PermissionError(f"{approval.by} refused {stock}, {payment}")
    await sleep(3600)
    return await step(ship, order.id)
