"""Which ids of records have a place in an index: few, for most come in the order of the log."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.statements import (
    ID_PLACE,
    INSERT_RECORDS,
    KNOWN_IN_ORDER,
    ORDER_PLACE,
    POSITION_PLACE,
    RECORD_WIDTH,
    TIME_PLACE,
)

__all__ = ["IdOrder"]

_BETWEEN: Final = 0
_LANDMARK: Final = 1
_LOOSE: Final = 2

_EVERY: Final = 64
"""Positions from one landmark to the next at least; what searches for an id passes fewer behind a landmark."""

_AHEAD_MS: Final = 60_000
"""How far an id may be ahead of its record's time. One from the far future, or one that is no UUID of version 7 and
sorts behind those, would stand above all that follow, and each of them would be loose."""


class IdOrder:
    """Where the order of ids stands, inside of a transaction.

    An index over all ids is a page more in each commit of one record, and a seventh of a file of short sagas. Ids of
    version 7 grow with time, as the log does, so a sparse index is enough, as for the sorted tables of Bigtable: an id
    above the last in order is new, one in order is found a few records behind a landmark, and only the others, which
    are loose, need an index of their own.
    """

    __slots__ = ("_clear", "_first", "_last", "_next")

    def __init__(self) -> None:
        self._first = ""  # the first landmark
        self._last = ""  # the last id in order
        self._clear = ""  # between that and this no id is loose, and none is ahead of its time
        self._next = 0  # the next id in order is a landmark from this position on

    def load(self, connection: sqlite3.Connection) -> None:
        """Look where it stands in the file."""
        first, last, landmark = connection.execute(QUERIES["id_order"].sql).fetchone()
        self._first = first or ""
        self._last = last or ""
        self._clear = ""
        self._next = 0 if landmark is None else landmark + _EVERY

    def insert(self, connection: sqlite3.Connection, records: list[Any]) -> None:
        """Store records behind all that there are, after filling in how their ids stand.

        Args:
            connection: Inside of a transaction; if that fails, the order must be loaded again.
            records: The values of their columns, one record's after the other's.

        Raises:
            sqlite3.IntegrityError: One of the ids is stored already, or comes twice.
            sqlite3.Error: The database cannot do its work.
        """
        doubtful = self._place(connection, records)
        INSERT_RECORDS.execute(connection, records)
        if doubtful and KNOWN_IN_ORDER.fetch(connection, doubtful):
            raise sqlite3.IntegrityError("an id that comes out of order stands in order already")

    def _place(self, connection: sqlite3.Connection, records: list[Any]) -> list[str]:
        """Say of each id how it stands; returns the loose ones that may stand in order as well."""
        last, following = self._last, self._next
        doubtful: list[str] = []
        above: list[str] = []  # loose ones above the last in order
        for start in range(0, len(records), RECORD_WIDTH):
            record_id = records[start + ID_PLACE]
            if record_id <= last:
                records[start + ORDER_PLACE] = _LOOSE
                if record_id >= self._first:
                    doubtful.append(record_id)
            elif record_id < self._clear or self._clears(connection, record_id, records[start + TIME_PLACE], above):
                last = record_id
                position = records[start + POSITION_PLACE]
                if position < following:
                    records[start + ORDER_PLACE] = _BETWEEN
                else:
                    records[start + ORDER_PLACE] = _LANDMARK
                    following = position + _EVERY
                    self._first = self._first or record_id
            else:
                records[start + ORDER_PLACE] = _LOOSE
                above.append(record_id)
        self._last, self._next = last, following
        return doubtful

    def _clears(self, connection: sqlite3.Connection, record_id: str, at_us: int, above: list[str]) -> bool:
        """Whether an id above the last in order comes in order, and with it all up to the next loose one."""
        ahead = _id_at(at_us // 1000 + _AHEAD_MS)
        if record_id >= ahead:
            return False
        stored = connection.execute(QUERIES["loose_from"].sql, {"id": record_id})
        loose = min([one for one in above if one >= record_id] + [one for (one,) in stored], default=ahead)
        if loose == record_id:
            return False
        self._clear = min(loose, ahead)
        return True


def _id_at(milliseconds: int) -> str:
    """Below all ids of version 7 that are made at that time."""
    text = f"{min(max(milliseconds, 0), 0xFFFF_FFFF_FFFF):012x}"
    return f"{text[:8]}-{text[8:]}"
