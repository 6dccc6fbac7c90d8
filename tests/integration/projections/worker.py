"""A worker process that appends events and keeps projections of all modes, until it is killed."""

from __future__ import annotations

import asyncio
import os
import sys
from random import Random

from tests.integration.projections.kit import Added, book, sums

from event_workflow_engine import WorkflowEngine

WRITERS = 4


async def main(url: str, seed: int) -> None:
    """Append for ever; a line on standard output for each append that was acknowledged."""
    rng = Random(seed)
    engine = WorkflowEngine(url)
    engine.projections.register(sums("behind"), sums("within", "inline"), book())
    async with engine:

        async def write() -> None:
            while True:
                key = f"k{rng.randrange(6)}"
                await engine.store.append(f"sum-{key}", Added(key, rng.randrange(100)))
                os.write(1, b"appended\n")

        await asyncio.gather(*(write() for _ in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
