"""Events, and a store that can be made to fail, for the bus's tests."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from event_workflow_engine import EventBus, EventStore, RetryPolicy, event
from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.storage.port import Storage, Unit

ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, delay=0, jitter=0)


@event("bus-test-moved")
@dataclass(frozen=True)
class Moved:
    who: str
    to: int


@event("bus-test-ran")
@dataclass(frozen=True)
class Ran(Moved):
    pass


@event("bus-test-noise")
@dataclass(frozen=True)
class Noise:
    text: str = ""


async def started(store: EventStore, worker: str = "w-1", **options: Any) -> EventBus:
    """A bus on a store, without an engine around it."""
    bus = EventBus(**options)
    bus.attach(store, worker_id=worker)
    await bus.start()
    return bus


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Let others run until it holds; the test's own time limit is the bound."""
    while True:
        found = condition()
        if (await found) if inspect.isawaitable(found) else found:
            return
        await asyncio.sleep(0)


async def position_of(storage: Storage, subscription: str) -> int:
    row = await storage.get("checkpoints", (f"subscription:{subscription}",))
    return -1 if row is None else int(row["position"])


def collector(seen: list[int], *, done: Callable[[], bool] | None = None) -> tuple[Any, asyncio.Event]:
    """A handler that notes what it gets, and an event for when that is enough."""
    enough = asyncio.Event()

    async def handle(event: Moved) -> None:
        seen.append(event.to)
        if done is not None and done():
            enough.set()

    return handle, enough


class Faulty:
    """A store whose writes fail as long as `fails` says so of them, and that may be slow to tell where its log ends."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.fails: Any = lambda unit: False
        self.failures = 0
        self.before_last_position: Callable[[], Awaitable[object]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def write(self, unit: Unit) -> Any:
        if self.fails(unit):
            self.failures += 1
            raise StorageUnavailableError("the disk is full")
        return await self._storage.write(unit)

    async def last_position(self) -> int:
        if self.before_last_position is not None:
            await self.before_last_position()
        return await self._storage.last_position()
