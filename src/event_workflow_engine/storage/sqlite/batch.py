"""One batch inside of its transaction: each unit gets a verdict of its own, then all that won is written at once.

Units are judged in Python, against what the writer remembers of the store and what the batch did so far. Nothing is
written before the last one is judged, so a unit that loses leaves nothing to undo.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError, StorageCorruptError, WorkflowError
from event_workflow_engine.storage.port import ANY_VERSION, Appended, Record, Written
from event_workflow_engine.storage.sqlite.caches import NO_EVENTS, Head
from event_workflow_engine.storage.sqlite.repetition import Repetitions
from event_workflow_engine.storage.sqlite.row_changes import Changes, RowChanges, RowView
from event_workflow_engine.storage.sqlite.statements import (
    HEADS,
    INSERT_RECORDS,
    INSERT_STREAMS,
    INSERT_UNITS,
    MOVE_STREAMS,
    RECORD_WIDTH,
)
from event_workflow_engine.storage.unit_checks import check_text, check_unit, check_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import InlineFolder, NewRecord, Row, Unit
    from event_workflow_engine.storage.sqlite.caches import StoreCache

__all__ = ["Batch"]

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
        self._position = cache.position or 0
        self._last_stream = cache.last_stream
        self._records: list[Any] = []  # the parameters of all records to insert, one after the other
        self._unit_ids: list[Any] = []  # and those of units without records
        self._moved: dict[str, Head] = {}  # where streams ended before this batch, of those that it extends
        self._rows = RowChanges(connection, cache.rows)
        self._repetitions = Repetitions(connection, self._records)

    # -- the batch -----------------------------------------------------------------------------------------------

    def run(self, units: Sequence[Unit]) -> list[Verdict]:
        """Judge `units` in order and write those that won. The transaction stays open.

        Raises:
            sqlite3.IntegrityError: Not careful, and an id is stored already.
            sqlite3.Error: The database cannot do its work.
            Exception: A value of some unit cannot be stored.
        """
        try:
            self._fetch(units)
        except (TypeError, AttributeError, ValueError, OverflowError, DefinitionError):
            verdicts = [self._fetch_and_judge(unit) for unit in units]  # the malformed one among them loses alone
        else:
            verdicts = [self._judge(unit) for unit in units]
        if self._records:
            INSERT_RECORDS.execute(self._connection, self._records)
            self._move_streams()
        if self._unit_ids:
            INSERT_UNITS.execute(self._connection, self._unit_ids)
        self._rows.write()
        self._cache.position = self._position
        self._cache.last_stream = self._last_stream
        return verdicts

    def _fetch(self, units: Sequence[Unit]) -> None:
        """Have in the cache all that judging these units needs to know, with few queries."""
        heads = self._cache.heads
        streams = {append.stream: None for unit in units for append in unit.appends if append.stream not in heads.young}
        if streams and (unknown := heads.missing(streams)):
            for stream in unknown:
                check_text(stream, "a stream's name")
            heads.young.update(dict.fromkeys(unknown, NO_EVENTS))
            for name, *head in HEADS.fetch(self._connection, unknown):
                heads.young[name] = tuple(head)
        self._rows.fetch(units)
        if self._careful:
            self._repetitions.look_up(units)

    def _move_streams(self) -> None:
        heads = self._cache.heads.young
        new: list[Any] = []
        old: list[Any] = []
        for stream, (known, was, _) in self._moved.items():
            number, version, position = heads[stream]
            if known:
                old += (version, position, number, was)
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

    def _fetch_and_judge(self, unit: Unit) -> Verdict:
        try:
            self._fetch((unit,))
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this unit's verdict
            return _malformed(unit, error)
        return self._judge(unit)

    def _judge(self, unit: Unit) -> Verdict:
        mark = len(self._records)
        position, last_stream = self._position, self._last_stream
        try:
            if self._careful:
                check_unit(unit)
            if self._careful or unit.id in self._repetitions.accepted:
                before = self._repetitions.verdict(unit)
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
                self._repetitions.look_up((unit,))
                before = self._repetitions.verdict(unit)
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
            self._rows.check_alive(unit.worker)
        heads = self._cache.heads.young
        mark = len(self._records)
        moved: dict[str, Head] = {}
        appended: tuple[Appended, ...] = ()
        for append in unit.appends:
            stream = append.stream
            head = moved[stream] if stream in moved else heads[stream]
            expected = append.expected
            if expected != head[1] and expected != ANY_VERSION:
                check_version(append, head[1])
            if append.records:
                moved[stream] = self._append(unit, append.records, head, len(appended))
                version = moved[stream][1]
                appended += (Appended(stream, version, self._position, version - head[1]),)
        if unit.rows or (self._folder is not None and appended):
            self._change_rows(unit, mark, moved)
        for stream, head in moved.items():
            if stream not in self._moved:
                self._moved[stream] = heads[stream]
            heads[stream] = head
        written = Written(unit.id, appended)
        if not appended:
            self._unit_ids += (unit.id, unit.at)
        self._repetitions.accepted[unit.id] = (unit, written)
        return written

    def _append(self, unit: Unit, new: Sequence[NewRecord], head: Head, place: int) -> Head:
        """Add the records of an append behind `head`, the unit's `place`-th one that has any; the stream's new head."""
        number, version, before = head
        if not number:
            number = self._last_stream = self._last_stream + 1
        records, position, at = self._records, self._position, unit.at
        part = place + 1 if place else 0
        for record in new:
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
                bytearray(record.data), bytearray(metadata) if metadata else _NO_METADATA, at,
            )  # fmt: skip
            before = position
            part = place + 1
        self._position = position
        return (number, version, position)

    def _change_rows(self, unit: Unit, mark: int, moved: dict[str, Head]) -> None:
        changes: Changes = {}
        self._rows.apply(unit.rows, changes)
        if self._folder is not None and len(self._records) > mark:
            records = self._records_since(mark, {head[0]: stream for stream, head in moved.items()})
            self._rows.apply(_folded(self._folder, unit, records, RowView(self._rows, changes)), changes)
        self._rows.keep(changes)

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


class _FoldError(Exception):
    """A fold raised; carries what, past those who judge errors of ours."""

    def __init__(self, raised: Exception) -> None:
        super().__init__()
        self.raised = raised


def _folded(folder: InlineFolder, unit: Unit, records: list[Record], view: RowView) -> Sequence[Row]:
    try:
        return folder(unit, records, view)
    except sqlite3.Error:
        raise  # from reading rows
    except Exception as error:
        raise _FoldError(error) from error


def _malformed(unit: Unit, error: Exception) -> Exception:
    """The typed error for a unit that could not even be looked at."""
    try:
        check_unit(unit)
    except DefinitionError as typed:
        return typed
    if isinstance(error, WorkflowError):
        return error
    return DefinitionError(f"unit {unit.id!r} is malformed: {type(error).__name__}: {error}")
