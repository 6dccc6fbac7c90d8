"""DBOS on SQLite, the same work as `benchmarks.sagas`. Run by the peers' own interpreter, prints one line of JSON.

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
from time import monotonic, perf_counter

from dbos import DBOS, DBOSConfig, SetWorkflowID

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


def launch(folder: Path, wal: bool, url: str = "") -> None:
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
        "executor_id": "bench",
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


def recovery(folder: Path, sagas: int = 1000, wal: bool = False) -> dict[str, float]:
    """Kill a process with many workflows in their second step, start another, wait until all have resumed."""
    command = [sys.executable, __file__, "", str(folder), ""]
    sizes = {"sagas": sagas, "wal": wal}
    with subprocess.Popen([*command[:2], "die", command[3], json.dumps(sizes)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    sizes["spawned"] = monotonic()
    done = subprocess.run([*command[:2], "resume", command[3], json.dumps(sizes)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def die(folder: Path, sagas: int, wal: bool) -> dict[str, float]:
    """The process to be killed."""
    launch(folder, wal)
    for n in range(sagas):
        with SetWorkflowID(f"w-{n}"):
            DBOS.start_workflow(interrupted)
    for _ in range(sagas):
        RESUMED.acquire()
    print("ready", flush=True)
    HANG.wait()
    return {}


def resume(folder: Path, sagas: int, wal: bool, spawned: float) -> dict[str, float]:
    """The process that takes over."""
    global RECOVERING
    RECOVERING = True
    begun = monotonic()
    launch(folder, wal)
    for _ in range(sagas):
        RESUMED.acquire()
    ended = monotonic()
    return {"resumed_s": ended - begun, "resumed_from_exec_s": ended - spawned}


if __name__ == "__main__":
    _, name, place, given = sys.argv
    print(json.dumps(globals()[name](Path(place), **json.loads(given))), flush=True)
    # Its threads may still wait, so do not join them.
    os._exit(0)
