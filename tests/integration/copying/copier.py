"""A process that dies while it copies a store: ``copier SOURCE TARGET WHEN``, or that works at one: ``copier URL``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, NoReturn

from tests.integration.copying.kit import Between

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.copying import copy_store

LEASE = 1.0


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Dying(Between):
    def __init__(self, storage: Any, when: str) -> None:
        super().__init__(storage)
        self._when = when
        self._puts = 0

    def put(self, part: str, rows: list[tuple[Any, ...]], /) -> list[tuple[Any, ...]]:
        self._puts += 1
        if (self._when == "first" and self._puts == 2) or (self._when == "rows" and part == "saga_ids"):
            die()
        return rows

    def before_commit(self) -> None:
        if self._when == "compared":
            die()

    def behind_commit(self) -> None:
        if self._when == "kept":
            die()


async def arrive(ctx: StepContext[Any]) -> int:
    if os.environ.get("EWE_TEST_STAY"):
        sys.stdout.write("in\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    return os.getpid()


staying = Saga("copied-staying", [SagaStep("arrive", arrive)])


async def work(url: str) -> None:
    engine = WorkflowEngine(url, config=EngineConfig(lease=LEASE, auto_upgrade=True))
    engine.register(staying)
    async with engine:
        await engine.start(staying, id="s-1")
        await asyncio.Event().wait()


async def copy(source: str, target: str, when: str) -> None:
    await copy_store(open_storage(source), Dying(open_storage(target), when))


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]) if len(sys.argv) == 2 else copy(*sys.argv[1:]))
