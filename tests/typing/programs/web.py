# web.py
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from fastapi import FastAPI
from event_workflow_engine import WorkflowEngine, WorkflowState
from approvals import APPROVAL, Approval, approved_order
from orders import Order

engine = WorkflowEngine("sqlite:///shop.db")
engine.register(approved_order)

@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with engine: yield  # resumes, then drains

app = FastAPI(lifespan=lifespan)

@app.post("/orders", status_code=202)
async def place(order: Order) -> str:
    return (await engine.start(approved_order, order, id=order.id)).id

@app.post("/orders/{id}/approval")
async def approve(id: str, approval: Approval) -> None:
    await engine.handle(id).signal(APPROVAL, approval)

@app.get("/orders/{id}")
async def show(id: str) -> WorkflowState: return await engine.handle(id).status()
