"""One batch inside of its transaction: each unit gets a verdict of its own, then all that won is written at once.

Units are judged in Python, against what the writer remembers of the store and what the batch did so far. Nothing is
written before the last one is judged, so a unit that loses leaves nothing to undo.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import (
    DefinitionError,
    EventIdConflictError,
    OwnershipLostError,
    StorageError,
)
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.port import ANY_VERSION, Appended, Record, Written
from event_workflow_engine.storage.row_images import SHAPES, shape_of
from event_workflow_engine.storage.sqlite.log_lookup import KnownIds, find_known, landed_unit, stored_appends
from event_workflow_engine.storage.sqlite.statements import HEADS, INSERT_RECORDS, INSERT_UNITS, RECORD_WIDTH, TABLE_SQL
from event_workflow_engine.storage.unit_checks import check_text, check_unit, check_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import InlineFolder, Row, Unit, WorkerRef
    from event_workflow_engine.storage.row_images import Image, Key
    from event_workflow_engine.storage.sqlite.caches import StoreCache

__all__ = ["Batch"]

_ABSENT: Final = object()
_NO_METADATA: Final = bytearray()


class Batch:
    """The units of one transaction.

    Args:
        connection: Inside of a write transaction, with the store's lock.
        cache: What is known of the store; the batch changes it, so it must be cleared if the transaction fails.
        folder: Folds inline projections.
        careful: Look all ids up before judging. Without, an id that is stored already fails the whole batch with
            `sqlite3.IntegrityError`, which happens seldom and then costs one more round.
    """

    def __init__(
        self, connection: sqlite3.Connection, cache: StoreCache, folder: InlineFolder | None, *, careful: bool = False
    ) -> None:
        self._connection = connection
        self._cache = cache
        self._folder = folder
        self._careful = careful
        self._known = KnownIds(set(), set())  # of the ids looked up, those that were stored before this batch
        self._accepted: dict[str, tuple[Unit, Written]] = {}
        self._position = 0
        self._records: list[Any] = []
        self._unit_ids: list[Any] = []
        self._dirty: dict[str, dict[Key, None]] = {}

    # -- the batch -----------------------------------------------------------------------------------------------

    def run(self, units: Sequence[Unit]) -> list[Verdict]:
        """Judge `units` in order and write those that won. The transaction stays open."""
        self._position = self._cache.position or 0
        try:
            self._fetch(units)
        except (TypeError, AttributeError, ValueError, OverflowError, DefinitionError):
            # One of them is malformed. The others need not suffer.
            verdicts: list[Verdict] = []
            for unit in units:
                try:
                    self._fetch((unit,))
                except sqlite3.Error:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this unit's verdict
                    verdicts.append(_malformed(unit, error))
                else:
                    verdicts.append(self._judge(unit))
        else:
            verdicts = [self._judge(unit) for unit in units]
        self._write()
        self._cache.position = self._position
        return verdicts

    def _fetch(self, units: Sequence[Unit]) -> None:
        """Have in the cache all that judging these units needs to know, with few queries."""
        heads = self._cache.heads
        streams = heads.missing({append.stream for unit in units for append in unit.appends})
        if streams:
            for stream in streams:
                check_text(stream, "a stream's name")
            for stream, version in HEADS.fetch(self._connection, streams):
                heads.young[stream] = version or 0
        rows = [row for unit in units for row in unit.rows]
        keys: dict[str, set[Key]] = {}
        for row in rows:
            if not shape_of(row.table).overwrites(row):
                keys.setdefault(row.table, set()).add(row.key)
        workers = {unit.worker.id for unit in units if unit.worker is not None}
        if workers:
            keys.setdefault("workers", set()).update((worker,) for worker in workers)
        for table, wanted in keys.items():
            missing = self._cache.rows[table].missing(wanted)
            if missing:
                self._fetch_rows(table, missing)
        if self._careful:
            find_known(self._connection, units, self._known)

    def _fetch_rows(self, table: str, raw_keys: Iterable[Key]) -> None:
        shape = SHAPES[table]
        keys = [shape.key(key) for key in raw_keys]
        images = self._cache.rows[table].young
        images.update(dict.fromkeys(keys))
        width = shape.width
        for image in TABLE_SQL[table].select.fetch(self._connection, [value for key in keys for value in key]):
            images[image[:width]] = image

    def _write(self) -> None:
        connection = self._connection
        if self._records:
            INSERT_RECORDS.execute(connection, self._records)
        if self._unit_ids:
            INSERT_UNITS.execute(connection, self._unit_ids)
        for table, keys in self._dirty.items():
            images = self._cache.rows[table].young
            sql = TABLE_SQL[table]
            params: list[Any] = []
            for key in keys:
                image = images[key]
                if image is None:
                    connection.execute(sql.delete, key)
                else:
                    params += image
            if params:
                sql.put.execute(connection, params)

    # -- one unit ------------------------------------------------------------------------------------------------

    def _judge(self, unit: Unit) -> Verdict:
        mark = len(self._records)
        position = self._position
        try:
            if self._careful:
                check_unit(unit)
            if self._careful or unit.id in self._accepted:
                before = self._stored_before(unit)
                if before is not None:
                    return before
            return self._accept(unit)
        except sqlite3.Error:
            raise  # the store's trouble, not the unit's
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this unit's verdict
            del self._records[mark:]
            self._position = position
            return self._lost(unit, error)

    def _lost(self, unit: Unit, error: Exception) -> Verdict:
        """Why a unit lost: for its form, else because it is stored already, and only then for `error`."""
        try:
            check_unit(unit)
            if not self._careful:
                find_known(self._connection, (unit,), self._known)
                before = self._stored_before(unit)
                if before is not None:
                    return before
        except sqlite3.Error:
            raise
        except Exception as earlier:  # noqa: BLE001 - as above
            return earlier
        return error

    def _accept(self, unit: Unit) -> Written:
        """Take `unit` into the batch, or raise."""
        if unit.worker is not None:
            self._check_alive(unit.worker)
        heads = self._cache.heads.young
        versions: dict[str, int] = {}
        appended: list[Appended] = []
        records = self._records
        position = self._position
        mark = len(records)
        for append in unit.appends:
            stream = append.stream
            version = before = versions[stream] if stream in versions else heads[stream]
            expected = append.expected
            if expected not in (version, ANY_VERSION):
                check_version(append, version)
            if not append.records:
                continue
            part = len(appended) + 1 if appended else 0
            for record in append.records:
                count = record.count
                if (
                    record.data.__class__ is not bytes
                    or record.id.__class__ is not str
                    or record.type.__class__ is not str
                    or count < 1
                    or (not part and record.id != unit.id)
                ):
                    check_unit(unit)
                version += count
                position += count
                metadata = record.metadata
                # A bytearray is bound as it is; sqlite3 looks for an adapter for bytes, at twice the price.
                records += (
                    position, stream, version, count, part, record.id, record.type, record.schema,
                    bytearray(record.data), bytearray(metadata) if metadata else _NO_METADATA, unit.at,
                )  # fmt: skip
                part = len(appended) + 1
            versions[stream] = version
            appended.append(Appended(stream, version, position, version - before))
        self._position = position
        if unit.rows or (self._folder is not None and appended):
            self._change_rows(unit, mark)
        heads.update(versions)
        written = Written(unit.id, tuple(appended))
        if not appended:
            self._unit_ids += (unit.id, unit.at)
        self._accepted[unit.id] = (unit, written)
        return written

    def _check_alive(self, worker: WorkerRef) -> None:
        image = self._cache.rows["workers"].young.get((worker.id,))
        if image is None or image[_ALIVE] != 1 or image[_INCARNATION] != worker.incarnation:
            raise OwnershipLostError(
                f"worker {worker.id!r} (incarnation {worker.incarnation}) is not alive in the store: it must not write"
            )

    def _change_rows(self, unit: Unit, mark: int) -> None:
        view = _RowView(self)
        for row in unit.rows:
            view.apply(row)
        if self._folder is not None and len(self._records) > mark:
            for row in self._folder(unit, self._records_since(mark), view):
                view.apply(row)
        for (table, key), image in view.changed.items():
            self._cache.rows[table].young[key] = image
            self._dirty.setdefault(table, {})[key] = None

    def _records_since(self, mark: int) -> list[Record]:
        """The records of the unit that is being judged, as they will be stored."""
        params = self._records
        return [
            Record(
                params[i], params[i + 1], params[i + 2], params[i + 3], params[i + 5], params[i + 6], params[i + 7],
                bytes(params[i + 8]), bytes(params[i + 9]), params[i + 10],
            )
            for i in range(mark, len(params), RECORD_WIDTH)
        ]  # fmt: skip

    def image(self, table: str, key: Key) -> Image | None:
        """The row as the batch left it so far."""
        images = self._cache.rows[table].young
        image = images.get(key, _ABSENT)
        if image is _ABSENT:
            if self._cache.rows[table].missing((key,)):
                self._fetch_rows(table, (key,))
            image = images[key]
        return image  # type: ignore[return-value]

    # -- ids that are stored already -----------------------------------------------------------------------------

    def _stored_before(self, unit: Unit) -> Repeated | None:
        """The verdict of a unit that is stored, or accepted earlier in this batch; ``None`` where none of it is."""
        wanted = stored_appends(unit)
        if unit.id in self._accepted:
            first, written = self._accepted[unit.id]
            accepted = stored_appends(first)
            # Ids of units with and without records are kept apart: the same id in both is no repetition.
            if bool(accepted) == bool(wanted):
                if accepted != wanted:
                    raise EventIdConflictError(f"event id {unit.id!r} is stored already, with other content")
                return Repeated(written)
        if not wanted:
            return Repeated(Written(unit.id, ())) if unit.id in self._known.row_units else None
        ids = [record[0] for _, records in wanted for record in records]
        if len(set(ids)) != len(ids):
            raise EventIdConflictError(f"unit {unit.id!r} uses an event id twice")
        known = [i for i in ids if i in self._known.records]
        if not known:
            return None
        landed = landed_unit(self._connection, unit.id)
        if landed is None:
            raise EventIdConflictError(f"event id {known[0]!r} is stored already, in another unit")
        if landed.appends != wanted:
            raise EventIdConflictError(f"event id {unit.id!r} is stored already, with other content")
        return Repeated(landed.written)


_INCARNATION: Final = SHAPES["workers"].place("incarnation")
_ALIVE: Final = SHAPES["workers"].place("alive")


class _RowView:
    """The rows as a unit sees them: as the batch left them, changed by what the unit did so far."""

    __slots__ = ("_batch", "changed")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
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
        image = None if shape.overwrites(row) else self._image(row.table, key)
        new = shape.apply(image, key, row)
        if new is not image:
            self.changed[row.table, key] = new

    def _image(self, table: str, key: Key) -> Image | None:
        if (table, key) in self.changed:
            return self.changed[table, key]
        return self._batch.image(table, key)


def _malformed(unit: Unit, error: Exception) -> Exception:
    """The typed error for a unit that could not even be looked at."""
    try:
        check_unit(unit)
    except DefinitionError as typed:
        return typed
    if isinstance(error, (DefinitionError, StorageError)):
        return error
    return DefinitionError(f"unit {unit.id!r} is malformed: {type(error).__name__}: {error}")
