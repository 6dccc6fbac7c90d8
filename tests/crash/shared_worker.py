"""A worker process whose sagas hang in their second step, until it is killed."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.crash.sagas import act

from event_workflow_engine import Saga, SagaStep, StepContext, WorkflowEngine

held: list[str] = []
IN_WORKER = __name__ == "__main__"


async def hang(ctx: StepContext[None]) -> str:
    held.append(ctx.saga_id)
    if IN_WORKER:
        sys.stdout.write(json.dumps({"held": len(held)}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    return ctx.idempotency_key


hold = Saga("hold", [SagaStep("first", act), SagaStep("hold", hang)], sequential=True)


async def main(url: str) -> None:
    async with WorkflowEngine(url) as engine:
        engine.register(hold)
        for n in range(10):
            await engine.start(hold, id=f"h-{n}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
