"""A worker process for the command line's tests: runs sagas until its standard input is closed."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from event_workflow_engine import (
    DocumentProjection,
    Saga,
    SagaStep,
    StepContext,
    WorkflowEngine,
    event,
    saga,
    step,
    wait_for_signal,
)


@event("cli-counted")
@dataclass(frozen=True)
class Counted:
    what: str


@dataclass(frozen=True)
class Count:
    n: int = 0


counts = DocumentProjection("cli-counts", Count)


@counts.on(Counted, key=lambda e: e.what)
def count(known: Count | None, _: Counted) -> Count:
    return Count((known or Count()).n + 1)


async def reserve(ctx: StepContext[str]) -> str:
    return ctx.input


async def release() -> None: ...


async def refuse(ctx: StepContext[str]) -> str:
    raise ValueError(f"no {ctx.input}")


good = Saga("good", [SagaStep("stock", reserve, release)], input_type=str)
bad = Saga("bad", [SagaStep("stock", reserve, release), SagaStep("shipment", refuse)], sequential=True, input_type=str)


async def book(what: str) -> str:
    return what


async def cancel_booking() -> None: ...


@saga("waiting")
async def waiting(what: str) -> str:
    await step(book, what, compensation=cancel_booking)
    return str(await wait_for_signal("go"))


async def work(url: str) -> None:
    engine = WorkflowEngine(url)
    engine.register(good, bad, waiting)
    engine.projections.register(counts)
    async with engine:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
