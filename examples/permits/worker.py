"""Runs the sagas and feeds the projections until its standard input is closed: ``python worker.py URL``."""

from __future__ import annotations

import asyncio
import logging
import sys

from event_workflow_engine import EngineConfig, WorkflowEngine
from permits import PROJECTIONS, permit

AT_ONCE = 32  # so that cases end one after the other, and the driver can tell how far it is


async def work(url: str) -> None:
    engine = WorkflowEngine(url, config=EngineConfig(max_running=AT_ONCE))
    engine.register(permit)
    engine.projections.register(*PROJECTIONS)
    async with engine:
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # that a worker is gone is the point of this program
    asyncio.run(work(sys.argv[1]))
