"""Procrastinate on PostgreSQL: from enqueueing to running. Run by the peers' own interpreter, prints one line of JSON.

``python procrastinate_queue.py enqueue FOLDER '{"url": "postgresql://…"}'``
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import pickup
import procrastinate


def application(url: str) -> procrastinate.App:
    """The form that its documentation recommends: async, on psycopg."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="timed", queue="bench")
    async def timed() -> None:
        pickup.tell()

    return app


def enqueue(folder: Path, url: str, samples: int = 150, spread: float = 0.01, **times: float) -> dict[str, float]:
    """One job after another, deferred here and run there; the worker is told by LISTEN/NOTIFY, as it is by default."""

    async def main() -> dict[str, float]:
        app = application(url)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            async with pickup.worker(__file__, folder, url=url) as told:
                timed = app.tasks["timed"]
                return await pickup.measured(timed.defer_async, told, url, samples=samples, spread=spread, **times)

    return asyncio.run(main())


def worker(folder: Path, url: str) -> dict[str, float]:
    """The worker, until it is killed."""

    async def main() -> None:
        app = application(url)
        async with app.open_async():
            print("ready", flush=True)
            await app.run_worker_async(queues=["bench"], concurrency=10)

    asyncio.run(main())
    return {}


if __name__ == "__main__":
    _, name, place, given = sys.argv
    print(json.dumps(globals()[name](Path(place), **json.loads(given))), flush=True)
    os._exit(0)
