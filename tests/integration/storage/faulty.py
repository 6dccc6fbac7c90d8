"""Stores on a disk that loses its power or fails, and what must be on it afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager, closing
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.integration.storage.pouring import STREAMS, all_land, attempt, check_streams, rounds_of, step

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage.sqlite import SqliteStorage
from event_workflow_engine.storage.sqlite.connection import connect
from event_workflow_engine.testing.disk import FaultyDisk

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from pathlib import Path

    from event_workflow_engine.storage.port import Written
    from event_workflow_engine.testing.disk import Operation

NEVER = 10**9

_TOLD = ("could not be written", "checkpoint failed", "between two jobs")


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


async def check(path: Path, acknowledged: Collection[str]) -> None:
    """A store there has what was acknowledged, and SQLite finds the file whole."""
    async with SqliteStorage(path) as storage:
        await check_streams(storage, acknowledged)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@asynccontextmanager
async def stores(path: str, number: int, **how: Any) -> AsyncIterator[list[SqliteStorage]]:
    """So many, each with connections and locks of its own, as processes have; the disk under them is one."""
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(SqliteStorage(path, **how)) for _ in range(number)]


class PowerLosses:
    """What power losses at random moments would leave, each with what was acknowledged by then."""

    def __init__(self, disk: FaultyDisk, folder: Path, rng: random.Random, apart: int, keep: float | None) -> None:
        self._disk = disk
        self._folder = folder
        self._rng = rng
        self._apart = apart
        self._keep = keep
        self.acknowledged: list[str] = []
        self.left: list[tuple[Path, list[str]]] = []
        self._again()

    def _again(self) -> None:
        self._disk.at(self._rng.randrange(1, 2 * self._apart), self._lose)

    def _lose(self) -> None:
        folder = make(self._folder / str(len(self.left)))
        self.left.append((self._disk.lose_power(folder, keep=self._keep), list(self.acknowledged)))
        self._again()


async def pour(storage: SqliteStorage, losses: PowerLosses, stream: str, rounds: int) -> None:
    for version in range(rounds):
        written = await storage.write(step(stream, version, size=3 ** (version % 9)))
        losses.acknowledged.append(written.unit_id)


async def play(
    folder: Path,
    rng: random.Random,
    rounds: int,
    apart: int,
    *,
    keep: float | None = None,
    connect: Any = connect,
    number: int = 1,
) -> PowerLosses:
    with FaultyDisk(make(folder) / "a.db", rng) as disk:
        losses = PowerLosses(disk, folder / "left", rng, apart, keep)
        async with stores(disk.path, number, connect=connect) as storages:
            shares = zip(STREAMS, cycle(storages), strict=False)
            await asyncio.gather(*(pour(storage, losses, stream, rounds) for stream, storage in shares))
            disk.at(NEVER, losses.left.clear)
    return losses


class Way(NamedTuple):
    """How a disk fails: operations of a kind, so many in a row, below so many stores.

    Attributes:
        whole: It may be before the stores are open, and when they close.
    """

    operation: Operation
    code: int | None = None
    times: float = 1
    whole: bool = False
    number: int = 1


class Faulty:
    """Stores whose disk fails once, or for a while, from a number of operations on."""

    def __init__(self, folder: Path, rng: random.Random, way: Way, at: int, told: Callable[[], list[str]]) -> None:
        self._folder = make(folder)
        self._told = told
        self._way = way
        self._at = at
        self.acknowledged: dict[str, Written] = {}
        self.rounds = rounds_of(3, size=3000)
        self.disk = FaultyDisk(folder / "a.db", rng)
        self.reached = 0

    async def work(self) -> bool:
        """Work while it fails, and on when it works again; whether it had failed."""
        with self.disk:
            async with stores(self.disk.path, self._way.number) as storages:
                self._arm()
                for units in self.rounds:
                    await attempt(storages, units, self.acknowledged)
                    await storages[0].last_position()
                met = self._healed()
                await self._all_lands(storages)  # behind a checkpoint that may have met it just now
                told = [line for line in self._told() if any(what in line for what in _TOLD)]
                assert met <= len(told), "a line tells of it"
                assert len(told) <= 1 or self._way.times > 1, told
        await check(self._folder / "a.db", self.acknowledged)
        return met

    async def whole_life(self) -> bool:
        """The same from opening to closing."""
        with self.disk:
            self._arm()
            try:
                async with stores(self.disk.path, self._way.number) as storages:
                    for units in self.rounds:
                        await attempt(storages, units, self.acknowledged)
            except StorageUnavailableError:
                assert not self.acknowledged, "only opening raises"
            met = self._healed()
            async with stores(self.disk.path, self._way.number) as storages:
                await self._all_lands(storages)
        return met

    def _arm(self) -> None:
        self._before = self.disk.counts[self._way.operation]
        self.disk.fail(self._way.operation, at=self._at, times=self._way.times, code=self._way.code)

    def _healed(self) -> bool:
        self.disk.heal()
        self.reached = self.disk.counts[self._way.operation] - self._before
        return self.disk.failed > 0

    async def _all_lands(self, storages: Sequence[SqliteStorage]) -> None:
        """Then the power goes."""
        await all_land(storages, self.rounds, self.acknowledged)
        await check(self.disk.lose_power(make(self._folder / "left")), self.acknowledged)
