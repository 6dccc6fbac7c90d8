"""Copying a store as a whole into another one, on whichever backends they are, and proving that it arrived.

The target is written in one transaction and read back inside it, so a copy is all there and was compared, or there is
nothing of it: whatever kills the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.errors import (
    DefinitionError,
    StorageCorruptError,
    StoreInUseError,
    StoreNotEmptyError,
)
from event_workflow_engine.storage.names import sql_table_prefix
from event_workflow_engine.storage.port import EVENT_COLUMNS, EVENTS, EVENTS_BY_STREAM, UNITS
from event_workflow_engine.storage.tables import CHECKPOINTS, SAGAS, TABLES, WORKERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from event_workflow_engine.storage.port import HeldStore, Storage

    Tell = Callable[[str, int, int], None]

__all__ = ["Copied", "copy_store"]

_log: Final = logging.getLogger("event_workflow_engine.storage")

_PAGE: Final = 2000
_LOOK_EVERY_S: Final = 0.5
_SQL_TABLE: Final = re.compile(r"p_.+_g\d+\Z")
_QUEUE: Final = "queue:"
"""How the owner of a saga begins that waits in a queue."""
_STREAM, _COUNT = EVENT_COLUMNS.index("stream"), EVENT_COLUMNS.index("count")

_Row = tuple[Any, ...]
_Sum = tuple[int, bytes]  # of rows: how many, and their digest
_Life = tuple[str, int, int]  # of a worker: id, incarnation, beat


class Copied(msgspec.Struct, frozen=True):
    """What was copied, and compared row by row.

    Attributes:
        records: Rows of the log, each one event or several packed.
        events: How many events they hold.
        streams: How many streams they make.
        unit_ids: Ids of units without records.
        rows: How many rows of each declared table.
        position: Where the log ends; the target's next event is behind it.
        checksum: SHA-256 of all that was copied, the same for two stores that hold the same.
        starting_anew: SQL projections, whose tables are not copied: they fold the log again from its beginning.
        left_behind: Other tables beside the store's own, such as an application's. They are not copied.
    """

    records: int
    events: int
    streams: int
    unit_ids: int
    rows: dict[str, int]
    position: int
    checksum: str
    starting_anew: tuple[str, ...]
    left_behind: tuple[str, ...]


async def copy_store(source: Storage, target: Storage, *, lease: float = 15.0, tell: Tell | None = None) -> Copied:
    """Copy all of `source` into `target`, and compare both before anything of it is kept.

    Nobody writes to either meanwhile: who tries waits, and one who waits at the source ends the copy, for what it is
    about to write would be there alone. Event ids, positions with their gaps, versions, packed records, times and rows
    are as they were, with these exceptions. Rows of workers are not copied, so sagas and checkpoints that a dead one
    still had are nobody's, and due; those that wait in a queue wait on. A checkpoint behind the log's last event is at
    that event. SQL projections start anew (`Copied.starting_anew`), other tables stay behind (`Copied.left_behind`).

    Args:
        source: The store to be copied, entered or not; it is left as it was.
        target: An empty store, entered or not.
        lease: Seconds after which an unchanged heartbeat says that a worker is dead, where there are heartbeats: what
            the workers' own `EngineConfig` has.
        tell: Called often while it goes on: with ``"position"`` as the log is copied and ``"event"`` as it is compared,
            and how far that is, and of how much.

    Raises:
        DefinitionError: Both are the same store; or a text holds what the target cannot.
        StoreInUseError: A worker runs at one of them, or somebody else was about to write to the source.
        StoreNotEmptyError: The target holds something.
        StorageCorruptError: What arrived is not what was there, or the source is damaged.
        StorageError: A store cannot be entered, or cannot do its work. Where the target was lost while it committed,
            copying again tells by `StoreNotEmptyError` that all of it is there.
    """
    async with source:
        dead = await _dead_workers(source, lease)
        async with target:
            if await source.identity() == await target.identity():
                raise DefinitionError(f"{source.url} and {target.url} are the same store: name another target")
            await _dead_workers(target, lease)

            async def hold_target(old: HeldStore) -> Copied:
                await _require_still_dead(source, old, dead)
                return await target.hold(lambda new: _Copy(old, new, source.url, target.url, tell).run())

            return await source.hold(hold_target)


class _Copy:
    """One copy, while both stores are held."""

    def __init__(self, old: HeldStore, new: HeldStore, source: str, target: str, tell: Tell | None) -> None:
        self._old = old
        self._new = new
        self._source = source
        self._target = target
        self._tell = tell
        self._look_at = 0.0

    async def run(self) -> Copied:
        """Copy, and compare."""
        old, new, target = self._old, self._new, self._target
        await _require_empty(new, target)
        anew, left_behind = await _other_tables(old)
        arrival = _Arrival(anew)
        position = await old.end()
        counted = await self._copy_events(arrival, position)
        async for page in _pages(old, UNITS):
            await new.put(UNITS, page)
        for table in TABLES:
            async for page in _pages(old, table):
                if images := arrival.images(table, page):
                    await new.put(table, images)
        await new.move_end(position)

        checksum = hashlib.sha256()
        streams, *read_back = await self._compare_streams(checksum, counted[1])
        if read_back != counted:
            raise StorageCorruptError(
                f"{target}: {counted} records and events were read by position at the source, but {read_back} by their "
                "streams, so the source is damaged: nothing was copied; restore it from a backup"
            )
        sums = {part: await self._compare(part, arrival) for part in (UNITS, *TABLES)}
        # It is behind where another copy into this store was undone: positions that were given are not given again.
        if await new.end() < position:
            raise StorageCorruptError(f"{target}: positions would go back: nothing was copied; copy again")
        checksum.update(msgspec.msgpack.encode(sorted(sums.items())))
        await self._require_nobody_waits()
        records, events = counted
        rows = {table: sums[table][0] for table in TABLES if table != WORKERS.name}
        return Copied(
            records, events, streams, sums[UNITS][0], rows, position, checksum.hexdigest(),
            tuple(sorted(anew)), left_behind,
        )  # fmt: skip

    async def _copy_events(self, arrival: _Arrival, end: int) -> list[int]:
        """Copy the log; how many records and events it has."""
        records = events = 0
        async for page in _pages(self._old, EVENTS):
            await self._new.put(EVENTS, page)
            records += len(page)
            events += sum(row[_COUNT] for row in page)
            arrival.last_position = page[-1][0]
            await self._passed("position", arrival.last_position, end)
        return [records, events]

    async def _passed(self, what: str, number: int, of: int) -> None:
        if self._tell is not None:
            self._tell(what, number, of)
        if time.monotonic() >= self._look_at:
            await self._require_nobody_waits()

    async def _require_nobody_waits(self) -> None:
        """See that nobody has come to the source meanwhile.

        Raises:
            StoreInUseError: Somebody has.
        """
        if await self._old.awaited():
            raise StoreInUseError(
                f"{self._source}: another process came meanwhile and waits to write to it, or to open the file: "
                "nothing was copied, for what it writes would be at the source alone; stop it, then copy again",
                [],
            )
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    async def _compare_streams(self, checksum: Any, of: int) -> list[int]:
        """Compare both stores stream by stream; how many streams, records and events they have."""
        streams = records = events = 0
        there = _stream_sums(self._new)
        async for name, was in _stream_sums(self._old):
            arrived = await anext(there, None)
            if arrived != (name, was):
                raise StorageCorruptError(
                    f"stream {name!r} did not arrive as it was: nothing was copied; copy again, and if it is the same "
                    "stream, look for damage at the source"
                )
            checksum.update(msgspec.msgpack.encode((name, was)))
            streams, records, events = streams + 1, records + was[0], events + was[1]
            await self._passed("event", events, of)
        if (more := await anext(there, None)) is not None:
            raise StorageCorruptError(f"stream {more[0]!r} arrived, but was not there: nothing was copied")
        return [streams, records, events]

    async def _compare(self, part: str, arrival: _Arrival) -> _Sum:
        """Compare all rows of a part; how many there are, and their digest."""
        was, arrived = await _sum(self._old, part, arrival), await _sum(self._new, part)
        if was != arrived:
            raise StorageCorruptError(
                f"{self._target}: {part} did not arrive as they were: nothing was copied; copy again"
            )
        return was


async def _pages(store: HeldStore, part: str) -> AsyncIterator[list[_Row]]:
    """All rows of a part, so many at a time that they fit into memory."""
    reading = store.rows(part)
    while page := await reading.next(_PAGE):
        yield page


# -- what is refused -------------------------------------------------------------------------------------------------


async def _dead_workers(storage: Storage, lease: float) -> set[_Life]:
    """The workers whose rows say that they live, and that certainly do not.

    Their rows were left by processes that died. Where the platform tells who lives, it tells at once. Where heartbeats
    do, one that moves says that its worker lives, and one that stands still for a lease that it does not.

    Raises:
        StoreInUseError: One lives.
    """
    liveness = storage.liveness(lease)
    first: dict[str, _Life] = {}
    dead: set[_Life] = set()
    told = False
    while True:
        rows = await storage.query("live_workers")
        lives = {row["id"]: _life(row) for row in rows}
        dead |= {lives[row["id"]] for row in rows if lives[row["id"]] not in dead and liveness.is_gone(row)}
        left = [row for row in rows if lives[row["id"]] not in dead]
        if not left:
            return dead
        moved = [row for row in left if first.setdefault(row["id"], lives[row["id"]]) != lives[row["id"]]]
        if moved or liveness.beat_every is None:
            raise _in_use(storage.url, moved or left)
        if not told:
            told = True
            _log.warning("%s: %d workers are registered; whether they live is known in %g s", storage.url, len(left),
                         lease)  # fmt: skip
        await asyncio.sleep(liveness.look_every)


async def _require_still_dead(storage: Storage, held: HeldStore, dead: set[_Life]) -> None:
    """Nobody has come to life since it was looked.

    Raises:
        StoreInUseError: Somebody has.
    """
    columns = tuple(WORKERS.columns)
    async for page in _pages(held, WORKERS.name):
        rows = [dict(zip(columns, image, strict=True)) for image in page]
        risen = [row for row in rows if row["alive"] == 1 and _life(row) not in dead]
        if risen:
            raise _in_use(storage.url, risen)


def _life(row: Mapping[str, Any]) -> _Life:
    return row["id"], row["incarnation"], row["beat"]


def _in_use(url: str, rows: Sequence[Mapping[str, Any]]) -> StoreInUseError:
    names = ", ".join(f"{row['id']} (pid {row['pid']} on {row['host']})" for row in rows)
    return StoreInUseError(
        f"{url}: workers run at it: {names}: stop them and all else that writes to it, then copy again",
        [row["id"] for row in rows],
    )


async def _require_empty(held: HeldStore, where: str) -> None:
    found = [part for part in (EVENTS, UNITS, *TABLES) if await held.rows(part).next(1)]
    # A SQL projection that starts anew would fold into what its tables have.
    found += [table for table in await held.tables() if _SQL_TABLE.match(table)]
    if found:
        raise StoreNotEmptyError(
            f"{where}: it is not empty, there are rows in {', '.join(found)}: name a store that nobody has used as the "
            "second one, which is the target; what is there may be the outcome of an earlier copy"
        )


# -- what arrives otherwise than it was ------------------------------------------------------------------------------


async def _other_tables(held: HeldStore) -> tuple[frozenset[str], tuple[str, ...]]:
    """The SQL projections that have tables, and the tables that are of none.

    A table is that of the projection with the longest name that its own begins with.
    """
    place = tuple(TABLES["projections"].columns).index("name")
    names = [row[place] async for page in _pages(held, "projections") for row in page]
    prefixes = {sql_table_prefix(name): name for name in names}
    found, others = set(), []
    for table in await held.tables():
        of = [prefix for prefix in prefixes if table.startswith(prefix)] if _SQL_TABLE.match(table) else []
        if of:
            found.add(prefixes[max(of, key=len)])
        else:
            others.append(table)
    return frozenset(found), tuple(others)


class _Arrival:
    """How rows arrive.

    Attributes:
        starting_anew: SQL projections: nothing is copied of how far they were, for their tables are left behind.
        last_position: Of the last event.
    """

    def __init__(self, starting_anew: frozenset[str]) -> None:
        self.starting_anew = starting_anew
        self.last_position = 0

    def images(self, table: str, images: Sequence[_Row]) -> list[_Row]:
        """Those of the rows that arrive, as they do."""
        if table == WORKERS.name:
            return []
        columns = TABLES[table].columns
        if table == SAGAS.name:
            return [self._saga(dict(zip(columns, image, strict=True))) for image in images]
        if table == CHECKPOINTS.name:
            rows = [dict(zip(columns, image, strict=True)) for image in images]
            return [self._checkpoint(row) for row in rows if not self._is_anew(row["name"])]
        if TABLES[table].key[0] == "projection":
            return [image for image in images if image[0] not in self.starting_anew]
        return list(images)

    def _saga(self, row: dict[str, Any]) -> _Row:
        if not row["owner"] or row["owner"].startswith(_QUEUE):
            return tuple(row.values())
        if row["ended_at"] is None and row["wake_at"] is None:
            # Its worker is dead, so it is due. Two copies are the same, hence no time of today.
            row["wake_at"] = row["started_at"] or 0
        return tuple({**row, "owner": ""}.values())

    def _checkpoint(self, row: dict[str, Any]) -> _Row:
        position = row["position"] and min(row["position"], self.last_position)
        return tuple({**row, "position": position, "owner": row["owner"] and ""}.values())

    def _is_anew(self, checkpoint: str) -> bool:
        kind, _, name = checkpoint.partition(":")
        return kind == "projection" and name.rpartition("@")[0] in self.starting_anew


# -- what is compared ------------------------------------------------------------------------------------------------


async def _stream_sums(store: HeldStore) -> AsyncIterator[tuple[str, tuple[int, int, bytes]]]:
    """Of each stream its name, how many records and events it has, and their digest."""
    name, records, events, digest = "", 0, 0, hashlib.sha256()
    async for page in _pages(store, EVENTS_BY_STREAM):
        for row in page:
            if row[_STREAM] != name:
                if records:
                    yield name, (records, events, digest.digest())
                name, records, events, digest = row[_STREAM], 0, 0, hashlib.sha256()
            records += 1
            events += row[_COUNT]
            digest.update(msgspec.msgpack.encode(row))
    if records:
        yield name, (records, events, digest.digest())


async def _sum(store: HeldStore, part: str, arrival: _Arrival | None = None) -> _Sum:
    """How many rows of a part there are, and their digest; where `arrival` is given, as they arrive."""
    number, digest = 0, hashlib.sha256()
    async for page in _pages(store, part):
        rows = arrival.images(part, page) if arrival is not None and part in TABLES else page
        number += len(rows)
        for row in rows:
            digest.update(msgspec.msgpack.encode(row))
    return number, digest.digest()
