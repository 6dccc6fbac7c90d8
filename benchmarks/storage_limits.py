"""The storage layer by itself, beside the raw limits: ``python -m benchmarks.storage_limits [FOLDER]``.

Each function is one measurement in the manner of `benchmarks.limits`. `main` runs them in turn with their limits, each
in a fresh process (see `benchmarks.child`), several times over, and prints medians and shares.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit, WorkerRef

if TYPE_CHECKING:
    from event_workflow_engine.storage import Storage

AT = 1_700_000_000_000_000
SMALL = b'{"order":"o-000001","cents":1299}'
FACTS = b'[{"type":"step-succeeded","step":"charge","result":"payment-1"},{"type":"step-started","step":"ship"}]'


def _url(folder: Path) -> str:
    return f"sqlite:///{folder.resolve() / 'storage.db'}"


def _event(stream: str, version: int) -> Unit:
    name = uuid7()
    return Unit(name, AT, (Append(stream, (NewRecord(name, "placed", SMALL),), version),))


def units(folder: Path, *, clients: int = 1000, writes: int = 50, rounds: int = 3) -> dict[str, float]:
    """Tasks that each append one event after another to a stream of their own, at its version."""

    async def client(storage: Storage, stream: str) -> None:
        for version in range(writes):
            await storage.write(_event(stream, version))

    async def main() -> float:
        rates = []
        async with open_storage(_url(folder)) as storage:
            for turn in range(rounds + 1):
                begun = perf_counter()
                await asyncio.gather(*(client(storage, f"order-{turn}-{n}-{uuid7()}") for n in range(clients)))
                rates.append(clients * writes / (perf_counter() - begun))
        return statistics.median(rates[1:])

    return {"units_per_s": asyncio.run(main())}


def saga_units(folder: Path, *, sagas: int = 1000, rounds: int = 5) -> dict[str, float]:
    """What sagas of five steps write: a start with its rows, four steps that check their owner, an end."""
    owner = WorkerRef("worker", 1)
    owned = {"owner": "worker", "fence": 1}
    begun_as = {"saga": "fulfil", "saga_version": 1, "state": "RUNNING", "cursor": 0, "started_at": AT, **owned}
    ended_as = {"state": "COMPLETED", "owner": "", "wake_at": None, "cursor": 0, "ended_at": AT}

    async def saga(storage: Storage, saga_id: str) -> None:
        start = (
            Row("sagas", "insert", (saga_id,), begun_as),
            Row("saga_ids", "insert", (saga_id,), {"saga": "fulfil"}),
        )
        check = (Row("sagas", "check", (saga_id,), {}, owned),)
        end = (Row("sagas", "update", (saga_id,), ended_as, owned),)
        for number, rows in enumerate((start, check, check, check, check, end)):
            name = uuid7()
            facts = NewRecord(name, "step-started+step-succeeded", FACTS, count=2)
            appends: tuple[Append, ...] = (Append(f"saga-{saga_id}", (facts,), 2 * number),)
            if rows is end:
                appends += (Append(f"inbox-{saga_id}", (), 0),)
            await storage.submit(Unit(name, AT, appends, rows, owner))

    async def main() -> float:
        rates = []
        async with open_storage(_url(folder)) as storage:
            life = Row("workers", "insert", (owner.id,), {"incarnation": 1, "alive": 1})
            await storage.write(Unit(uuid7(), AT, rows=(life,)))
            for turn in range(rounds + 1):
                begun = perf_counter()
                await asyncio.gather(*(saga(storage, f"{turn}-{n}-{uuid7()}") for n in range(sagas)))
                rates.append(sagas * 6 / (perf_counter() - begun))
        return statistics.median(rates[1:])

    return {"units_per_s": asyncio.run(main())}


def latency(folder: Path, *, samples: int = 3000) -> dict[str, float]:
    """One unit after another."""

    async def main() -> list[float]:
        taken = []
        async with open_storage(_url(folder)) as storage:
            for version in range(samples):
                begun = perf_counter()
                await storage.write(_event("order-1", version))
                taken.append((perf_counter() - begun) * 1000)
        return sorted(taken[samples // 10 :])

    taken = asyncio.run(main())
    p99 = taken[int(len(taken) * 0.99)]
    return {"p50_ms": statistics.median(taken), "p99_ms": p99, "units_per_s": 1000 / statistics.mean(taken)}


def reads(folder: Path, *, events: int = 10_000, rounds: int = 7) -> dict[str, float]:
    """A stream of single events, read whole; the log likewise; and one small read."""

    async def main() -> dict[str, float]:
        async with open_storage(_url(folder)) as storage:
            await asyncio.gather(*(storage.submit(_event("account-1", version)) for version in range(events)))
            taken: dict[str, list[float]] = {"stream_ms": [], "log_ms": [], "head_ms": []}
            for _ in range(rounds):
                begun = perf_counter()
                found = await storage.read_stream("account-1", limit=events)
                taken["stream_ms"].append((perf_counter() - begun) * 1000)
                if len(found) != events:
                    raise AssertionError(f"read {len(found)} of {events}")
                begun = perf_counter()
                await storage.read_log(limit=events)
                taken["log_ms"].append((perf_counter() - begun) * 1000)
                begun = perf_counter()
                await storage.head("account-1")
                taken["head_ms"].append((perf_counter() - begun) * 1000)
            return {name: statistics.median(times) for name, times in taken.items()}

    return asyncio.run(main())


# What to run: a name, the call, its sizes; and the raw limit whose share it is.
_PLAN: tuple[tuple[str, str, dict[str, Any], tuple[str, dict[str, Any]] | None], ...] = (
    ("1 client", "latency", {}, ("one_row_commits", {})),
    ("8 clients", "units", {"clients": 8, "writes": 1000}, ("group_commit", {"clients": 8, "writes": 500})),
    ("100 clients", "units", {"clients": 100, "writes": 300}, ("group_commit", {"clients": 100, "writes": 200})),
    ("1,000 clients", "units", {}, ("group_commit", {"clients": 1000, "writes": 30})),
    ("1,000 sagas", "saga_units", {}, ("group_commit", {"clients": 1000, "writes": 30})),
    ("reads of 10,000", "reads", {}, None),
)


def _run(call: str, sizes: dict[str, Any], below: Path | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=below) as folder:
        command = [sys.executable, "-m", "benchmarks.child", call, folder, json.dumps(sizes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main(below: Path | None = None, *, repeat: int = 3) -> None:
    """Run all and print."""
    for name, call, sizes, limit in _PLAN:
        ours, limits = [], []
        for _ in range(repeat):
            if limit is not None:
                limits.append(next(iter(_run(f"limits:{limit[0]}", limit[1], below).values())))
            ours.append(_run(f"storage_limits:{call}", sizes, below))
        figures = {figure: statistics.median(one[figure] for one in ours) for figure in ours[0]}
        shown = ", ".join(
            f"{figure} {value:,.2f}" if value < 100 else f"{figure} {value:,.0f}" for figure, value in figures.items()
        )
        share = (
            f"  ({figures['units_per_s'] / statistics.median(limits):.2f} of {statistics.median(limits):,.0f})"
            if limits
            else ""
        )
        print(f"{name:16} {shown}{share}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
