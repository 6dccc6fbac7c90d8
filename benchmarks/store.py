"""The event store at its main jobs: appending, loading an aggregate, keeping a read model.

Each function is one measurement, run in a fresh process on a fresh file (see `benchmarks.child`). The same work as in
``peers/eventsourcing_store.py``: small frozen payloads, an aggregate that sums them, a document a key.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from event_workflow_engine import Aggregate, DocumentProjection, EventStore, WorkflowEngine, event
from event_workflow_engine._measuring.timing import side_by_side
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from event_workflow_engine.storage.port import Storage


@event("deposited")
@dataclass(frozen=True)
class Deposited:
    """A small event."""

    order: str
    cents: int


@dataclass
class Account(Aggregate[Deposited], category="account"):
    """Sums its deposits."""

    cents: int = 0

    def apply(self, event: Deposited, /) -> None:
        """Add."""
        self.cents += event.cents


@dataclass(frozen=True)
class Total:
    """The read model of one key."""

    cents: int = 0


def _url(folder: Path) -> str:
    return f"sqlite:///{folder.resolve() / 'bench.db'}"


async def _fill(storage: Storage, events: int, streams: int) -> None:
    """Events appended one by one, so each is a record of its own, by many writers at once."""
    store = EventStore(storage)

    async def writer(first: int) -> None:
        for n in range(first, events, 200):
            await store.append(f"account-{n % streams}", Deposited(f"o-{n}", n % 100))

    await asyncio.gather(*(writer(first) for first in range(200)))


def append(folder: Path, *, events: int = 30_000, writers: int = 100) -> dict[str, float]:
    """One event an append: writers on a stream each, with the expected version checked; and with any version."""

    async def main() -> dict[str, float]:
        figures = {}
        async with open_storage(_url(folder)) as storage:
            store = EventStore(storage)

            async def rate(label: str, each: int, *, check: bool) -> float:
                taken = await side_by_side(
                    lambda writer, n: store.append(
                        f"account-{label}{writer}", Deposited(f"o-{n}", 5), expected_version=n if check else "any"
                    ),
                    callers=writers,
                    each=each,
                )
                return taken.per_s

            await rate("warm", 10, check=True)
            figures["events_per_s"] = await rate("c", events // writers, check=True)
            figures["any_version_per_s"] = await rate("a", events // writers, check=False)
        return figures

    return asyncio.run(main())


def load(folder: Path, *, events: int = 10_000, rounds: int = 5) -> dict[str, float]:
    """Loading an aggregate without a snapshot, from an engine's repository."""

    async def main() -> float:
        async with open_storage(_url(folder)) as storage:
            await _fill(storage, events, 1)
        taken = []
        async with WorkflowEngine(_url(folder)) as engine:
            accounts = engine.repository(Account)
            for _ in range(rounds):
                begun = perf_counter()
                account = await accounts.load("0")
                taken.append((perf_counter() - begun) * 1000)
                if account.version != events:
                    raise AssertionError(f"version {account.version} of {events}")
        return statistics.median(taken)

    return {"load_ms": asyncio.run(main())}


def projection(folder: Path, *, events: int = 50_000, keys: int = 100) -> dict[str, float]:
    """Events already stored, folded into a document a key, from registering the projection until it is level."""
    totals = DocumentProjection("totals", Total)

    @totals.on(Deposited, key=lambda deposited: deposited.order[-2:])
    def add(document: Total | None, deposited: Deposited) -> Total:
        return Total((document or Total()).cents + deposited.cents)

    async def main() -> float:
        async with open_storage(_url(folder)) as storage:
            await _fill(storage, events, keys)
            last = await storage.last_position()
        async with WorkflowEngine(_url(folder)) as engine:
            begun = perf_counter()
            engine.projections.register(totals)
            await engine.projections.wait_for(totals, last, timeout=120)
            elapsed = perf_counter() - begun
            status = await engine.projections.status(totals)
            if status.events != events:
                raise AssertionError(f"{status.events} of {events} events folded")
            documents = await engine.projections.find(totals, limit=1000)
            if sum(document.cents for document in documents) != sum(n % 100 for n in range(events)):
                raise AssertionError("the read model does not add up")
        return events / elapsed

    return {"events_per_s": asyncio.run(main())}
