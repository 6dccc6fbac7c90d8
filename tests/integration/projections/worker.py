"""A process that appends and projects until it is killed; each line tells that it goes on."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.integration.projections.kit import Added, Dropped, book, sums

from event_workflow_engine import WorkflowEngine


async def main(url: str) -> None:
    engine = WorkflowEngine(url)
    engine.projections.register(sums("killed"), sums("killed-inline", "inline"), book("killed-book"))
    async with engine:
        sys.stdout.write("up\n")
        sys.stdout.flush()
        for number in count():
            key = f"k{number % 7}"
            one = Dropped(key) if number % 11 == 0 else Added(key, number)
            await asyncio.gather(*(engine.store.append(f"s-{n}", one) for n in range(10)))
            sys.stdout.write("on\n")
            sys.stdout.flush()


asyncio.run(main(sys.argv[1]))
