"""A file held as a whole: one transaction on a connection and a thread of its own, under the store's lock."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from event_workflow_engine.errors import StorageCorruptError
from event_workflow_engine.storage.holding import page_of
from event_workflow_engine.storage.port import EVENTS, EVENTS_BY_STREAM, UNITS
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.storage.sqlite.connection import open_writer
from event_workflow_engine.storage.sqlite.errors import storage_error
from event_workflow_engine.storage.sqlite.id_order import IdOrder
from event_workflow_engine.storage.sqlite.locks import StoreLock
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.statements import (
    HEADS,
    INSERT_STREAMS,
    INSERT_UNITS,
    MOVE_STREAMS,
    OWN_TABLES,
    TABLE_SQL,
)
from event_workflow_engine.storage.sqlite.threads import JobThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from event_workflow_engine.storage.sqlite.connection import Connect
    from event_workflow_engine.storage.sqlite.writer import Writer

__all__ = ["SqliteHolding"]

T = TypeVar("T")

_STEP: Final = 64
"""Versions of a stream that are read at once: from one anchor to the next."""

_QUERIES_OF: Final = {EVENTS: "held_events", UNITS: "held_units"}


class SqliteHolding:
    """A `HoldingTransaction` and its `HeldStore`.

    Args:
        path: Of the file.
        connect: Makes the connection.
        writer: This process's own, which rests meanwhile: it would wait for the lock to tend the file.
        writer_thread: Where its methods run.
    """

    def __init__(self, path: str, connect: Connect, writer: Writer, writer_thread: JobThreads) -> None:
        self._path = path
        self._file = _HeldFile(path, connect)
        self._thread: JobThreads | None = None
        self._writer = writer
        self._writer_thread = writer_thread

    async def begin(self) -> SqliteHolding:
        """See `HoldingTransaction.begin`."""
        await self._writer_thread.call(self._writer.rest)
        self._thread = JobThreads("ewe-hold")
        try:
            await self._call(self._file.begin)
        except BaseException:
            await self._let_go()
            raise
        return self

    async def commit(self) -> None:
        """See `HoldingTransaction.commit`."""
        await self._end(self._file.commit)

    async def abort(self) -> None:
        """See `HoldingTransaction.abort`."""
        await self._end(self._file.close)

    async def _end(self, how: Callable[[], None]) -> None:
        assert self._thread is not None
        try:
            await self._call(how)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        assert self._thread is not None
        try:
            await self._thread.stop()
        finally:
            await self._writer_thread.call(self._writer.go_on)

    async def _call(self, job: Callable[..., T], *args: Any) -> T:
        assert self._thread is not None
        try:
            return await self._thread.call(job, *args)
        except Exception as error:
            raise storage_error(error, self._path) from error

    def rows(self, part: str, /) -> _Pages:
        """See `HeldStore.rows`."""
        return _Pages(self._call, self._file.rows(part))

    async def put(self, part: str, rows: Sequence[tuple[Any, ...]], /) -> None:
        """See `HeldStore.put`."""
        await self._call(self._file.put, part, rows)

    async def end(self) -> int:
        """See `HeldStore.end`."""
        return await self._call(self._file.end)

    async def move_end(self, position: int, /) -> None:
        """See `HeldStore.move_end`."""
        await self._call(self._file.move_end, position)

    async def tables(self) -> list[str]:
        """See `HeldStore.tables`."""
        return await self._call(self._file.tables)

    async def awaited(self) -> bool:
        """See `HeldStore.awaited`."""
        return await self._call(self._file.awaited)


class _Pages:
    def __init__(self, call: Callable[..., Any], rows: Iterator[tuple[Any, ...]]) -> None:
        self._call = call
        self._rows = rows

    async def next(self, limit: int, /) -> list[tuple[Any, ...]]:
        """See `RowPages.next`."""
        rows: list[tuple[Any, ...]] = await self._call(page_of, self._rows, limit)
        return rows


class _HeldFile:
    """Its methods run on the thread of its own."""

    def __init__(self, path: str, connect: Connect) -> None:
        self._path = path
        self._connect = connect
        self._lock: StoreLock | None = None
        self._opened: sqlite3.Connection | None = None
        self._last_stream = 0
        self._order = IdOrder()

    def begin(self) -> None:
        self._lock = StoreLock(self._path)
        try:
            self._lock.acquire()
            self._opened = open_writer(self._path, self._connect)
            self._opened.execute("BEGIN IMMEDIATE")
            (self._last_stream,) = self._opened.execute(QUERIES["last_stream"].sql).fetchone()
            self._order.load(self._opened)
        except BaseException:
            self.close()
            raise

    def commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        finally:
            self.close()

    def close(self) -> None:
        """Undo what is not committed, and let the others in."""
        connection, self._opened = self._opened, None
        lock, self._lock = self._lock, None
        try:
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        finally:
            if lock is not None:
                lock.close()

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._opened is not None
        return self._opened

    # -- reading -------------------------------------------------------------------------------------------------

    def rows(self, part: str) -> Iterator[tuple[Any, ...]]:
        if part == EVENTS_BY_STREAM:
            for (name,) in self._connection.execute(QUERIES["held_streams"].sql):
                yield from self._stream(name)
        elif part in _QUERIES_OF:
            yield from self._connection.execute(QUERIES[_QUERIES_OF[part]].sql)
        else:
            yield from self._connection.execute(TABLE_SQL[shape_of(part).name].select_all)

    def _stream(self, name: str) -> Iterator[tuple[Any, ...]]:
        after = 0
        while True:
            asked = {"stream": name, "after": after, "upto": after + _STEP}
            page = self._connection.execute(QUERIES["held_stream"].sql, asked).fetchall()
            yield from reversed(page)
            if not page or page[0][2] < after + _STEP:
                return
            after = page[0][2]

    def end(self) -> int:
        (position,) = self._connection.execute(QUERIES["last_position"].sql).fetchone()
        return int(position)

    def tables(self) -> list[str]:
        found = self._connection.execute(QUERIES["held_tables"].sql)
        return [name for (name,) in found if name not in OWN_TABLES]

    def awaited(self) -> bool:
        assert self._lock is not None
        return self._lock.awaited()

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, part: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if part == EVENTS:
            self._put_events(rows)
        elif part == UNITS:
            INSERT_UNITS.execute(self._connection, [value for row in rows for value in row])
        else:
            TABLE_SQL[shape_of(part).name].put.execute(self._connection, [value for row in rows for value in row])

    def _put_events(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add records, each chained to the one before it of its stream."""
        streams = list({row[1]: None for row in rows})
        heads: dict[str, tuple[int, int, int]] = {
            name: (number, version, position)
            for name, number, version, position in HEADS.fetch(self._connection, list(streams))
        }
        known = dict(heads)
        records: list[Any] = []
        for position, stream, version, count, part, *kept in rows:
            number, head, before = heads.get(stream, (0, 0, 0))
            if not number:
                number = self._last_stream = self._last_stream + 1
            if version - count < head or position <= before:
                raise StorageCorruptError(
                    f"{self._path}: version {version} of stream {stream!r}, at position {position}, does not follow "
                    f"its version {head}, at position {before}: what is copied is damaged"
                )
            records += (position, number, version, count, part, before, *kept, None)
            heads[stream] = (number, version, position)
        self._order.insert(self._connection, records)
        new: list[Any] = []
        moved: list[Any] = []
        for stream in streams:
            number, version, position = heads[stream]
            if stream in known:
                moved += (version, position, number, known[stream][1])
            else:
                new += (number, stream, version, position)
        INSERT_STREAMS.execute(self._connection, new)
        MOVE_STREAMS.execute(self._connection, moved)

    def move_end(self, position: int) -> None:
        self._connection.execute(QUERIES["move_end"].sql, {"position": position})
