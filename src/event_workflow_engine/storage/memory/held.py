"""The memory store held as a whole: a copy of its state, which takes its place when what was put is to be kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.storage.holding import page_of
from event_workflow_engine.storage.port import EVENTS, EVENTS_BY_STREAM, UNITS, Appended, Record, Written
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.storage.sql_files import read_queries

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from event_workflow_engine.storage.memory.state import MemoryState

__all__ = ["MemoryHolding"]

_QUERIES: Final = read_queries(Path(__file__).parent)


class MemoryHolding:
    """A `HoldingTransaction` and its `HeldStore`. Other writers wait for their turn with the committer.

    Args:
        state: The store's state.
        sql: Where the tables of SQL projections are.
    """

    def __init__(self, state: MemoryState, sql: sqlite3.Connection) -> None:
        self._kept = state
        self._state = state.copied()
        self._sql = sql
        self._unit = ""  # whose records are being put

    async def begin(self) -> MemoryHolding:
        """See `HoldingTransaction.begin`."""
        return self

    async def commit(self) -> None:
        """See `HoldingTransaction.commit`."""
        self._kept.become(self._state)

    async def abort(self) -> None:
        """See `HoldingTransaction.abort`."""

    def rows(self, part: str, /) -> _Pages:
        """See `HeldStore.rows`."""
        state = self._state
        if part == EVENTS:
            return _Pages(_events(state))
        if part == EVENTS_BY_STREAM:
            return _Pages(iter(sorted(_events(state), key=lambda row: (row[1], row[2]))))
        if part == UNITS:
            return _Pages(iter(sorted(state.row_units.items(), key=lambda unit: (unit[1], unit[0]))))
        return _Pages(image for _, image in sorted(state.tables[shape_of(part).name].items()))

    async def put(self, part: str, rows: Sequence[tuple[Any, ...]], /) -> None:
        """See `HeldStore.put`."""
        state = self._state
        if part == EVENTS:
            for row in rows:
                self._put_event(*row)
        elif part == UNITS:
            state.row_units.update(rows)
        else:
            width = shape_of(part).width
            state.tables[part].update((image[:width], image) for image in rows)

    def _put_event(self, position: int, stream: str, version: int, count: int, part: int, *kept: Any) -> None:
        state, record = self._state, Record(position, stream, version, count, *kept)
        state.log.append(record)
        state.streams.setdefault(stream, []).append(record)
        state.record_ids.add(record.id)
        if part == 0:
            self._unit = record.id
            state.units[self._unit] = Written(self._unit, ())
        appended = state.units[self._unit].appended
        if (part or 1) > len(appended):
            appended = (*appended, Appended(stream, version, position, count))
        else:
            last = appended[-1]
            appended = (*appended[:-1], Appended(stream, version, position, last.count + count))
        state.units[self._unit] = Written(self._unit, appended)

    async def end(self) -> int:
        """See `HeldStore.end`."""
        return self._state.last_position()

    async def move_end(self, position: int, /) -> None:
        """See `HeldStore.move_end`."""
        self._state.floor = max(self._state.floor, position)

    async def tables(self) -> list[str]:
        """See `HeldStore.tables`."""
        return [name for (name,) in self._sql.execute(_QUERIES["held_tables"].sql)]

    async def awaited(self) -> bool:
        """See `HeldStore.awaited`. No other process can."""
        return False


class _Pages:
    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = rows

    async def next(self, limit: int, /) -> list[tuple[Any, ...]]:
        """See `RowPages.next`."""
        return page_of(self._rows, limit)


def _events(state: MemoryState) -> Iterator[tuple[Any, ...]]:
    """The log's records with their parts, which follow from what their units wrote."""
    appends: Iterator[tuple[int, int]] = iter(())
    place, left = 0, 0  # of the append under way: which one it is, from 1 on, and how many events are still to come
    for r in state.log:
        unit = state.units.get(r.id)
        if unit is not None:
            appends, left = iter([(n, one.count) for n, one in enumerate(unit.appended, 1)]), 0
        if not left:
            place, left = next(appends)
        left -= r.count
        part = 0 if unit is not None else place
        yield (r.position, r.stream, r.version, r.count, part, r.id, r.type, r.schema, r.data, r.metadata,
               r.recorded_at)  # fmt: skip
