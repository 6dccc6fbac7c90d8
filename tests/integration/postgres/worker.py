"""A worker process on PostgreSQL. Its sagas act, wait at a gate that the test opens, and act again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine

LEDGER = "EWE_TEST_LEDGER"
GATE = "EWE_TEST_GATE"


def note(what: str, saga_id: str) -> None:
    """One line for each effect, with the process that it is of."""
    line = json.dumps([what, saga_id, os.getpid()]) + "\n"
    with Path(os.environ[LEDGER]).open("a") as ledger:
        ledger.write(line)


def say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


async def arrive(ctx: StepContext[Any]) -> None:
    note("arrived", ctx.saga_id)


def gate(ctx: StepContext[Any]) -> None:
    """Opening a fifo for reading blocks until somebody opens it for writing, in a stopped process too."""
    say("waiting")
    os.close(os.open(os.environ[GATE], os.O_RDONLY))


async def leave(ctx: StepContext[Any]) -> int:
    note("left", ctx.saga_id)
    return os.getpid()


async def whoami() -> int:
    return os.getpid()


gated = Saga("gated", [SagaStep("arrive", arrive), SagaStep("gate", gate), SagaStep("leave", leave)], sequential=True)
quick = Saga("quick", [SagaStep("whoami", whoami)])


async def main(url: str, lease: float, starts: int) -> None:
    engine = WorkflowEngine(url, config=EngineConfig(lease=lease, shutdown_timeout=0))
    engine.register(gated, quick)
    async with engine:
        for n in range(starts):
            await engine.start(gated, id=f"g-{n}")
        say("ready")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
