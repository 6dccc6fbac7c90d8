"""The rows of one batch: what its units see and change, and how the changes are written, each row once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError, OwnershipLostError
from event_workflow_engine.storage.row_images import SHAPES, Image, Key, shape_of
from event_workflow_engine.storage.sqlite.statements import TABLE_SQL

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.storage.port import Row, Unit, WorkerRef
    from event_workflow_engine.storage.sqlite.caches import Cache

__all__ = ["Changes", "RowChanges", "RowView"]

Changes = dict[tuple[str, Key], Image | None]
"""What one unit did so far: images by table and key."""

_ABSENT: Final[Any] = object()
_INCARNATION: Final = SHAPES["workers"].place("incarnation")
_ALIVE: Final = SHAPES["workers"].place("alive")


class RowChanges:
    """Images of rows, from the writer's cache or the store, as the units accepted so far left them."""

    def __init__(self, connection: sqlite3.Connection, rows: dict[str, Cache[Key, Image | None]]) -> None:
        self._connection = connection
        self._rows = rows
        self._before: dict[str, dict[Key, Any]] = {}  # by table: what changed rows were before the batch

    def fetch(self, units: Sequence[Unit]) -> None:
        """Have the rows of `units` in the cache, with a query for each table at most.

        Raises:
            DefinitionError: A table is not declared, or a key does not fit its table.
        """
        workers = self._rows["workers"]
        wanted: dict[str, dict[Key, None]] = {}
        for unit in units:
            for row in unit.rows:
                if row.key not in self._cache(row).young and not SHAPES[row.table].overwrites(row):
                    wanted.setdefault(row.table, {})[row.key] = None
            if unit.worker is not None and (unit.worker.id,) not in workers.young:
                wanted.setdefault("workers", {})[(unit.worker.id,)] = None
        for table, keys in wanted.items():
            if unknown := self._rows[table].missing(keys):
                self._fetch(table, unknown)

    def image(self, table: str, key: Key) -> Image | None:
        """The row as the batch left it so far."""
        rows = self._rows[table]
        if rows.missing((key,)):
            self._fetch(table, (key,))
        return rows.young[key]

    def check_alive(self, worker: WorkerRef) -> None:
        """Check that this life of `worker`, whose row was fetched, was not declared dead.

        Raises:
            OwnershipLostError: It was, or nobody knows it.
        """
        image = self._rows["workers"].young[(worker.id,)]
        if image is None or image[_ALIVE] != 1 or image[_INCARNATION] != worker.incarnation:
            raise OwnershipLostError(
                f"worker {worker.id!r} (incarnation {worker.incarnation}) is not alive in the store: it must not write"
            )

    def apply(self, rows: Sequence[Row], changes: Changes) -> None:
        """Apply compare-and-sets over what their unit did so far; nobody else sees it before `keep`.

        Raises:
            RowConflictError: A row is not as expected.
            DefinitionError: A row is malformed.
        """
        for row in rows:
            table, key = row.table, row.key
            image = changes.get((table, key), _ABSENT) if changes else _ABSENT
            if image is _ABSENT:
                image = self._cache(row).young.get(key, _ABSENT)
                if image is _ABSENT:
                    image = None if SHAPES[table].overwrites(row) else self.image(table, key)
            new = SHAPES[table].apply(image, row)
            if new is not image:
                changes[table, key] = new

    def keep(self, changes: Changes) -> None:
        """The unit was accepted: the next ones see what it did."""
        for (table, key), image in changes.items():
            images = self._rows[table].young
            before = self._before.setdefault(table, {})
            if key not in before:
                before[key] = images.get(key, _ABSENT)
            images[key] = image

    def write(self) -> None:
        """Bring the changed rows from what they were before the batch to what they are."""
        for table, before in self._before.items():
            self._write(table, before)

    def _write(self, table: str, before: dict[Key, Any]) -> None:
        images, sql = self._rows[table].young, TABLE_SQL[table]
        puts: list[Any] = []
        updates: dict[tuple[int, ...], list[Any]] = {}
        for key, was in before.items():
            image = images[key]
            if image is None:
                self._connection.execute(sql.delete, key)
            elif was is None or was is _ABSENT:
                puts += image
            elif image != was:
                # Only the columns that differ, so that indexes over others are left in peace.
                places = tuple([place for place, value in enumerate(image) if value != was[place]])
                updates.setdefault(places, []).extend([*(image[place] for place in places), *image[: len(key)]])
        if puts:
            sql.put.execute(self._connection, puts)
        for places, params in updates.items():
            sql.update(places).execute(self._connection, params)

    def _fetch(self, table: str, raw_keys: Iterable[Key]) -> None:
        shape = SHAPES[table]
        keys = [shape.key(key) for key in raw_keys]
        images = self._rows[table].young
        images.update(dict.fromkeys(keys))
        width = shape.width
        for image in TABLE_SQL[table].select.fetch(self._connection, [value for key in keys for value in key]):
            images[image[:width]] = image

    def _cache(self, row: Row) -> Cache[Key, Image | None]:
        cache = self._rows.get(row.table)
        if cache is None:
            raise DefinitionError(f"no table {row.table!r} is declared")
        return cache


class RowView:
    """The rows as a fold sees them: as the batch left them, changed by what its unit did so far."""

    __slots__ = ("_changes", "_rows")

    def __init__(self, rows: RowChanges, changes: Changes) -> None:
        self._rows = rows
        self._changes = changes

    def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The row by its columns, or ``None``."""
        shape = shape_of(table)
        key = shape.key(key)
        changes = self._changes
        image = changes[table, key] if (table, key) in changes else self._rows.image(table, key)
        return None if image is None else shape.as_dict(image)
