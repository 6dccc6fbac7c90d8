"""PgQueuer on PostgreSQL: from enqueueing to running. Run by the peers' own interpreter, prints one line of JSON.

``python pgqueuer_queue.py enqueue FOLDER '{"url": "postgresql://…"}'``
"""

import json
import os
import sys
from pathlib import Path

import asyncpg
import pickup
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries


def enqueue(folder: Path, url: str, samples: int = 150, spread: float = 0.01, **times: float) -> dict[str, float]:
    """One job after another, enqueued here and run there: asyncpg, uvloop, durable tables, as by its command line."""

    async def main() -> dict[str, float]:
        queries = Queries(AsyncpgDriver(await asyncpg.connect(url)))
        await queries.install()
        async with pickup.worker(__file__, folder, url=url) as told:
            return await pickup.measured(
                lambda: queries.enqueue("timed", b"{}"), told, url, samples=samples, spread=spread, **times
            )

    return uvloop.run(main())


def worker(folder: Path, url: str) -> dict[str, float]:
    """The worker, until it is killed."""

    async def main() -> None:
        queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

        @queuer.entrypoint("timed")
        async def timed(job: Job) -> None:
            pickup.tell()

        print("ready", flush=True)
        await queuer.run()

    uvloop.run(main())
    return {}


if __name__ == "__main__":
    _, name, place, given = sys.argv
    print(json.dumps(globals()[name](Path(place), **json.loads(given))), flush=True)
    os._exit(0)
