"""A worker process on PostgreSQL that serves a queue. Each saga notes when it begins and ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.queues import Queue

LEDGER = "EWE_TEST_LEDGER"
NAME, LIMIT, OF_WORKER, OF_PARTITION = "work", 6, 3, 1
LEASE = 1.0

queue = Queue(NAME, limit=LIMIT, worker_limit=OF_WORKER, partition_limit=OF_PARTITION)


def note(what: str, ctx: StepContext[str]) -> None:
    """One line for each; the clock is that of the machine, the same for all processes."""
    line = json.dumps([time.monotonic(), what, ctx.saga_id, ctx.input, os.getpid()]) + "\n"
    with Path(os.environ[LEDGER]).open("a") as ledger:
        ledger.write(line)


async def occupy(ctx: StepContext[str]) -> None:
    note("begin", ctx)
    await asyncio.sleep(random.uniform(0, 0.02))
    note("end", ctx)


occupying = Saga("occupying", [SagaStep("occupy", occupy)], input_type=str)


def engine_at(url: str, **config: Any) -> WorkflowEngine:
    engine = WorkflowEngine(url, config=EngineConfig(lease=LEASE, **config))
    engine.register(occupying)
    engine.queues.register(queue)
    return engine


async def main(url: str) -> None:
    async with engine_at(url):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
