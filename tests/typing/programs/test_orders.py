# test_orders.py
import pytest
from event_workflow_engine import SagaFailedError, WorkflowEngine, WorkflowState
from event_workflow_engine.testing import StepFaker, VirtualClock, returns
from approvals import approved_order, charge, refund
from orders import Order

async def test_unapproved_is_refunded(engine: WorkflowEngine, clock: VirtualClock, fake_step: StepFaker) -> None:
    fake_step(charge, returns("payment-1"))
    refunds = fake_step(refund, returns(None))
    engine.register(approved_order)
    handle = await engine.start(approved_order, Order("o-1", "lamp", 900))
    await clock.advance(days=3)
    with pytest.raises(SagaFailedError) as failure:
        await handle.result()
    assert failure.value.status is WorkflowState.COMPENSATED
    assert refunds.count == 1
