"""Sagas and appends on a PostgreSQL server, and what the bare server call gives.

Each function is one measurement, run in a fresh process on a fresh server (see `benchmarks.runner`): fsync on, client
and server on this machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
from contextlib import ExitStack
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks import processes
from benchmarks import sagas as workloads
from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Append, NewRecord, Unit
from event_workflow_engine.storage.postgres.batch import numbers
from event_workflow_engine.storage.postgres.queries import statements_in

if TYPE_CHECKING:
    from pathlib import Path

PAYLOAD = b'{"order":"o-000001","sku":"lamp","cents":1299,"note":"' + b"x" * 90 + b'"}'


def sequential(folder: Path, *, url: str, form: str, steps: int = 1000) -> dict[str, float]:
    """As on SQLite."""
    return workloads.sequential(folder, url=url, form=form, steps=steps, long=0)


def concurrent(folder: Path, *, url: str, form: str, sagas: int = 1000) -> dict[str, float]:
    """As on SQLite."""
    return workloads.concurrent(folder, url=url, form=form, sagas=sagas)


def latency(folder: Path, *, url: str, form: str, samples: int = 500) -> dict[str, float]:
    """As on SQLite."""
    return workloads.latency(folder, url=url, form=form, samples=samples)


# -- the bare server call ------------------------------------------------------------------------------------------


class BareCall:
    """The server call that writes a batch, with nothing of ours before it but its parameters."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self._sql, self._names = statements_in("ewe")["commit_batch"].numbered[0]
        self._position = 0

    async def write(self, heads: list[tuple[str, int]], events: int) -> None:
        """Append so many events to each stream, which is at that version."""
        records = [(stream, version + n) for stream, version in heads for n in range(1, events + 1)]
        count = len(records)
        values: dict[str, Any] = dict.fromkeys(self._names)
        values |= {
            "streams": [stream for stream, _ in heads],
            "versions": numbers([version for _, version in heads]),
            "assumed_position": self._position,
            "exact": False,
            "reach": count,
            "positions": numbers(range(self._position + 1, self._position + count + 1)),
            "record_streams": [stream for stream, _ in records],
            "record_versions": numbers([version for _, version in records]),
            "counts": numbers([1] * count),
            "parts": numbers([0] * count),
            "ids": [uuid7() for _ in records],
            "types": ["step-succeeded"] * count,
            "schemas": numbers([1] * count),
            "payloads": [PAYLOAD] * count,
            "metadatas": [b""] * count,
            "times": numbers([1] * count),
            "channel": "bench",
            "sender": "bench",
        }
        row = await self._connection.fetchrow(self._sql, *(values[name] for name in self._names))
        if row["stale"] is not None:
            raise AssertionError(row["stale"])
        self._position += count


def bare_calls(_: Path, *, url: str, seconds: float = 1.0) -> dict[str, float]:
    """One event a call, one call after another: what a sequence of durable steps can reach without an engine."""

    async def main() -> float:
        async with open_storage(url, auto_upgrade=True):
            connection = await asyncpg.connect(url)
            call = BareCall(connection)
            for n in range(20):
                await call.write([("warm", n)], 1)
            count, begun = 0, perf_counter()
            while (elapsed := perf_counter() - begun) < seconds:
                await call.write([("s", count)], 1)
                count += 1
            await connection.close()
        return count / elapsed

    return {"calls_per_s": asyncio.run(main())}


def bare_group(_: Path, *, url: str, clients: int = 1000, writes: int = 5, rounds: int = 3) -> dict[str, float]:
    """Tasks that each append two events at a time, version checked, all sharing calls: the limit for sagas."""

    async def main() -> list[float]:
        async with open_storage(url, auto_upgrade=True):
            connection = await asyncpg.connect(url)
            call = BareCall(connection)
            waiting: list[tuple[tuple[str, int], asyncio.Future[None]]] = []
            rang = asyncio.Event()

            async def commit() -> None:
                while True:
                    await rang.wait()
                    rang.clear()
                    batch, waiting[:] = list(waiting), []
                    await call.write([head for head, _ in batch], 2)
                    for _, future in batch:
                        future.set_result(None)

            async def client(stream: str) -> None:
                for n in range(writes):
                    future = asyncio.get_running_loop().create_future()
                    waiting.append(((stream, 2 * n), future))
                    rang.set()
                    await future

            committer = asyncio.create_task(commit())
            rates = []
            for turn in range(rounds):
                begun = perf_counter()
                await asyncio.gather(*(client(f"{turn}-{n}") for n in range(clients)))
                rates.append(clients * writes / (perf_counter() - begun))
            committer.cancel()
            await connection.close()
        return rates

    return {"writes_per_s": statistics.median(asyncio.run(main()))}


# -- several processes ---------------------------------------------------------------------------------------------


