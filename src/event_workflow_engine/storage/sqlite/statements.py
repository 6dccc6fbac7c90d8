# ruff: noqa: S608 - the names put into SQL here are those that this library declares, never a user's
"""SQL made from the declared tables, over many rows at a time.

CPython's sqlite3 gives up the interpreter's lock at every step of a statement and may wait for it while the loop's
thread computes. So a batch's rows go in with few statements of many rows each, in fixed sizes so that each is
prepared once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.storage.row_images import SHAPES, Shape

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "HEADS",
    "INSERT_RECORDS",
    "INSERT_UNITS",
    "KNOWN_RECORDS",
    "KNOWN_UNITS",
    "RECORD_WIDTH",
    "TABLE_SQL",
    "Chunked",
    "TableSql",
]

_SIZES: Final = (256, 64, 16, 4, 1)


class Chunked:
    """A statement with a list of rows of parameters in it, prepared for a few lengths of that list.

    Args:
        before: The SQL before the list.
        width: Parameters in a row.
        after: The SQL behind the list.
    """

    __slots__ = ("_sql", "width")

    def __init__(self, before: str, width: int, after: str = "") -> None:
        self.width = width
        row = "(" + ",".join("?" * width) + ")"
        self._sql = tuple((size, before + ",".join([row] * size) + after) for size in _SIZES)

    def execute(self, connection: sqlite3.Connection, params: list[Any]) -> None:
        """Run it over all rows in `params`, one row's parameters after the other."""
        width = self.width
        start, left = 0, len(params) // width
        for size, sql in self._sql:
            while left >= size:
                end = start + size * width
                connection.execute(sql, params[start:end])
                start = end
                left -= size

    def fetch(self, connection: sqlite3.Connection, params: list[Any]) -> list[tuple[Any, ...]]:
        """Run it over all rows in `params`; what it returns for all of them."""
        width = self.width
        start, left = 0, len(params) // width
        found: list[tuple[Any, ...]] = []
        for size, sql in self._sql:
            while left >= size:
                end = start + size * width
                found += connection.execute(sql, params[start:end]).fetchall()
                start = end
                left -= size
        return found


_RECORD_COLUMNS: Final = (
    "position", "stream", "version", "count", "part", "id", "type", "schema", "data", "metadata", "recorded_at",
)  # fmt: skip
RECORD_WIDTH: Final = len(_RECORD_COLUMNS)

INSERT_RECORDS: Final = Chunked(f"INSERT INTO events ({', '.join(_RECORD_COLUMNS)}) VALUES ", RECORD_WIDTH)
INSERT_UNITS: Final = Chunked("INSERT INTO units (id, at) VALUES ", 2)
HEADS: Final = Chunked(
    "WITH asked(stream) AS (VALUES ",
    1,
    ") SELECT stream, (SELECT max(version) FROM events WHERE events.stream = asked.stream) FROM asked",
)
KNOWN_RECORDS: Final = Chunked("WITH asked(id) AS (VALUES ", 1, ") SELECT id FROM asked CROSS JOIN events USING (id)")
KNOWN_UNITS: Final = Chunked("WITH asked(id) AS (VALUES ", 1, ") SELECT id FROM asked CROSS JOIN units USING (id)")


class TableSql:
    """Statements over one declared table."""

    __slots__ = ("delete", "put", "select", "select_one")

    def __init__(self, shape: Shape) -> None:
        columns = ", ".join(shape.columns)
        keys = shape.columns[: shape.width]
        key = ", ".join(keys)
        sets = ", ".join(f"{column} = excluded.{column}" for column in shape.columns[shape.width :])
        self.put = Chunked(
            f"INSERT INTO {shape.name} ({columns}) VALUES ",
            len(shape.columns),
            f" ON CONFLICT ({key}) DO " + (f"UPDATE SET {sets}" if sets else "NOTHING"),
        )
        self.select = Chunked(
            f"WITH asked({key}) AS (VALUES ",
            shape.width,
            f") SELECT {columns} FROM asked CROSS JOIN {shape.name} USING ({key})",
        )
        match = " AND ".join(f"{column} = ?" for column in keys)
        self.select_one = f"SELECT {columns} FROM {shape.name} WHERE {match}"
        self.delete = f"DELETE FROM {shape.name} WHERE {match}"


TABLE_SQL: Final[dict[str, TableSql]] = {name: TableSql(shape) for name, shape in SHAPES.items()}
"""By table. The names in them come from the declarations in this library, never from a user."""
