"""A worker process whose sagas have many short steps, each noted with the process that ran it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine

LEDGER = "EWE_TEST_LEDGER"
STEPS = 12
TAKES = 0.5


def note(ctx: StepContext[Any]) -> None:
    line = json.dumps([ctx.saga_id, ctx.step, os.getpid(), ctx.attempt]) + "\n"
    with Path(os.environ[LEDGER]).open("a") as ledger:
        ledger.write(line)


async def work(ctx: StepContext[Any]) -> int:
    note(ctx)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), TAKES)
    return os.getpid()


long = Saga("long", [SagaStep(f"step-{n}", work) for n in range(STEPS)], sequential=True)


async def main(url: str, starts: int) -> None:
    engine = WorkflowEngine(url, config=EngineConfig(lease=3, shutdown_timeout=0))
    engine.register(long)
    async with engine:
        for n in range(starts):
            await engine.start(long, id=f"l-{n}")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
