"""Queues: sagas of one step that wait for their turn, on one worker or several.

Each function is one measurement, run in a fresh process (see `benchmarks.child`) on a fresh file or a fresh server.
"""

from __future__ import annotations

import asyncio
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import processes
from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine._measuring.timing import side_by_side
from event_workflow_engine._measuring.work import declared
from event_workflow_engine.queues import Queue

if TYPE_CHECKING:
    from pathlib import Path

one_step = declared(1)


def engine_on(url: str, limit: int | None, *, worker: bool = True) -> WorkflowEngine:
    """An engine with the queue and the saga."""
    engine = WorkflowEngine(url, config=EngineConfig(worker=worker, auto_upgrade=True))
    engine.register(one_step)
    engine.queues.register(Queue("bench", limit=limit))
    return engine


def throughput(
    folder: Path, *, limit: int | None = None, workers: int = 1, sagas: int = 1000, rounds: int = 3, url: str = ""
) -> dict[str, float]:
    """So many sagas started at once through a queue, until all have ended; the median of some rounds.

    One worker is the process that starts them; several are processes of their own beside one that starts and waits.
    """
    url = url or f"sqlite:///{folder.resolve() / 'bench.db'}"
    alone = workers == 1

    async def main() -> list[float]:
        async with engine_on(url, limit, worker=alone) as engine:
            if not alone:
                ready = processes.children("queues:worker", folder, [{"url": url, "limit": limit}] * workers, stack)
                for child in ready:
                    stack.callback(child.kill)
                await asyncio.to_thread(lambda: list(processes.lines(ready)))

            async def execute(caller: int, n: int) -> None:
                await engine.execute(one_step, queue="bench")

            await side_by_side(execute, callers=min(sagas, 50), each=1)
            return [(await side_by_side(execute, callers=sagas, each=1)).per_s for _ in range(rounds)]

    with ExitStack() as stack:
        rates = asyncio.run(main())
    return {"sagas_per_s": statistics.median(rates), "slowest_round_per_s": min(rates)}


def worker(_: Path, *, url: str, limit: int | None) -> dict[str, float]:
    """A worker, until it is killed."""

    async def main() -> None:
        async with engine_on(url, limit):
            print("ready", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
    return {}
