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
    from collections.abc import Sequence

__all__ = [
    "HEADS",
    "ID_PLACE",
    "INSERT_RECORDS",
    "INSERT_STREAMS",
    "INSERT_UNITS",
    "KNOWN_IN_ORDER",
    "KNOWN_LOOSE",
    "KNOWN_UNITS",
    "MOVE_STREAMS",
    "ORDER_PLACE",
    "OWN_TABLES",
    "POSITION_PLACE",
    "RECORD_WIDTH",
    "TABLE_SQL",
    "TIME_PLACE",
    "Chunked",
    "TableSql",
]

_SIZES: Final = (256, 64, 16, 4, 1)
_FEW: Final = 16


class Chunked:
    """A statement with a list of rows of parameters in it, prepared for a few lengths of that list.

    Args:
        before: The SQL before the list.
        width: Parameters in a row.
        after: The SQL behind the list.
        single: SQL to be used for one row, and for each of a few, where that is quicker.
    """

    __slots__ = ("_one", "_sql", "width")

    def __init__(self, before: str, width: int, after: str = "", *, single: str = "") -> None:
        self.width = width
        row = "(" + ",".join("?" * width) + ")"
        self._one = single or before + row + after
        sizes = [size for size in _SIZES if not single or size >= _FEW]
        self._sql = [(size, before + ",".join([row] * size) + after) for size in sizes]
        if single:
            self._sql.append((1, single))

    def execute(self, connection: sqlite3.Connection, params: list[Any]) -> None:
        """Run it over all rows in `params`, one row's parameters after the other."""
        width = self.width
        if len(params) == width:
            connection.execute(self._one, params)
            return
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
    "position", "stream", "version", "count", "part", "before",
    "id", "type", "schema", "data", "metadata", "recorded_at", "id_order",
)  # fmt: skip
RECORD_WIDTH: Final = len(_RECORD_COLUMNS)
POSITION_PLACE: Final = _RECORD_COLUMNS.index("position")
ID_PLACE: Final = _RECORD_COLUMNS.index("id")
TIME_PLACE: Final = _RECORD_COLUMNS.index("recorded_at")
ORDER_PLACE: Final = _RECORD_COLUMNS.index("id_order")

OWN_TABLES: Final = frozenset({"events", "streams", "units", "positions_floor", "schema_migrations", *SHAPES})
"""All tables of the store itself."""

INSERT_RECORDS: Final = Chunked(f"INSERT INTO events ({', '.join(_RECORD_COLUMNS)}) VALUES ", RECORD_WIDTH)
INSERT_UNITS: Final = Chunked("INSERT INTO units (id, at) VALUES ", 2)
INSERT_STREAMS: Final = Chunked("INSERT INTO streams (number, name, version, position) VALUES ", 4)
MOVE_STREAMS: Final = Chunked(
    # Each row: new version and position, the stream's number, and the version that it must have had.
    "UPDATE streams SET version = new.column1, position = new.column2 FROM (VALUES ",
    4,
    ") AS new WHERE number = new.column3 AND version = new.column4",
    single="UPDATE streams SET version = ?, position = ? WHERE number = ? AND version = ?",
)
HEADS: Final = Chunked(
    "WITH asked(name) AS (VALUES ",
    1,
    ") SELECT name, number, version, position FROM asked CROSS JOIN streams USING (name)",
)
KNOWN_LOOSE: Final = Chunked(
    "WITH asked(id) AS (VALUES ",
    1,
    ") SELECT e.id FROM asked CROSS JOIN events AS e INDEXED BY events_loose ON e.id = asked.id AND e.id_order = 2",
)
KNOWN_IN_ORDER: Final = Chunked(
    # Behind each landmark that is next below one that is asked for.
    "WITH asked(id) AS (VALUES ",
    1,
    "), landmarks(position) AS (SELECT DISTINCT (SELECT l.position FROM events AS l INDEXED BY events_landmarks "
    "WHERE l.id_order = 1 AND l.id <= asked.id ORDER BY l.id DESC LIMIT 1) FROM asked) "
    "SELECT e.id FROM landmarks CROSS JOIN events AS e "
    "ON e.position >= landmarks.position AND e.position < landmarks.position + 64 "
    "WHERE e.id_order < 2 AND e.id IN (SELECT id FROM asked)",
)
KNOWN_UNITS: Final = Chunked("WITH asked(id) AS (VALUES ", 1, ") SELECT id FROM asked CROSS JOIN units USING (id)")


class TableSql:
    """Statements over one declared table."""

    __slots__ = ("_keys", "_shape", "_updates", "delete", "put", "select", "select_all", "select_one")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._keys = shape.columns[: shape.width]
        self._updates: dict[tuple[int, ...], Chunked] = {}
        columns = ", ".join(shape.columns)
        key = ", ".join(self._keys)
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
        match = " AND ".join(f"{column} = ?" for column in self._keys)
        self.select_one = f"SELECT {columns} FROM {shape.name} WHERE {match}"
        self.select_all = f"SELECT {columns} FROM {shape.name} ORDER BY {key}"
        self.delete = f"DELETE FROM {shape.name} WHERE {match}"

    def update(self, places: tuple[int, ...]) -> Chunked:
        """Sets the columns at `places`, and no others: indexes over the others are left in peace.

        Its parameters in each row: the values in the order of `places`, then the key.
        """
        update = self._updates.get(places)
        if update is None:
            columns = [self._shape.columns[place] for place in places]
            new = [f"new.column{number + 1}" for number in range(len(columns) + len(self._keys))]
            name = self._shape.name
            update = self._updates[places] = Chunked(
                f"UPDATE {name} SET {_listed(', ', columns, new)} FROM (VALUES ",
                len(new),
                f") AS new WHERE {_listed(' AND ', self._keys, new[len(columns) :], name + '.')}",
                single=(
                    f"UPDATE {name} SET {', '.join(f'{column} = ?' for column in columns)} "
                    f"WHERE {' AND '.join(f'{column} = ?' for column in self._keys)}"
                ),
            )
        return update


def _listed(separator: str, left: Sequence[str], right: Sequence[str], prefix: str = "") -> str:
    return separator.join(f"{prefix}{one} = {other}" for one, other in zip(left, right, strict=False))


TABLE_SQL: Final[dict[str, TableSql]] = {name: TableSql(shape) for name, shape in SHAPES.items()}
"""By table. The names in them come from the declarations in this library, never from a user."""
