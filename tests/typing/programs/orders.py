# orders.py
from dataclasses import dataclass
from event_workflow_engine import CompensationContext, RetryPolicy, Saga, SagaStep, StepContext, WorkflowEngine

@dataclass(frozen=True)
class Order:
    id: str
    sku: str
    cents: int

@dataclass(frozen=True)
class Payment:
    id: str

async def reserve_stock(ctx: StepContext[Order]) -> str: return f"reservation-{ctx.input.sku}"
async def release_stock(ctx: CompensationContext[Order, str]) -> None: print("release", ctx.result)

def charge_card(ctx: StepContext[Order]) -> Payment:  # sync: runs in a thread
    return Payment(ctx.idempotency_key)

async def refund_card(ctx: CompensationContext[Order, Payment]) -> None:
    if ctx.result is None: print("void", ctx.idempotency_key)  # outcome unknown
    else: print("refund", ctx.result.id)

async def ship(ctx: StepContext[Order]) -> str:
    payment = ctx.results[charge_card]                    # by action: Payment
    return f"{ctx.results['stock']}-{payment.id}"         # by name: Any

fulfil = Saga("fulfil-order", [
    SagaStep("stock", reserve_stock, release_stock, timeout=5),
    SagaStep("payment", charge_card, refund_card, retry=RetryPolicy(attempts=3, delay=0.2)),
    SagaStep("shipment", ship, after=(reserve_stock, "payment")),
], input_type=Order, timeout=120)

async def place(engine: WorkflowEngine, order: Order) -> str:
    results = await engine.execute(fulfil, order, id=order.id)
    return results[ship]                                  # str
