"""A worker of the soak: runs the five sagas of the crash tests until it is killed, or its standard input ends."""

from __future__ import annotations

import asyncio
import sys

from tests.crash.sagas import CASES

from event_workflow_engine import EngineConfig, WorkflowEngine


async def main(url: str, lease: float) -> None:
    engine = WorkflowEngine(url, config=EngineConfig(lease=lease, max_running=50))
    engine.register(*(saga for saga, _ in CASES.values()))
    async with engine:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
