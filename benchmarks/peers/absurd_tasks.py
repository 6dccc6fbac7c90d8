"""Absurd on PostgreSQL. Run by the peers' own interpreter, prints one line of JSON.

Its schema is the one that its command line, `absurdctl`, brings along.

``python absurd_tasks.py sequential FOLDER '{"url": "postgresql://…"}'``
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import absurdctl
import pickup
import psycopg
from absurd_sdk import Absurd, AsyncAbsurd, AsyncTaskContext, TaskContext

QUEUE = "bench"
HANDLED = asyncio.Semaphore(0)
"""Counts the tasks whose last step is done; they are not yet completed."""


def install(url: str) -> None:
    """Make its schema and the queue."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
        connection.execute("SELECT absurd.create_queue(%s)", (QUEUE,))


async def work() -> int:
    """The trivial step."""
    return 1


async def many(params: dict[str, int], context: AsyncTaskContext) -> int:
    """Steps one after another."""
    total = sum([await context.step(f"s{n}", work) for n in range(params["steps"])])
    HANDLED.release()
    return total


def many_sync(params: dict[str, int], context: TaskContext) -> int:
    """The same on a thread."""
    return sum(context.step(f"s{n}", lambda: 1) for n in range(params["steps"]))


def client(url: str) -> AsyncAbsurd:
    """A connection of its own, with the task."""
    app = AsyncAbsurd(url, queue_name=QUEUE)
    app.register_task("many")(many)
    return app


def sequential(folder: Path, url: str, steps: int = 1000) -> dict[str, float]:
    """One task of many steps, claimed without polling for it; the better of the sync and the async form."""
    install(url)

    async def tasks() -> float:
        app = client(url)
        for count in (10, steps):
            begun = perf_counter()
            await app.spawn("many", {"steps": count})
            await app.work_batch()
        return steps / (perf_counter() - begun)

    def threads() -> float:
        app = Absurd(url, queue_name=QUEUE)
        app.register_task("many")(many_sync)
        for count in (10, steps):
            begun = perf_counter()
            app.spawn("many", {"steps": count})
            app.work_batch()
        return steps / (perf_counter() - begun)

    rates = threads(), asyncio.run(tasks())
    check_ended(url, 4)
    return {"steps_per_s": max(rates), "sync_steps_per_s": rates[0], "async_steps_per_s": rates[1]}


def check_ended(url: str, expected: int) -> None:
    """All tasks have completed."""
    if (count := ended(url)) != expected:
        raise AssertionError(f"{count} of {expected} tasks have completed")


def ended(url: str) -> int:
    """How many tasks have completed."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("SELECT count(*) FROM absurd.t_bench WHERE state = 'completed'").fetchone()
        assert found is not None
        return int(found[0])


def concurrent(folder: Path, url: str, sagas: int = 1000, steps: int = 5) -> dict[str, float]:
    """Many tasks at once, in one process, by 1 and by 8 workers (a connection each); the better one counts."""
    install(url)

    async def run(workers: int, count: int) -> float:
        apps = [client(url) for _ in range(workers)]
        each = max(sagas // workers // 4, 1)
        running = [asyncio.create_task(app.start_worker(concurrency=each, poll_interval=0.005)) for app in apps]
        starter, before = client(url), ended(url)
        begun = perf_counter()
        for _ in range(count):
            await starter.spawn("many", {"steps": steps})
        for _ in range(count):
            await HANDLED.acquire()
        for app in apps:
            app.stop_worker()
        await asyncio.gather(*running)
        elapsed = perf_counter() - begun
        check_ended(url, before + count)
        return count / elapsed

    async def main() -> dict[int, float]:
        rates = {}
        for workers in (1, 8):
            await run(workers, 20)
            rates[workers] = await run(workers, sagas)
        return rates

    rates = asyncio.run(main())
    best = max(rates.values())
    return {
        "steps_per_s": best * steps,
        "sagas_per_s": best,
        **{f"steps_per_s_{workers}_workers": rate * steps for workers, rate in rates.items()},
    }


def enqueue(
    folder: Path, url: str, samples: int = 150, poll: float = 0.25, spread: float = 0.0, **times: float
) -> dict[str, float]:
    """One task after another, spawned here and run there: until its first step runs."""
    install(url)

    async def main() -> dict[str, float]:
        app = AsyncAbsurd(url, queue_name=QUEUE)
        async with pickup.worker(__file__, folder, url=url, poll=poll) as told:
            return await pickup.measured(
                lambda: app.spawn("timed", {}, queue=QUEUE),
                told,
                url,
                samples=samples,
                spread=spread or poll,
                **times,
            )

    return asyncio.run(main())


def worker(folder: Path, url: str, poll: float) -> dict[str, float]:
    """The worker, until it is killed."""

    async def main() -> None:
        app = AsyncAbsurd(url, queue_name=QUEUE)

        async def now() -> int:
            pickup.tell()
            return 1

        @app.register_task("timed")
        async def timed(params: dict[str, int], context: AsyncTaskContext) -> int:
            return await context.step("now", now)

        print("ready", flush=True)
        await app.start_worker(concurrency=10, poll_interval=poll)

    asyncio.run(main())
    return {}


def recovery(folder: Path, url: str, sagas: int = 1000, lease: int = 5) -> dict[str, float]:
    """A worker with many tasks is killed beside an idle one: until all of them have resumed there."""
    install(url)
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(sagas):
            connection.execute("SELECT absurd.spawn_task(%s, 'interrupted', '{}')", (QUEUE,))
    sizes = {"url": url, "sagas": sagas, "lease": lease}
    command = [sys.executable, __file__, "holder", str(folder)]
    with ExitStack() as stack:
        doomed, said = _holder(command, sizes | {"hangs": True}, stack)
        said.readline()
        said.readline()
        _, said = _holder(command, sizes | {"hangs": False}, stack)
        said.readline()
        doomed.send_signal(signal.SIGKILL)
        begun = perf_counter()
        said.readline()
        taken = perf_counter() - begun
    return {"resumed_s": taken, "over_lease_s": taken - lease}


def _holder(command: list[str], sizes: dict[str, Any], stack: ExitStack) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    child = stack.enter_context(subprocess.Popen([*command, json.dumps(sizes)], stdout=subprocess.PIPE))
    stack.callback(child.kill)
    assert child.stdout is not None
    return child, child.stdout


def holder(folder: Path, url: str, sagas: int, lease: int, hangs: bool) -> dict[str, float]:
    """A worker whose tasks hang in their second step, or not; says when it is there, and when all tasks are."""

    async def main() -> None:
        app = AsyncAbsurd(url, queue_name=QUEUE)
        running, all_running = 0, asyncio.Event()

        async def second() -> int:
            nonlocal running
            running += 1
            if running == sagas:
                all_running.set()
            if hangs:
                await asyncio.Event().wait()
            return 2

        @app.register_task("interrupted")
        async def interrupted(params: dict[str, int], context: AsyncTaskContext) -> int:
            return await context.step("first", work) + await context.step("second", second)

        print("ready", flush=True)
        asked = asyncio.create_task(app.start_worker(concurrency=sagas, claim_timeout=lease))
        await all_running.wait()
        print("all", flush=True)
        await asked

    asyncio.run(main())
    return {}


if __name__ == "__main__":
    _, name, place, given = sys.argv
    print(json.dumps(globals()[name](Path(place), **json.loads(given))), flush=True)
    os._exit(0)
