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
    StorageCorruptError,
    WorkflowError,
)
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.port import ANY_VERSION, Appended, Record, Written
from event_workflow_engine.storage.row_images import SHAPES, Image, Key, shape_of
from event_workflow_engine.storage.sqlite.caches import NO_EVENTS, Cache, Head
from event_workflow_engine.storage.sqlite.log_lookup import KnownIds, find_known, landed_unit, stored_appends
from event_workflow_engine.storage.sqlite.statements import (
    HEADS,
    ID_PLACE,
    INSERT_RECORDS,
    INSERT_STREAMS,
    INSERT_UNITS,
    MOVE_STREAMS,
    RECORD_WIDTH,
    TABLE_SQL,
)
from event_workflow_engine.storage.unit_checks import check_text, check_unit, check_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import InlineFolder, Row, Unit, WorkerRef
    from event_workflow_engine.storage.sqlite.caches import StoreCache

__all__ = ["Batch"]

_Changes = dict[tuple[str, Key], Image | None]

_ABSENT: Final[Any] = object()
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
        self._last_stream = 0
        self._moved: dict[str, Head] = {}  # where streams ended before this batch, of those that it extends
        self._records: list[Any] = []
        self._record_ids: set[str] = set()
        self._record_ids_upto = 0
        self._unit_ids: list[Any] = []
        self._dirty: dict[str, dict[Key, Any]] = {}  # by table: the images before this batch of rows that it changes

    # -- the batch -----------------------------------------------------------------------------------------------

    def run(self, units: Sequence[Unit]) -> list[Verdict]:
        """Judge `units` in order and write those that won. The transaction stays open."""
        self._position = self._cache.position or 0
        self._last_stream = self._cache.last_stream
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
        self._cache.last_stream = self._last_stream
        return verdicts

    def _fetch(self, units: Sequence[Unit]) -> None:
        """Have in the cache all that judging these units needs to know, with few queries."""
        heads, rows = self._cache.heads, self._cache.rows
        workers = rows["workers"]
        streams: dict[str, None] = {}
        keys: dict[str, dict[Key, None]] = {}
        for unit in units:
            for append in unit.appends:
                if append.stream not in heads.young:
                    streams[append.stream] = None
            for row in unit.rows:
                if row.key not in _table(rows, row).young and not SHAPES[row.table].overwrites(row):
                    keys.setdefault(row.table, {})[row.key] = None
            if unit.worker is not None and (unit.worker.id,) not in workers.young:
                keys.setdefault("workers", {})[(unit.worker.id,)] = None
        if streams and (unknown := heads.missing(streams)):
            self._fetch_heads(unknown)
        for table, wanted in keys.items():
            if missing := rows[table].missing(wanted):
                self._fetch_rows(table, missing)
        if self._careful:
            find_known(self._connection, units, self._known)

    def _fetch_heads(self, streams: list[str]) -> None:
        for stream in streams:
            check_text(stream, "a stream's name")
        heads = self._cache.heads.young
        heads.update(dict.fromkeys(streams, NO_EVENTS))
        for name, *head in HEADS.fetch(self._connection, streams):
            heads[name] = tuple(head)

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
            self._move_streams()
        if self._unit_ids:
            INSERT_UNITS.execute(connection, self._unit_ids)
        for table, rows in self._dirty.items():
            self._write_rows(table, rows)

    def _write_rows(self, table: str, before: dict[Key, Any]) -> None:
        """Bring rows from their images before the batch to those behind it, each once."""
        connection, sql = self._connection, TABLE_SQL[table]
        images = self._cache.rows[table].young
        puts: list[Any] = []
        updates: dict[tuple[int, ...], list[Any]] = {}
        for key, was in before.items():
            image = images[key]
            if image is None:
                connection.execute(sql.delete, key)
            elif was is None or was is _ABSENT:
                puts += image
            elif image != was:
                places = tuple([place for place, value in enumerate(image) if value != was[place]])
                updates.setdefault(places, []).extend([*(image[place] for place in places), *image[: len(key)]])
        if puts:
            sql.put.execute(connection, puts)
        for places, params in updates.items():
            sql.update(places).execute(connection, params)

    def _move_streams(self) -> None:
        heads = self._cache.heads.young
        new: list[Any] = []
        old: list[Any] = []
        for stream, was in self._moved.items():
            number, version, position = heads[stream]
            if was[0]:
                old += (version, position, number, was[1])
            else:
                new += (number, stream, version, position)
        if new:
            INSERT_STREAMS.execute(self._connection, new)
        if old:
            changes = self._connection.total_changes
            MOVE_STREAMS.execute(self._connection, old)
            if (self._connection.total_changes - changes) * MOVE_STREAMS.width != len(old):
                # It cannot be, under the lock; but then no version is given twice.
                raise sqlite3.IntegrityError("a stream does not end where the writer remembers it")

    # -- one unit ------------------------------------------------------------------------------------------------

    def _judge(self, unit: Unit) -> Verdict:
        mark = len(self._records)
        position, last_stream = self._position, self._last_stream
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
            self._position, self._last_stream = position, last_stream
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
        except Exception as earlier:  # noqa: BLE001 - whatever it is, it is this unit's verdict
            error = earlier
        if isinstance(error, _FoldError):
            return error.raised
        if isinstance(error, WorkflowError):
            return error
        # The unit is well formed, so it is what we read that is not.
        damage = StorageCorruptError(f"unit {unit.id!r}: what is stored is damaged: {type(error).__name__}: {error}")
        damage.__cause__ = error
        return damage

    def _accept(self, unit: Unit) -> Written:
        """Take `unit` into the batch, or raise."""
        if unit.worker is not None:
            self._check_alive(unit.worker)
        heads = self._cache.heads.young
        records = self._records
        position = self._position
        mark = len(records)
        moved: dict[str, Head] = {}
        appended: list[Appended] = []
        for append in unit.appends:
            stream = append.stream
            number, version, before = moved[stream] if stream in moved else heads[stream]
            if append.expected not in (version, ANY_VERSION):
                check_version(append, version)
            if not append.records:
                continue
            if not number:
                number = self._last_stream = self._last_stream + 1
            first = version
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
                    position, number, version, count, part, before, record.id, record.type, record.schema,
                    bytearray(record.data), bytearray(metadata) if metadata else _NO_METADATA, unit.at,
                )  # fmt: skip
                before = position
                part = len(appended) + 1
            moved[stream] = (number, version, position)
            appended.append(Appended(stream, version, position, version - first))
        self._position = position
        if unit.rows or (self._folder is not None and appended):
            self._change_rows(unit, mark, moved)
        for stream, head in moved.items():
            if stream not in self._moved:
                self._moved[stream] = heads[stream]
            heads[stream] = head
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

    def _change_rows(self, unit: Unit, mark: int, moved: dict[str, Head]) -> None:
        changed: _Changes = {}
        self._apply(unit.rows, changed)
        if self._folder is not None and len(self._records) > mark:
            records = self._records_since(mark, {head[0]: stream for stream, head in moved.items()})
            self._apply(self._folded(self._folder, unit, records, _RowView(self, changed)), changed)
        for (table, key), image in changed.items():
            images = self._cache.rows[table].young
            dirty = self._dirty.setdefault(table, {})
            if key not in dirty:
                dirty[key] = images.get(key, _ABSENT)
            images[key] = image

    @staticmethod
    def _folded(folder: InlineFolder, unit: Unit, records: list[Record], view: _RowView) -> Sequence[Row]:
        try:
            return folder(unit, records, view)
        except sqlite3.Error:
            raise  # from reading rows
        except Exception as error:
            raise _FoldError(error) from error

    def _apply(self, rows: Sequence[Row], changed: _Changes) -> None:
        """Apply compare-and-sets over what the unit changed so far."""
        for row in rows:
            table, key = row.table, row.key
            image = changed.get((table, key), _ABSENT) if changed else _ABSENT
            if image is _ABSENT:
                image = _table(self._cache.rows, row).young.get(key, _ABSENT)
                if image is _ABSENT:
                    image = None if SHAPES[table].overwrites(row) else self.image(table, key)
            new = SHAPES[table].apply(image, row)
            if new is not image:
                changed[table, key] = new

    def _records_since(self, mark: int, names: dict[int, str]) -> list[Record]:
        """The records of the unit that is being judged, as they will be stored."""
        records: list[Record] = []
        for start in range(mark, len(self._records), RECORD_WIDTH):
            position, number, version, count, _, _, record_id, kind, schema, data, metadata, at = self._records[
                start : start + RECORD_WIDTH
            ]
            record = Record(
                position, names[number], version, count, record_id, kind, schema, bytes(data), bytes(metadata), at
            )
            records.append(record)
        return records

    def image(self, table: str, key: Key) -> Image | None:
        """The row as the batch left it so far."""
        rows = self._cache.rows[table]
        if rows.missing((key,)):
            self._fetch_rows(table, (key,))
        return rows.young[key]

    # -- ids that are stored already -----------------------------------------------------------------------------

    def _accepted_record_ids(self) -> set[str]:
        """The ids of all records accepted so far; brought up to date only when somebody asks."""
        self._record_ids.update(self._records[self._record_ids_upto + ID_PLACE :: RECORD_WIDTH])
        self._record_ids_upto = len(self._records)
        return self._record_ids

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
        accepted_ids = self._accepted_record_ids()
        known = [i for i in ids if i in self._known.records or i in accepted_ids]
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


