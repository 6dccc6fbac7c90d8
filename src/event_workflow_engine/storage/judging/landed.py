"""Units as the log holds them: whether they landed, and as what."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from event_workflow_engine.storage.port import Appended, Written

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.storage.port import Unit

__all__ = ["KnownIds", "LandedUnit", "RecordRow", "landed_from", "stored_appends"]

StoredAppend = tuple[str, tuple[tuple[str, str, bytes], ...]]
"""A stream, and of each record the id, type and data: what makes two appends the same."""

RecordRow = tuple[int, str, int, int, int, str, str, bytes]
"""Of a stored record: position, stream, version, count, part, id, type and data."""


class LandedUnit(NamedTuple):
    """A unit with records, as the log holds it."""

    appends: list[StoredAppend]
    written: Written


class KnownIds(NamedTuple):
    """Ids that are stored: of records, and of units without records."""

    records: set[str]
    row_units: set[str]


def landed_from(unit_id: str, rows: Iterable[RecordRow]) -> LandedUnit:
    """The unit of that id from the log's records, its first one first; those of the unit behind it end it."""
    appends: list[tuple[str, list[tuple[str, str, bytes]]]] = []
    appended: list[Appended] = []
    before = 0
    for position, stream, version, count, part, record_id, kind, data in rows:
        if part == 0 and appends:
            break  # the next unit
        if (part or 1) != len(appends):
            appends.append((stream, []))
            appended.append(Appended(stream, version, position, 0))
            before = version - count
        appends[-1][1].append((record_id, kind, data))
        appended[-1] = Appended(stream, version, position, version - before)
    return LandedUnit([(stream, tuple(records)) for stream, records in appends], Written(unit_id, tuple(appended)))


def stored_appends(unit: Unit) -> list[StoredAppend]:
    """What of a unit's appends is stored and compared."""
    return [
        (append.stream, tuple((record.id, record.type, record.data) for record in append.records))
        for append in unit.appends
        if append.records
    ]
