"""The event bus: what it delivers a second, and what it costs those who append.

Each function is one measurement, run in a fresh process on a fresh file (see `benchmarks.child`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from event_workflow_engine import EventBus, EventStore, WorkflowEngine, event
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path


@event("parcel-moved")
@dataclass(frozen=True)
class Moved:
    """A small event."""

    parcel: str
    to: int


@event("parcel-lost")
@dataclass(frozen=True)
class Lost:
    """Never appended here."""

    parcel: str


def _url(folder: Path) -> str:
    return f"sqlite:///{folder.resolve() / 'bench.db'}"


async def _append(store: EventStore, events: int, writers: int) -> float:
    """One event an append, by writers at once; events a second."""

    async def writer(stream: str) -> None:
        for n in range(events // writers):
            await store.append(stream, Moved(stream, n))

    begun = perf_counter()
    await asyncio.gather(*(writer(f"parcel-{n}") for n in range(writers)))
    return events / (perf_counter() - begun)


def publish(folder: Path, *, events: int = 50_000, keys: int = 100) -> dict[str, float]:
    """Publishing without a store, until all is handled: an async handler that does nothing, with a key."""

    async def main() -> float:
        bus, seen = EventBus(), 0

        async def handle(moved: Moved) -> None:
            nonlocal seen
            seen += 1

        bus.subscribe(Moved, handle, key=lambda moved: moved.parcel)
        names = [f"p-{n}" for n in range(keys)]
        begun = perf_counter()
        for n in range(events):
            await bus.publish(Moved(names[n % keys], n))
        await bus.drain()
        elapsed = perf_counter() - begun
        if seen != events:
            raise AssertionError(f"{seen} of {events} events handled")
        return events / elapsed

    return {"events_per_s": asyncio.run(main())}


def durable(folder: Path, *, events: int = 50_000, writers: int = 100) -> dict[str, float]:
    """Events already stored, handed to a durable subscription, until all are handled and the checkpoint is level."""

    async def main() -> float:
        async with open_storage(_url(folder)) as storage:
            await _append(EventStore(storage), events, writers)
        last: dict[str, int] = {}

        async def handle(moved: Moved) -> None:
            if moved.to != last.get(moved.parcel, -1) + 1:
                raise AssertionError(f"{moved} out of order")
            last[moved.parcel] = moved.to

        async with WorkflowEngine(_url(folder)) as engine:
            begun = perf_counter()
            engine.bus.subscribe(Moved, handle, durable="walks")
            await engine.bus.drain()
            elapsed = perf_counter() - begun
        if sum(last.values()) != events - writers:
            raise AssertionError("not all events were handled")
        return events / elapsed

    return {"events_per_s": asyncio.run(main())}


def appending(folder: Path, *, events: int = 30_000, writers: int = 100) -> dict[str, float]:
    """Appends while nobody subscribes, while others' types are subscribed to, and while these are handled."""

    async def main() -> dict[str, float]:
        figures = {}
        async with WorkflowEngine(_url(folder)) as engine:

            async def handle(_: object) -> None:
                pass

            await _append(engine.store, events // 10, writers)
            figures["nobody_per_s"] = await _append(engine.store, events, writers)
            engine.bus.subscribe(Lost, handle)
            engine.bus.subscribe(Lost, handle, durable="losses")
            await engine.bus.drain()
            figures["other_types_per_s"] = await _append(engine.store, events, writers)
            engine.bus.subscribe(Moved, handle)
            figures["handled_per_s"] = await _append(engine.store, events, writers)
            await engine.bus.drain()
        return figures

    return asyncio.run(main())
