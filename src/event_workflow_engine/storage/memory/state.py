"""What a memory store holds, and what a unit does to it: the rules of the port as plain Python."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import EventIdConflictError, OwnershipLostError
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.port import Appended, Record, Written
from event_workflow_engine.storage.row_images import SHAPES, shape_of
from event_workflow_engine.storage.unit_checks import check_size, check_unit, check_version

if TYPE_CHECKING:
    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import InlineFolder, Row, Unit, WorkerRef
    from event_workflow_engine.storage.row_images import Image, Key

__all__ = ["MemoryState"]

KEEP_UNIT_IDS_US: Final = 7 * 24 * 3600 * 1_000_000
"""How long ids of units without records are known, in microseconds behind the newest unit."""

_position = attrgetter("position")
_version = attrgetter("version")


class MemoryState:
    """The log, the rows and the ids. Everything in it is plain and may be looked at in a test."""

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.streams: dict[str, list[Record]] = {}
        self.tables: dict[str, dict[Key, Image]] = {name: {} for name in SHAPES}
        self.units: dict[str, Written] = {}  # by id: of units with records
        self.record_ids: set[str] = set()
        self.row_units: dict[str, int] = {}  # id and time of units without records, oldest first
        self.floor = 0  # the next event is behind it, too
        self.folder: InlineFolder | None = None

    def copied(self) -> MemoryState:
        """Another one that holds the same; what it holds is never changed in place."""
        new = MemoryState()
        new.log, new.record_ids, new.floor = [*self.log], {*self.record_ids}, self.floor
        new.streams = {stream: [*records] for stream, records in self.streams.items()}
        new.tables = {name: {**rows} for name, rows in self.tables.items()}
        new.units, new.row_units = {**self.units}, {**self.row_units}
        return new

    def become(self, other: MemoryState) -> None:
        """Hold what `other` does, which is not used any more."""
        folder = self.folder
        vars(self).update(vars(other))
        self.folder = folder

    # -- looking -------------------------------------------------------------------------------------------------

    def last_position(self) -> int:
        """The position of the last event."""
        return max(self.log[-1].position, self.floor) if self.log else self.floor

    def head(self, stream: str) -> int:
        """The stream's version."""
        records = self.streams.get(stream)
        return records[-1].version if records else 0

    def behind(self, position: int) -> list[Record]:
        """The records behind `position`."""
        return self.log[bisect_right(self.log, position, key=_position) :]

    def stream_behind(self, stream: str, version: int) -> list[Record]:
        """The stream's records that hold events behind `version`, in order."""
        records = self.streams.get(stream, [])
        return records[bisect_right(records, version, key=_version) :]

    def stream_below(self, stream: str, version: int | None) -> list[Record]:
        """The stream's records that hold events below `version` (``None``: all), the last first."""
        records = self.streams.get(stream, [])
        if version is not None:
            straddling = bisect_left(records, version, key=_version)
            records = [r for r in records[: straddling + 1] if r.version - r.count + 1 < version]
        return records[::-1]

    def outcome(self, unit_id: str) -> Written | None:
        """What a unit wrote, if it landed."""
        return self.units.get(unit_id) or self._row_unit(unit_id)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, by key."""
        shape = SHAPES[table]
        return [shape.as_dict(image) for _, image in sorted(self.tables[table].items())]

    # -- writing -------------------------------------------------------------------------------------------------

    def attempt(self, unit: Unit) -> Verdict:
        """Write `unit` wholly, or not at all and say why."""
        try:
            return self.write(unit)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this unit's verdict
            return error

    def write(self, unit: Unit) -> Written | Repeated:
        """Write `unit` wholly, or raise and change nothing.

        The order of the checks is part of the port: form, ids, worker, size, versions, rows, inline folds.
        """
        check_unit(unit)
        has_records = any(append.records for append in unit.appends)
        before = self._stored_before(unit) if has_records else self._row_unit(unit.id)
        if before is not None:
            return Repeated(before)
        if unit.worker is not None:
            self._check_alive(unit.worker)
        check_size(unit)
        records, appended = self._placed(unit)
        view = _RowView(self.tables)
        for row in unit.rows:
            view.apply(row)
        if records and self.folder is not None:
            for row in self.folder(unit, records, view):
                view.apply(row)

        written = Written(unit.id, appended)
        for record in records:
            self.log.append(record)
            self.streams.setdefault(record.stream, []).append(record)
            self.record_ids.add(record.id)
        for (table, key), image in view.changed.items():
            if image is None:
                self.tables[table].pop(key, None)
            else:
                self.tables[table][key] = image
        if records:
            self.units[unit.id] = written
        else:
            self._remember(unit)
        return written

    def _row_unit(self, unit_id: str) -> Written | None:
        return Written(unit_id, ()) if unit_id in self.row_units else None

    def _stored_before(self, unit: Unit) -> Written | None:
        """What exactly this unit wrote earlier; raises where only something of it is stored, or something else."""
        ids = [record.id for append in unit.appends for record in append.records]
        if len(set(ids)) != len(ids):
            raise EventIdConflictError(f"unit {unit.id!r} uses an event id twice")
        known = [i for i in ids if i in self.record_ids]
        if not known:
            return None
        stored = self.units.get(unit.id)
        if stored is None:
            raise EventIdConflictError(f"event id {known[0]!r} is stored already, in another unit")
        # A unit's records follow each other in the log, its appends in order.
        first = next(place for place, record in enumerate(self.log) if record.id == unit.id)
        was = [(r.stream, r.id, r.type, r.data) for r in self.log[first : first + len(ids)]]
        wanted = [(a.stream, r.id, r.type, r.data) for a in unit.appends for r in a.records]
        sizes = [sum(r.count for r in a.records) for a in unit.appends if a.records]
        if was != wanted or sizes != [a.count for a in stored.appended]:
            raise EventIdConflictError(f"event id {unit.id!r} is stored already, with other content")
        return stored

    def _check_alive(self, worker: WorkerRef) -> None:
        image = self.tables["workers"].get((worker.id,))
        row = SHAPES["workers"].as_dict(image) if image else {}
        if not row.get("alive") or row.get("incarnation") != worker.incarnation:
            raise OwnershipLostError(
                f"worker {worker.id!r} (incarnation {worker.incarnation}) is not alive in the store: it must not write"
            )

    def _placed(self, unit: Unit) -> tuple[list[Record], tuple[Appended, ...]]:
        """The unit's records with the versions and positions they will have."""
        records: list[Record] = []
        appended: list[Appended] = []
        versions: dict[str, int] = {}
        position = self.last_position()
        for append in unit.appends:
            stream = append.stream
            version = before = versions.get(stream, self.head(stream))
            check_version(append, version)
            for new in append.records:
                version += new.count
                position += new.count
                records.append(
                    Record(
                        position=position,
                        stream=stream,
                        version=version,
                        count=new.count,
                        id=new.id,
                        type=new.type,
                        schema=new.schema,
                        data=new.data,
                        metadata=new.metadata,
                        recorded_at=unit.at,
                    )
                )
            if append.records:
                versions[stream] = version
                appended.append(Appended(stream, version, position, version - before))
        return records, tuple(appended)

    def _remember(self, unit: Unit) -> None:
        self.row_units[unit.id] = unit.at
        oldest = next(iter(self.row_units))
        if self.row_units[oldest] < unit.at - KEEP_UNIT_IDS_US:
            del self.row_units[oldest]


class _RowView:
    """The rows as a unit sees them: those of the store, changed by what the unit did so far."""

    def __init__(self, tables: dict[str, dict[Key, Image]]) -> None:
        self._tables = tables
        self.changed: dict[tuple[str, Key], Image | None] = {}

    def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The row by its columns, or ``None``."""
        shape = shape_of(table)
        image = self._image(table, shape.key(key))
        return None if image is None else shape.as_dict(image)

    def apply(self, row: Row) -> None:
        """Apply one compare-and-set."""
        shape = shape_of(row.table)
        key = shape.key(row.key)
        self.changed[row.table, key] = shape.apply(self._image(row.table, key), row)

    def _image(self, table: str, key: Key) -> Image | None:
        if (table, key) in self.changed:
            return self.changed[table, key]
        return self._tables[table].get(key)
