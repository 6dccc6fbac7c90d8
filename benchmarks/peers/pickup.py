"""What every queue is asked: how long from enqueueing here to running in another process, and what its idling costs."""

import asyncio
import json
import random
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time_ns

import psycopg


def tell() -> None:
    """What a job does, in the worker: say when it runs."""
    print(time_ns(), flush=True)


@asynccontextmanager
async def worker(script: str, folder: Path, **sizes: object) -> AsyncIterator[asyncio.StreamReader]:
    """The script's function ``worker`` in a process of its own, which is ready; what it says from then on."""
    command = [sys.executable, script, "worker", str(folder), json.dumps(sizes)]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        if (said := await child.stdout.readline()).strip() != b"ready":
            raise RuntimeError(f"the worker did not start: {said!r}")
        yield child.stdout
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def measured(
    enqueue: Callable[[], Awaitable[object]],
    told: asyncio.StreamReader,
    url: str,
    *,
    samples: int,
    spread: float,
    rest: float = 0.1,
    warm: int = 20,
    settle: float = 11.0,
    idle: float = 10.0,
) -> dict[str, float]:
    """Let all idle, and count transactions; then enqueue one job after another, each at a moment that no poll knows.

    Args:
        enqueue: Makes one job.
        told: What the worker says.
        url: The server.
        samples: How many jobs count.
        rest: Each is enqueued so many seconds after the one before it ran, when the worker is done with that and idle.
        spread: And up to so many later, anew by chance: a queue that polls would otherwise always be asked at the same
            moment between two polls.
        warm: How many jobs before them do not count.
        settle: Servers' processes report what they did ten seconds after it; those that are notified much later, so the
            counting comes before the many notifications.
        idle: How long transactions are counted.
    """
    await enqueue()
    await asyncio.wait_for(told.readline(), 30)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as server:
        await asyncio.sleep(settle)
        before = await _transactions(server)
        await asyncio.sleep(idle)
        asked = (await _transactions(server) - before) / idle
    taken = []
    for _ in range(samples + warm):
        await asyncio.sleep(rest + random.uniform(0, spread))  # noqa: S311 - when to ask next, no secret
        begun = time_ns()
        await enqueue()
        ran = await asyncio.wait_for(told.readline(), 30)
        taken.append((int(ran) - begun) / 1e6)
    taken = sorted(taken[warm:])
    return {
        "p50_ms": statistics.median(taken),
        "p99_ms": taken[int(len(taken) * 0.99)],
        "idle_queries_per_s": asked,
    }


async def _transactions(server: psycopg.AsyncConnection) -> int:
    await server.execute("SELECT pg_stat_force_next_flush()")
    sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    found = await (await server.execute(sql)).fetchone()
    assert found is not None
    return int(found[0])
