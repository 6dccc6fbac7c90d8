# first.py
import asyncio
from event_workflow_engine import Saga, SagaStep, WorkflowEngine

async def book_flight() -> str: return "flight-7"
async def cancel_flight() -> None: print("flight cancelled")
async def book_hotel() -> str: raise RuntimeError("no rooms left")

trip = Saga("trip", [SagaStep("flight", book_flight, cancel_flight), SagaStep("hotel", book_hotel)])

async def main() -> None:
    async with WorkflowEngine("sqlite:///trips.db") as engine:
        engine.register(trip)
        await engine.execute(trip, id="trip-1")  # flight cancelled; raises SagaFailedError

if __name__ == "__main__": asyncio.run(main())
