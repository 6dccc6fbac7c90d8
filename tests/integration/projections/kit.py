"""Events, folds and stores for the projections' tests."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from event_workflow_engine import DocumentProjection, SqlProjection, event
from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from event_workflow_engine.projections import Mode, Transaction
    from event_workflow_engine.storage.port import Storage, Unit


@event("projection-test-added")
@dataclass(frozen=True)
class Added:
    key: str
    amount: int


@event("projection-test-dropped")
@dataclass(frozen=True)
class Dropped:
    key: str


@event("projection-test-noise")
@dataclass(frozen=True)
class Noise:
    text: str = ""


@dataclass
class Sum:
    key: str
    total: int = 0
    events: list[int] = field(default_factory=list)


POISON = 666


def fold(document: Sum | None, event: Added) -> Sum:
    if event.amount == POISON:
        raise ValueError("poison")
    before = document or Sum(event.key)
    return Sum(event.key, before.total + event.amount, [*before.events, event.amount])


def sums(name: str = "sums", mode: Mode = "async", *, version: int = 1) -> DocumentProjection[Sum]:
    """The amounts of each key; a `Dropped` deletes it."""
    projection = DocumentProjection(name, Sum, mode=mode, version=version)
    projection.on(Added, key=lambda event: event.key)(fold)
    projection.on(Dropped, key=lambda event: event.key)(lambda document, event: None)
    return projection


def expected(events: list[Added | Dropped]) -> dict[str, Sum]:
    """What all modes must come to: a key with poison stays as it was before it."""
    found: dict[str, Sum] = {}
    parked: dict[str, bool] = defaultdict(bool)
    for one in events:
        if parked[one.key]:
            continue
        if isinstance(one, Dropped):
            found.pop(one.key, None)
        elif one.amount == POISON:
            parked[one.key] = True
        else:
            found[one.key] = fold(found.get(one.key), one)
    return found


def book(
    name: str = "book", mode: Literal["async", "inline"] = "async", *, version: int = 1, sign: int = 1
) -> SqlProjection:
    """A line for each `Added`."""
    projection = SqlProjection(name, tables={"lines": "key TEXT, amount BIGINT"}, mode=mode, version=version)

    @projection.on(Added)
    async def write(tx: Transaction, event: Added) -> None:
        await tx.execute("INSERT INTO {lines} VALUES (:key, :amount)", key=event.key, amount=sign * event.amount)
        if event.amount == POISON:
            raise ValueError("poison")

    return projection


class Cable:
    """A store as one worker sees it, until the cable is cut: before a write or behind it."""

    def __init__(self, storage: Storage, *, after: int | None = None, lands: bool = False) -> None:
        self._storage = storage
        self._left = after
        self._lands = lands
        self.is_cut = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def cut(self) -> None:
        self.is_cut.set()

    async def write(self, unit: Unit) -> Any:
        return await self._through(self._storage.write, unit)

    async def exclusive(self, unit: Unit, work: Any) -> Any:
        return await self._through(self._storage.exclusive, unit, work)

    async def perform(self, name: str, **params: Any) -> Any:
        if self.is_cut.is_set():
            raise StorageUnavailableError("the cable is cut")
        return await self._storage.perform(name, **params)

    async def _through(self, send: Any, *args: Any) -> Any:
        last = self._left == 0
        if self._left is not None:
            self._left -= 1
        if last:
            self.cut()
            if self._lands:
                await send(*args)
        if self.is_cut.is_set():
            raise StorageUnavailableError("the cable is cut")
        return await send(*args)
