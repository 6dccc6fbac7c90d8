"""A worker process with a durable subscription; it notes in a ledger what it handles, until it is killed."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.integration.bus.kit import Moved

from event_workflow_engine import EngineConfig, WorkflowEngine

LEASE = 1.0  # where no file lock tells that the last one is dead


def note(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())


async def main(url: str, ledger: str, until: int) -> None:
    """Handle events, each written to the ledger and to standard output; end when one of them is `until`."""
    done = asyncio.Event()
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def handle(event: Moved) -> None:
        note(descriptor, f"{event.who} {event.to}")
        note(1, "handled")
        if event.to == until:
            done.set()

    async with WorkflowEngine(url, config=EngineConfig(lease=LEASE)) as engine:
        engine.bus.subscribe(Moved, handle, durable="walks", key=lambda event: event.who)
        note(1, "ready")
        await done.wait()
        await engine.bus.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
