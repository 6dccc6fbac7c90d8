"""A process beside a test on one SQLite file: ``python -m … URL TASK``."""

from __future__ import annotations

import asyncio
import sys

from tests.integration.limits.kit import MEBIBYTE, SIZE, append_many, long, of_size

from event_workflow_engine import EngineConfig, NewEvent, WorkflowEngine


async def main(url: str, task: str) -> None:
    large = of_size(MEBIBYTE)
    async with WorkflowEngine(url, config=EngineConfig(worker=task == "walk")) as engine:
        engine.register(long, large)
        match task:
            case "append":
                await append_many(engine)
            case "large":
                await engine.store.append("large-1", [NewEvent("limits-large", str(n) * MEBIBYTE) for n in range(4)])
                for n in range(4):
                    await engine.start(large, id=f"m-{n}")
            case "walk":
                await engine.start(long, SIZE, id="l-1")
                await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