def many_processes(folder: Path, *, url: str, workers: int = 4, sagas: int = 1000, rounds: int = 3) -> dict[str, float]:
    """So many workers, each running its share of the sagas at once; from the first start to the last end."""

    async def check(events: int) -> None:
        async with open_storage(url) as storage:
            position, seen = 0, 0
            while page := await storage.read_log(after=position, limit=5000):
                seen += sum(record.count for record in page)
                position = page[-1].position
        if seen != events:
            raise AssertionError(f"{seen} events in the log, the workers wrote {events}")

    async def make() -> None:
        async with open_storage(url, auto_upgrade=True):
            pass

    asyncio.run(make())
    rates, events = [], 0
    with ExitStack() as stack:
        share = {"url": url, "sagas": sagas // workers, "rounds": rounds}
        children = processes.children("postgres:one_of_many", folder, [share] * workers, stack)
        list(processes.lines(children))
        for _ in range(rounds):
            begun = perf_counter()
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            events = sum(int(line) for line in processes.lines(children))
            rates.append(sagas * 5 / (perf_counter() - begun))
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
    asyncio.run(check(events))
    return {"steps_per_s": statistics.median(rates)}


def one_of_many(_: Path, *, url: str, sagas: int, rounds: int) -> dict[str, float]:
    """One of the workers: a round for each line that it reads; says how many events it has written in all."""

    async def main() -> None:
        few = workloads.declared(5)
        written = 0

        def count(batch: Any) -> None:
            nonlocal written
            written += sum(appended.count for _, done in batch for appended in done.appended)

        async with open_storage(url) as storage:
            storage.add_commit_hook(count)
            engine = WorkflowEngine(storage, config=EngineConfig(max_running=sagas))
            engine.register(few)
            async with engine:
                await asyncio.gather(*(engine.execute(few) for _ in range(20)))
                print(written, flush=True)
                for _ in range(rounds):
                    await asyncio.to_thread(sys.stdin.readline)
                    await asyncio.gather(*(engine.execute(few) for _ in range(sagas)))
                    print(written, flush=True)
                await asyncio.to_thread(sys.stdin.readline)

    asyncio.run(main())
    return {}


async def _now() -> int:
    return time_ns()


timed = Saga("timed", [SagaStep("now", _now)])


def enqueue(
    folder: Path, *, url: str, samples: int = 300, settle: float = 11.0, idle: float = 10.0
) -> dict[str, float]:
    """From starting a saga in one process until its first action runs in another; and the other's idle queries."""

    async def main() -> dict[str, float]:
        async with open_storage(url, auto_upgrade=True) as storage:
            (child,) = processes.children("postgres:worker", folder, [{"url": url}], stack)
            list(processes.lines([child]))
            server = await asyncpg.connect(url)
            engine = WorkflowEngine(storage, config=EngineConfig(worker=False))
            engine.register(timed)
            async with engine:
                await engine.execute(timed)
                # Servers' processes report what they did ten seconds after it; those that are notified much later, so
                # this comes before the many notifications.
                await asyncio.sleep(settle)
                before = await _transactions(server)
                await asyncio.sleep(idle)
                asked = (await _transactions(server) - before) / idle
                taken = []
                for _ in range(samples + 20):
                    begun = time_ns()
                    result = await engine.execute(timed)
                    taken.append((result["now"] - begun) / 1e6)
            child.kill()
            await server.close()
        taken = sorted(taken[20:])
        return {
            "p50_ms": statistics.median(taken),
            "p99_ms": taken[int(len(taken) * 0.99)],
            "idle_queries_per_s": asked,
        }

    with ExitStack() as stack:
        return asyncio.run(main())


async def _transactions(server: asyncpg.Connection[Any]) -> int:
    # Each query of an idle worker is a transaction of its own; this one counts, too.
    await server.execute("SELECT pg_stat_force_next_flush()")
    sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    return int(await server.fetchval(sql))


def worker(_: Path, *, url: str, lease: float = 15.0) -> dict[str, float]:
    """A worker, until it is killed."""

    async def main() -> None:
        engine = WorkflowEngine(url, config=EngineConfig(lease=lease))
        engine.register(timed)
        async with engine:
            print("ready", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
    return {}


def append(_: Path, *, url: str, writers: int = 64, events: int = 30_000, width: int = 3) -> dict[str, float]:
    """Writers that append so many events a unit to streams of their own, version checked."""

    async def main() -> float:
        async with open_storage(url, auto_upgrade=True) as storage:

            async def writer(stream: str, units: int) -> None:
                for n in range(units):
                    records = tuple(NewRecord(uuid7(), "deposited", PAYLOAD) for _ in range(width))
                    await storage.write(Unit(records[0].id, 1, (Append(stream, records, n * width),)))

            await asyncio.gather(*(writer(f"warm-{n}", 5) for n in range(writers)))
            units = events // writers // width
            begun = perf_counter()
            await asyncio.gather(*(writer(f"s-{n}", units) for n in range(writers)))
            return units * width * writers / (perf_counter() - begun)

    return {"events_per_s": asyncio.run(main())}


def recovery(folder: Path, *, url: str, sagas: int = 1000, lease: float = 5.0) -> dict[str, float]:
    """A worker with many sagas is killed beside an idle one: until all of them have resumed there.

    ``over_lease_s`` is that time less the lease.
    """

    async def make() -> None:
        async with open_storage(url, auto_upgrade=True):
            pass

    asyncio.run(make())
    sizes: dict[str, Any] = {"url": url, "sagas": sagas, "lease": lease}
    with ExitStack() as stack:
        (doomed,) = processes.children("postgres:holder", folder, [sizes | {"starts": True}], stack)
        list(processes.lines([doomed]))
        (heir,) = processes.children("postgres:holder", folder, [sizes | {"starts": False}], stack)
        list(processes.lines([heir]))
        os.kill(doomed.pid, signal.SIGKILL)
        begun = perf_counter()
        list(processes.lines([heir]))
        taken = perf_counter() - begun
        heir.kill()
    return {"resumed_s": taken, "over_lease_s": taken - lease}


def holder(_: Path, *, url: str, sagas: int, lease: float, starts: bool) -> dict[str, float]:
    """A worker whose sagas hang in their second step; says when it is there, and when all sagas do."""

    async def main() -> None:
        steps = workloads.Interrupted(sagas, hangs=True)
        definition = steps.definition("declared")
        engine = WorkflowEngine(url, config=EngineConfig(max_running=sagas, lease=lease))
        engine.register(definition)
        async with engine:
            if starts:
                await workloads.in_turns(engine, definition, sagas)
            else:
                print("ready", flush=True)
            await steps.all_running.wait()
            print("all", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
    return {}