class _FoldError(Exception):
    """A fold raised; carries what, past those who judge errors of ours."""

    def __init__(self, raised: Exception) -> None:
        super().__init__()
        self.raised = raised


class _RowView:
    """The rows as a fold sees them: as the batch left them, changed by what the unit did so far."""

    __slots__ = ("_batch", "_changed")

    def __init__(self, batch: Batch, changed: _Changes) -> None:
        self._batch = batch
        self._changed = changed

    def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The row by its columns, or ``None``."""
        shape = shape_of(table)
        key = shape.key(key)
        changed = self._changed
        image = changed[table, key] if (table, key) in changed else self._batch.image(table, key)
        return None if image is None else shape.as_dict(image)


def _table(rows: dict[str, Cache[Key, Image | None]], row: Row) -> Cache[Key, Image | None]:
    cache = rows.get(row.table)
    if cache is None:
        raise DefinitionError(f"no table {row.table!r} is declared")
    return cache


def _malformed(unit: Unit, error: Exception) -> Exception:
    """The typed error for a unit that could not even be looked at."""
    try:
        check_unit(unit)
    except DefinitionError as typed:
        return typed
    if isinstance(error, WorkflowError):
        return error
    return DefinitionError(f"unit {unit.id!r} is malformed: {type(error).__name__}: {error}")
