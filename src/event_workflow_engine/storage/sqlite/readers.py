"""Reads, on threads of their own with a connection each. Every read is one short transaction."""

from __future__ import annotations

import sqlite3
import threading
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.port import READS, Record
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.storage.sqlite.connection import open_reader
from event_workflow_engine.storage.sqlite.errors import storage_error
from event_workflow_engine.storage.sqlite.log_lookup import outcome
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.statements import TABLE_SQL
from event_workflow_engine.storage.user_sql import SqlGuard, rows_of, sql_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from event_workflow_engine.storage.port import Rows, Written
    from event_workflow_engine.storage.sqlite.connection import Connect

__all__ = ["READER_THREADS", "Readers"]

T = TypeVar("T")

READER_THREADS: Final = 3
_INT64_MAX: Final = 2**63 - 1


class Readers:
    """What readers do. Each method runs on a reader's thread, over that thread's connection."""

    def __init__(self, path: str, connect: Connect) -> None:
        self._path = path
        self._connect = connect
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []

    def run(self, read: Callable[..., T], *args: Any) -> T:
        """Run a method of this object; raises typed errors only."""
        try:
            return read(*args)
        except Exception as error:
            # A damaged file gives back anything, so anything may be raised over it.
            raise storage_error(error, self._path) from error

    def close(self) -> None:
        """Close all connections; their threads have ended."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._local = threading.local()

    @property
    def _guard(self) -> SqlGuard:
        """This thread's connection, guarded; opened where the thread has none yet."""
        guard: SqlGuard | None = getattr(self._local, "guard", None)
        if guard is None:
            connection = open_reader(self._path, self._connect)
            self._all.append(connection)
            guard = self._local.guard = SqlGuard(connection, ())
        return guard

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._guard.connection

    def _records(self, name: str, params: Mapping[str, Any]) -> list[Record]:
        return list(starmap(Record, self._connection.execute(QUERIES[name].sql, params).fetchall()))

    # -- the log -------------------------------------------------------------------------------------------------

    def head(self, stream: str) -> int:
        """The stream's version."""
        (version,) = self._connection.execute(QUERIES["head"].sql, {"stream": stream}).fetchone() or (0,)
        return version

    def last_position(self) -> int:
        """The position of the last event."""
        (position,) = self._connection.execute(QUERIES["last_position"].sql).fetchone()
        return int(position)

    def stream(self, stream: str, after: int | None, limit: int, backwards: bool) -> list[Record]:
        """One stream, behind `after` or below it."""
        if backwards:
            below = _INT64_MAX if after is None else after
            return self._records("stream_backwards", {"stream": stream, "below": below, "limit": limit})
        after = after or 0
        records: list[Record] = []
        while len(records) < limit:
            # Packed records hold several versions each, so the first walk may bring too few: another goes on.
            upto = after + limit - len(records)
            page = self._records("stream_walk", {"stream": stream, "after": after, "upto": upto})
            page.reverse()
            records += page
            if not page or page[-1].version < upto:
                break
            after = page[-1].version
        return records[:limit] if len(records) > limit else records

    def streams(self, streams: Sequence[str]) -> list[Record]:
        """Several streams, one after the other."""
        found: dict[str, list[Record]] = {stream: [] for stream in streams}
        for record in self._records("streams_walk", {"streams": msgspec.json.encode(list(found)).decode()}):
            found[record.stream].append(record)
        return [record for records in found.values() for record in reversed(records)]

    def log(self, after: int, limit: int, types: Sequence[str], categories: Sequence[str], seen: bool) -> list[Record]:
        """The log behind `after`; first the record there, where it was seen."""
        if seen:
            before = self._records("log", {"after": after - 1, "limit": 1})
            if not before or before[0].position != after:
                return self.log(after, limit, types, categories, seen=False)
            # A log that is one file on one machine is not rewound between two looks.
            return before + self.log(after, limit, types, categories, seen=False)
        if not types and not categories:
            return self._records("log", {"after": after, "limit": limit})
        filters = {
            "types": msgspec.json.encode(list(types)).decode(),
            "categories": msgspec.json.encode(list(categories)).decode(),
        }
        return self._records("log_filtered", {"after": after, "limit": limit, **filters})

    def outcome(self, unit_id: str) -> Written | None:
        """What a unit wrote, if it landed."""
        return outcome(self._connection, unit_id)

    # -- rows ----------------------------------------------------------------------------------------------------

    def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """One row of a declared table."""
        shape = shape_of(table)
        image = self._connection.execute(TABLE_SQL[table].select_one, shape.key(key)).fetchone()
        return None if image is None else shape.as_dict(image)

    def query(self, name: str, params: Mapping[str, Any]) -> Rows:
        """A named read."""
        if name not in READS:
            raise DefinitionError(f"there is no read {name!r}")
        with sql_errors(name):
            return rows_of(self._connection.execute(QUERIES[name].sql, dict(params)))

    def fetch(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """User's SQL, which may only read."""
        return rows_of(self._guard.read(sql, params))

    def identity(self) -> str:
        """Which file it is."""
        found = Path(self._path).stat()
        return f"file {found.st_dev} {found.st_ino}"

    def status(self) -> dict[str, Any]:
        """What the database says of itself."""
        connection = self._connection
        (estimates,) = rows_of(connection.execute(QUERIES["estimates"].sql))
        last_position = self.last_position()
        return {
            "schema_version": connection.execute("PRAGMA user_version").fetchone()[0],
            "last_position": last_position,
            "estimates": {"events": last_position, **estimates},
            "journal_mode": connection.execute("PRAGMA journal_mode").fetchone()[0],
            "sqlite_version": sqlite3.sqlite_version,
            "path": str(Path(self._path).absolute()),
            "file_size": _size(self._path),
            "wal_size": _size(f"{self._path}-wal"),
        }


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
