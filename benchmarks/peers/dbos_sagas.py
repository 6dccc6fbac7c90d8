"""DBOS on SQLite and PostgreSQL, the same work as `benchmarks.sagas` and `benchmarks.postgres`.

Run by the peers' own interpreter, prints one line of JSON.

``python dbos_sagas.py sequential FOLDER '{"wal": true, "steps": 1000}'``
"""

import asyncio
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import pickup
from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID

HANG = threading.Event()
RESUMED = threading.Semaphore(0)
RECOVERING = False


@DBOS.step()
def work() -> int:
    """The trivial step."""
    return 1


@DBOS.step()
async def work_async() -> int:
    """The trivial step, of async workflows."""
    return 1


@DBOS.step()
def hang() -> int:
    """The step that the kill interrupts; after the restart it says so and ends."""
    RESUMED.release()
    if not RECOVERING:
        HANG.wait()
    return 1


@DBOS.workflow()
def many(steps: int) -> int:
    """Steps one after another."""
    return sum(work() for _ in range(steps))


@DBOS.workflow()
async def many_async(steps: int) -> int:
    """Steps one after another, as a coroutine."""
    total = 0
    for _ in range(steps):
        total += await work_async()
    return total


@DBOS.workflow()
def interrupted() -> int:
    """One step done, one under way."""
    return work() + hang()


@DBOS.step()
def now() -> int:
    """The step that says when it runs."""
    pickup.tell()
    return 1


@DBOS.workflow()
def timed() -> int:
    """One step, that tells."""
    return now()


def launch(folder: Path, wal: bool, url: str = "", executor: str = "bench") -> None:
    """Start DBOS on PostgreSQL, or on a file of this folder, as it comes: rollback journal, synchronous FULL."""
    path = folder / "dbos.db"
    if wal:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url or f"sqlite:///{path}",
        "log_level": "ERROR",
        "application_version": "1",
        "executor_id": executor,
    }
    DBOS(config=config)
    DBOS.launch()


def sequential(folder: Path, steps: int = 1000, wal: bool = False, url: str = "") -> dict[str, float]:
    """One workflow of many steps; the better of the sync and the async form."""
    launch(folder, wal, url)
    many(10)
    begun = perf_counter()
    many(steps)
    threads = steps / (perf_counter() - begun)

    async def main() -> float:
        await many_async(10)
        begun = perf_counter()
        await many_async(steps)
        return steps / (perf_counter() - begun)

    tasks = asyncio.run(main())
    return {"steps_per_s": max(threads, tasks), "sync_steps_per_s": threads, "async_steps_per_s": tasks}


def concurrent(folder: Path, sagas: int = 1000, steps: int = 5, wal: bool = False, url: str = "") -> dict[str, float]:
    """Many workflows at once."""
    launch(folder, wal, url)
    many(steps)
    begun = perf_counter()
    handles = [DBOS.start_workflow(many, steps) for _ in range(sagas)]
    for handle in handles:
        handle.get_result()
    elapsed = perf_counter() - begun
    return {"steps_per_s": sagas * steps / elapsed, "sagas_per_s": sagas / elapsed}


def latency(folder: Path, samples: int = 300, steps: int = 3, wal: bool = False, url: str = "") -> dict[str, float]:
    """Workflows one after another."""
    launch(folder, wal, url)
    taken = []
    for _ in range(samples + 30):
        begun = perf_counter()
        many(steps)
        taken.append((perf_counter() - begun) * 1000)
    taken = sorted(taken[30:])
    return {"p50_ms": statistics.median(taken), "p99_ms": taken[int(len(taken) * 0.99)]}


def recovery(
    folder: Path, sagas: int = 1000, wal: bool = False, url: str = "", elsewhere: float = 0.0
) -> dict[str, float]:
    """Kill a process with many workflows in their second step, start another, wait until all have resumed.

    ``resumed_elsewhere`` is how many of them a process with another executor's id has resumed before that, in so many
    seconds.
    """
    sizes = {"sagas": sagas, "wal": wal, "url": url}
    with _process("die", folder, sizes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    figures = _asked("resume_elsewhere", folder, sizes | {"seconds": elsewhere}) if elsewhere else {}
    return figures | _asked("resume", folder, sizes | {"spawned": monotonic()})


def _process(function: str, folder: Path, sizes: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, __file__, function, str(folder), json.dumps(sizes)], stdout=subprocess.PIPE
    )


def _asked(function: str, folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    with _process(function, folder, sizes) as child:
        said, _ = child.communicate()
    return json.loads(said)


def die(folder: Path, sagas: int, wal: bool, url: str) -> dict[str, float]:
    """The process to be killed."""
    launch(folder, wal, url)
    for n in range(sagas):
        with SetWorkflowID(f"w-{n}"):
            DBOS.start_workflow(interrupted)
    for _ in range(sagas):
        RESUMED.acquire()
    print("ready", flush=True)
    HANG.wait()
    return {}


def resume(folder: Path, sagas: int, wal: bool, url: str, spawned: float) -> dict[str, float]:
    """The process that takes over: the same executor, started anew."""
    global RECOVERING
    RECOVERING = True
    begun = monotonic()
    launch(folder, wal, url)
    for _ in range(sagas):
        RESUMED.acquire()
    ended = monotonic()
    return {"resumed_s": ended - begun, "resumed_from_exec_s": ended - spawned}


def resume_elsewhere(folder: Path, sagas: int, wal: bool, url: str, seconds: float) -> dict[str, float]:
    """Another executor of the same application and version; what it resumes does not hang."""
    global RECOVERING
    RECOVERING = True
    launch(folder, wal, url, executor="another")
    sleep(seconds)
    count = 0
    while RESUMED.acquire(blocking=False):
        count += 1
    return {"resumed_elsewhere": float(count)}


def enqueue(
    folder: Path, url: str, samples: int = 60, poll: float = 1.0, spread: float = 0.0, **times: float
) -> dict[str, float]:
    """One workflow after another, enqueued here and run there: until its first step runs."""

    async def main() -> dict[str, float]:
        async with pickup.worker(__file__, folder, url=url, poll=poll) as told:
            client = DBOSClient(system_database_url=url)

            async def one() -> None:
                client.enqueue({"workflow_name": "timed", "queue_name": "bench"})

            return await pickup.measured(one, told, url, samples=samples, spread=spread or poll, **times)

    return asyncio.run(main())


def worker(folder: Path, url: str, poll: float) -> dict[str, float]:
    """The worker, until it is killed."""
    launch(folder, wal=False, url=url)
    DBOS.register_queue("bench", polling_interval_sec=poll)
    print("ready", flush=True)
    HANG.wait()
    return {}


if __name__ == "__main__":
    _, name, place, given = sys.argv
    print(json.dumps(globals()[name](Path(place), **json.loads(given))), flush=True)
    # Its threads may still wait, so do not join them.
    os._exit(0)
