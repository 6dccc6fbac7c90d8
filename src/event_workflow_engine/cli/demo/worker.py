"""The demo's worker, a process of its own: ``python -m event_workflow_engine.cli.demo.worker URL LEDGER SECONDS``.

It runs sagas until its standard input is closed, so it never outlives who started it.
"""

import asyncio
import logging
import sys
from pathlib import Path

from event_workflow_engine.cli.demo.orders import Shop, World, fulfilment
from event_workflow_engine.engine import WorkflowEngine

__all__ = ["main", "work"]


async def work(url: str, ledger: str, carrier_takes: float) -> None:
    """Run sagas until standard input ends."""
    engine = WorkflowEngine(url)
    engine.register(fulfilment(Shop(World(Path(ledger)), carrier_takes)))
    async with engine:
        await asyncio.to_thread(sys.stdin.buffer.read)


def main() -> None:
    """Read the command line and work."""
    logging.disable(logging.WARNING)  # the terminal belongs to who started this; that a worker is gone is the plot
    url, ledger, seconds = sys.argv[1:]
    asyncio.run(work(url, ledger, float(seconds)))


if __name__ == "__main__":
    main()
