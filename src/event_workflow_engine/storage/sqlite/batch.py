"""One batch inside of its transaction: judged from what is remembered, then written with few statements."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar, Final

from event_workflow_engine.storage.judging.caches import NO_EVENTS
from event_workflow_engine.storage.judging.judge import Judge
from event_workflow_engine.storage.judging.repetition import RecordLayout
from event_workflow_engine.storage.names import check_name
from event_workflow_engine.storage.port import Record
from event_workflow_engine.storage.sqlite.log_lookup import StoredIds
from event_workflow_engine.storage.sqlite.row_changes import StoredRows
from event_workflow_engine.storage.sqlite.statements import (
    HEADS,
    ID_PLACE,
    INSERT_STREAMS,
    INSERT_UNITS,
    MOVE_STREAMS,
    RECORD_WIDTH,
)
from event_workflow_engine.storage.unit_checks import check_unit, is_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.judging.caches import Head, StoreCache
    from event_workflow_engine.storage.port import InlineFolder, NewRecord, Unit
    from event_workflow_engine.storage.sqlite.id_order import IdOrder

__all__ = ["Batch"]

_NO_METADATA: Final = bytearray()


class Batch(Judge):
    """The units of one transaction.

    Args:
        connection: Inside of a write transaction, with the store's lock.
        cache: What is known of the store; the batch changes it, so it must be cleared if the transaction fails.
        order: Where the order of ids stands; likewise.
        folder: Folds inline projections.
        careful: Look all ids up before judging. Without, an id that is stored already fails the whole batch with
            `sqlite3.IntegrityError`.
    """

    trouble: ClassVar[tuple[type[BaseException], ...]] = (sqlite3.Error,)
    layout: ClassVar[RecordLayout] = RecordLayout(RECORD_WIDTH, ID_PLACE)

    def __init__(
        self,
        connection: sqlite3.Connection,
        cache: StoreCache,
        order: IdOrder,
        folder: InlineFolder | None,
        *,
        careful: bool = False,
    ) -> None:
        self._stored = StoredRows(connection, cache.rows)
        super().__init__(cache, folder, self._stored, StoredIds(connection), careful=careful)
        self._connection = connection
        self._order = order

    def run(self, units: Sequence[Unit]) -> list[Verdict]:
        """Judge `units` in order and write those that won. The transaction stays open.

        Raises:
            sqlite3.IntegrityError: Not careful, and an id is stored already.
            sqlite3.Error: The database cannot do its work.
            Exception: A value of some unit cannot be stored.
        """
        verdicts = self._judge_all(units)
        if self._records:
            self._order.insert(self._connection, self._records)
            self._move_streams()
        if self._unit_ids:
            INSERT_UNITS.execute(self._connection, self._unit_ids)
        self._stored.write()
        self._cache.position = self._position
        self._cache.last_stream = self._last_stream
        return verdicts

    def _fetch(self, units: Sequence[Unit]) -> None:
        heads = self._cache.heads
        streams = {append.stream: None for unit in units for append in unit.appends if append.stream not in heads.young}
        if streams and (unknown := heads.missing(streams)):
            for stream in unknown:
                check_name(stream, "a stream's name")
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

    def _append(self, unit: Unit, _: str, new: Sequence[NewRecord], head: Head, place: int) -> Head:
        """Add the records of an append behind `head`, the unit's `place`-th one that has any; the stream's new head."""
        number, version, before = head
        if not number:
            number = self._last_stream = self._last_stream + 1
        records, position, at = self._records, self._position, unit.at
        part = place + 1 if place else 0
        for record in new:
            if not is_plain(record) or (not part and record.id != unit.id):
                check_unit(unit)
            count = record.count
            version += count
            position += count
            metadata = record.metadata
            # A bytearray is bound as it is; sqlite3 looks for an adapter for bytes, at twice the price.
            records += (
                position, number, version, count, part, before, record.id, record.type, record.schema,
                bytearray(record.data), bytearray(metadata) if metadata else _NO_METADATA, at, None,
            )  # fmt: skip
            before = position
            part = place + 1
        self._position = position
        return (number, version, position)

    def _records_since(self, mark: int, moved: dict[str, Head]) -> list[Record]:
        names = {head[0]: stream for stream, head in moved.items()}
        records: list[Record] = []
        for start in range(mark, len(self._records), RECORD_WIDTH):
            position, number, version, count, _, _, record_id, kind, schema, data, metadata, at, _ = self._records[
                start : start + RECORD_WIDTH
            ]
            record = Record(
                position, names[number], version, count, record_id, kind, schema, bytes(data), bytes(metadata), at
            )
            records.append(record)
        return records
