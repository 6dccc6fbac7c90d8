"""The rows of one batch, read from the file and written to it, each row once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.storage.judging.rows import ABSENT, RowChanges
from event_workflow_engine.storage.row_images import SHAPES
from event_workflow_engine.storage.sqlite.statements import TABLE_SQL

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from event_workflow_engine.storage.judging.caches import Cache
    from event_workflow_engine.storage.row_images import Image, Key

__all__ = ["StoredRows"]


class StoredRows(RowChanges):
    """The rows in the file that a connection has open."""

    def __init__(self, connection: sqlite3.Connection, rows: dict[str, Cache[Key, Image | None]]) -> None:
        super().__init__(rows)
        self._connection = connection

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
            elif was is None or was is ABSENT:
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
