"""Looking up units in the log by their ids: whether they landed, and as what."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from event_workflow_engine.storage.port import Appended, Written
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.statements import KNOWN_RECORDS, KNOWN_UNITS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from event_workflow_engine.storage.port import Unit

__all__ = ["KnownIds", "LandedUnit", "find_known", "landed_unit", "outcome", "stored_appends"]

StoredAppend = tuple[str, tuple[tuple[str, str, bytes], ...]]
"""A stream, and of each record the id, type and data: what makes two appends the same."""


class LandedUnit(NamedTuple):
    """A unit with records, as the log holds it."""

    appends: list[StoredAppend]
    written: Written


class KnownIds(NamedTuple):
    """Ids that are stored: of records, and of units without records."""

    records: set[str]
    row_units: set[str]


def find_known(connection: sqlite3.Connection, units: Iterable[Unit], known: KnownIds) -> None:
    """Add to `known` those ids of the units and their records that are stored."""
    records: list[str] = []
    row_units: list[str] = []
    for unit in units:
        ids = [record.id for append in unit.appends for record in append.records]
        records += ids
        if not ids:
            row_units.append(unit.id)
    known.records.update(row[0] for row in KNOWN_RECORDS.fetch(connection, records))
    known.row_units.update(row[0] for row in KNOWN_UNITS.fetch(connection, row_units))


def landed_unit(connection: sqlite3.Connection, unit_id: str) -> LandedUnit | None:
    """The unit whose first record has that id, or ``None``."""
    start = connection.execute(QUERIES["unit_start"].sql, {"id": unit_id}).fetchone()
    if start is None or start[1] != 0:
        return None
    appends: list[tuple[str, list[tuple[str, str, bytes]]]] = []
    appended: list[Appended] = []
    before = 0
    cursor = connection.execute(QUERIES["unit_records"].sql, {"position": start[0]})
    for position, stream, version, count, part, record_id, kind, data in cursor:
        if part == 0 and appends:
            break  # the next unit
        if (part or 1) != len(appends):
            appends.append((stream, []))
            appended.append(Appended(stream, version, position, 0))
            before = version - count
        appends[-1][1].append((record_id, kind, data))
        appended[-1] = Appended(stream, version, position, version - before)
    cursor.close()
    return LandedUnit([(stream, tuple(records)) for stream, records in appends], Written(unit_id, tuple(appended)))


def stored_appends(unit: Unit) -> list[StoredAppend]:
    """What of a unit's appends is stored and compared."""
    return [
        (append.stream, tuple((record.id, record.type, record.data) for record in append.records))
        for append in unit.appends
        if append.records
    ]


def outcome(connection: sqlite3.Connection, unit_id: str) -> Written | None:
    """What a unit wrote, if it landed."""
    landed = landed_unit(connection, unit_id)
    if landed is not None:
        return landed.written
    if connection.execute(QUERIES["row_unit"].sql, {"id": unit_id}).fetchone() is not None:
        return Written(unit_id, ())
    return None
