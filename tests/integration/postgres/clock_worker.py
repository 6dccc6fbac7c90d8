"""A worker whose clock the test sets: a file holds by how many seconds it is off. Its sagas act, sleep, and act again.

It starts those that its standard input names.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from event_workflow_engine import (
    CompensationContext,
    EngineConfig,
    WorkflowEngine,
    current_step,
    saga,
    sleep,
    step,
)
from event_workflow_engine.clock import SystemClock

LEDGER = "EWE_TEST_LEDGER"
OFFSET = "EWE_TEST_OFFSET"
ROUNDS = 4
SHORT = timedelta(milliseconds=200)
LONG = timedelta(seconds=1.5)
"""Behind a second of sleep a saga leaves memory, so that whichever worker it is due for first claims it."""


class SteppedClock(SystemClock):
    """The machine's clock, and what the test adds to it at any moment."""

    def __init__(self, offset: Path) -> None:
        self._offset = offset

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=float(self._offset.read_text()))


def note(operation: str, key: str) -> None:
    """One line for each effect, with the process that it is of."""
    line = json.dumps([operation, key, os.getpid()]) + "\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


async def book() -> str:
    key = current_step().idempotency_key
    note("do", key)
    return key


async def cancel(ctx: CompensationContext[Any, str]) -> None:
    note("undo", ctx.idempotency_key)


async def tour(*, undone: bool) -> None:
    for n in range(ROUNDS):
        await step(book, name=f"book-{n}", compensation=cancel)
        await sleep(SHORT if n % 2 else LONG)
    if undone:
        raise ValueError("refused")


@saga("kept")
async def kept() -> None:
    await tour(undone=False)


@saga("undone")
async def undone() -> None:
    await tour(undone=True)


async def main(url: str, lease: float) -> None:
    clock = SteppedClock(Path(os.environ[OFFSET]))
    engine = WorkflowEngine(url, clock=clock, config=EngineConfig(lease=lease))
    engine.register(kept, undone)
    async with engine:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, saga_id = line.split()
            await engine.start(name, id=saga_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
