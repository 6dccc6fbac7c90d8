# mistakes.py
from approvals import APPROVAL, refund, reserve
from event_workflow_engine import Saga, SagaStep, WorkflowEngine, step
from orders import Order, Payment, charge_card, release_stock, reserve_stock

Saga("m", [SagaStep("stock", reserve_stock)], input_type=Payment)   # 1 a step that wants another input
SagaStep("payment", charge_card, release_stock)                     # 2 compensation of a str, action of a Payment
async def main(engine: WorkflowEngine, saga: Saga[Order, str]) -> None:
    await engine.execute(saga, Payment("p"))                        # 3 wrong saga input
    await step(reserve, 7, compensation=refund)                     # 4 wrong argument
    await engine.handle("o-1").signal(APPROVAL, "yes")              # 5 wrong payload
