"""Looking up units in the log by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from event_workflow_engine.storage.judging.landed import landed_from
from event_workflow_engine.storage.port import Written
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.statements import KNOWN_IN_ORDER, KNOWN_LOOSE, KNOWN_UNITS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from event_workflow_engine.storage.judging.landed import KnownIds, LandedUnit
    from event_workflow_engine.storage.port import Unit

__all__ = ["StoredIds", "outcome"]


class StoredIds:
    """The ids in the file that a connection has open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def find(self, units: Iterable[Unit], known: KnownIds) -> None:
        """Add to `known` those ids of the units and their records that are stored."""
        records: list[str] = []
        row_units: list[str] = []
        for unit in units:
            ids = [record.id for append in unit.appends for record in append.records]
            records += ids
            if not ids:
                row_units.append(unit.id)
        for statement in (KNOWN_LOOSE, KNOWN_IN_ORDER):
            known.records.update(row[0] for row in statement.fetch(self._connection, records))
        known.row_units.update(row[0] for row in KNOWN_UNITS.fetch(self._connection, row_units))

    def landed(self, unit_id: str) -> LandedUnit | None:
        """The unit whose first record has that id, or ``None``."""
        start = self._connection.execute(QUERIES["unit_start"].sql, {"id": unit_id}).fetchone()
        if start is None or start[1] != 0:
            return None
        cursor = self._connection.execute(QUERIES["unit_records"].sql, {"position": start[0]})
        try:
            return landed_from(unit_id, cursor)
        finally:
            cursor.close()


def outcome(connection: sqlite3.Connection, unit_id: str) -> Written | None:
    """What a unit wrote, if it landed."""
    landed = StoredIds(connection).landed(unit_id)
    if landed is not None:
        return landed.written
    if connection.execute(QUERIES["row_unit"].sql, {"id": unit_id}).fetchone() is not None:
        return Written(unit_id, ())
    return None
