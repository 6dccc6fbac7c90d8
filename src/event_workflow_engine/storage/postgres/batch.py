"""One batch: judged here from what is remembered, written by the server if that is still so, under the store's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.judging.judge import Judge
from event_workflow_engine.storage.judging.repetition import RecordLayout
from event_workflow_engine.storage.names import check_name
from event_workflow_engine.storage.port import Appended, Record, Written
from event_workflow_engine.storage.postgres.rows import VersionedRows
from event_workflow_engine.storage.postgres.wanted import NotFetchedError, Wanted
from event_workflow_engine.storage.unit_checks import check_unit, is_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.judging.caches import Head
    from event_workflow_engine.storage.port import InlineFolder, NewRecord, Unit
    from event_workflow_engine.storage.postgres.rows import SharedCache
    from event_workflow_engine.storage.postgres.wanted import FetchedIds

__all__ = ["Batch", "numbers"]

_COLUMNS: Final = (
    "positions", "record_streams", "record_versions", "counts", "parts", "ids", "types", "schemas", "payloads",
    "metadatas", "times",
)  # fmt: skip
_NUMBERS: Final = frozenset({"positions", "record_versions", "counts", "parts", "schemas", "times"})
_WIDTH: Final = len(_COLUMNS)
_OF_NO_INTEREST: Final = frozenset({"workers"})  # heartbeats, which whoever wants to know looks for
_UNKNOWN: Final = Exception("not judged yet")
_digits: Final = int.__repr__  # what is no integer it refuses, and `True` is 1
_encode: Final = msgspec.json.Encoder().encode


class Batch(Judge):
    """The units of one transaction.

    Args:
        cache: What is remembered of the store; put right by `undo` or `stored`.
        folder: Folds inline projections.
        ids: The answers of the store about ids.
        careful: Look all ids up before judging. Without, an id that is stored already makes the server refuse the
            batch with `asyncpg.UniqueViolationError`.
        guesses: Take a stream to be where the unit expects it, and a row that is to be inserted to be absent, where
            nothing is remembered of them. Else they are fetched.

    Attributes:
        is_news: Whether other processes want to know of it, once `parameters` has told what it is.
    """

    trouble: ClassVar[tuple[type[BaseException], ...]] = (NotFetchedError,)
    layout: ClassVar[RecordLayout] = RecordLayout(_WIDTH, _COLUMNS.index("ids"))

    def __init__(
        self, cache: SharedCache, folder: InlineFolder | None, ids: FetchedIds, *, careful: bool, guesses: bool
    ) -> None:
        self._versioned = VersionedRows(cache, guesses=guesses)
        super().__init__(cache, folder, self._versioned, ids, careful=careful)
        self._guesses = guesses
        self._assumed = self._position
        self._wanted: Wanted | None = None
        self.is_news = False
        self._units: Sequence[Unit] = ()
        self._verdicts: list[Verdict] = []
        self._seen: dict[str, list[tuple[Any, ...]]] = {}

    def judge(self, units: Sequence[Unit]) -> None:
        """Judge `units` in order.

        Raises:
            NotFetchedError: Something must be fetched first; nothing was changed.
        """
        self._units = units
        try:
            self._verdicts = self._judge_all(units)
            if self._wanted is None:
                self._seen = self._versioned.seen()
        except BaseException:
            self.undo()
            raise
        if self._wanted is not None:
            self.undo()
            raise NotFetchedError(self._wanted)

    def parameters(self) -> dict[str, Any]:
        """What the server is told; `None` for what there is none of."""
        sagas, workers = self._seen.pop("sagas", None), self._seen.pop("workers", None)
        put, dropped = self._versioned.changed()
        heads = self._cache.heads.young
        streams = {
            append.stream: None
            for unit, verdict in zip(self._units, self._verdicts, strict=True)
            if not isinstance(verdict, DefinitionError)  # nothing was looked up for what is malformed
            for append in unit.appends
        }
        records = self._records
        values: dict[str, Any] = {
            "streams": list(streams) or None,
            "versions": numbers([self._moved.get(stream, heads[stream])[1] for stream in streams]),
            "sagas": sagas and [row[0] for row in sagas],
            "saga_rows": sagas and numbers([row[1] for row in sagas]),
            "workers": workers and [row[0] for row in workers],
            "worker_rows": workers and numbers([row[1] for row in workers]),
            "seen": _json(self._seen),
            "assumed_position": self._assumed,
            "exact": self._folder is not None and bool(records),
            "reach": self._position - self._assumed,
            "unit_ids": self._unit_ids[::2] or None,
            "unit_times": numbers(self._unit_ids[1::2]),
            "images": _json(put),
            "dropped": _json(dropped),
        }
        for place, name in enumerate(_COLUMNS):
            column = records[place::_WIDTH]
            values[name] = numbers(column) if name in _NUMBERS else column or None
        self.is_news = bool(records or dropped) or not put.keys() <= _OF_NO_INTEREST
        return values

    def undo(self) -> None:
        """It is not stored: the cache is to be as it was."""
        self._cache.heads.young.update(self._moved)
        self._versioned.undo()

    def stored(self, last_position: int, row_version: int | None) -> list[Verdict]:
        """It is stored behind `last_position`: its verdicts."""
        self._cache.position = last_position + self._position - self._assumed
        if row_version is not None:
            self._versioned.stored(row_version)
        shift = last_position - self._assumed
        return self._verdicts if not shift else self._shifted(shift)

    def _shifted(self, shift: int) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for unit, verdict in zip(self._units, self._verdicts, strict=True):
            accepted = self._repetitions.accepted.get(unit.id)
            if isinstance(verdict, Written):
                verdicts.append(_moved(verdict, shift))
            elif isinstance(verdict, Repeated) and accepted is not None and verdict.written is accepted[1]:
                verdicts.append(Repeated(_moved(verdict.written, shift)))
            else:
                verdicts.append(verdict)
        return verdicts

    # -- judging ---------------------------------------------------------------------------------------------------

    def _fetch(self, units: Sequence[Unit]) -> None:
        heads = self._cache.heads
        wanted: Wanted | None = None
        for unit in units:
            for append in unit.appends:
                stream = append.stream
                if stream in heads.young or not heads.missing((stream,)):
                    continue
                check_name(stream, "a stream's name")
                if self._guesses and append.expected.__class__ is int and append.expected >= 0:
                    heads.young[stream] = (0, append.expected, 0)
                else:
                    wanted = wanted or Wanted()
                    wanted.heads.add(stream)
        for look in (self._versioned.fetch, self._repetitions.look_up) if self._careful else (self._versioned.fetch,):
            try:
                look(units)
            except NotFetchedError as missing:
                wanted = wanted or Wanted()
                wanted.add(missing.wanted)
        if wanted is not None:
            raise NotFetchedError(wanted)

    def _judge(self, unit: Unit) -> Verdict:
        try:
            return super()._judge(unit)
        except NotFetchedError as missing:
            # Find out what the others want, too: all of it is fetched at once, and then all are judged again.
            self._wanted = self._wanted or Wanted()
            self._wanted.add(missing.wanted)
            return _UNKNOWN

    def _append(self, unit: Unit, stream: str, new: Sequence[NewRecord], head: Head, place: int) -> Head:
        version = head[1]
        records, position, at = self._records, self._position, unit.at
        part = place + 1 if place else 0
        for record in new:
            if not is_plain(record) or (not part and record.id != unit.id):
                check_unit(unit)
            version += record.count
            position += record.count
            records += (
                position, stream, version, record.count, part, record.id, record.type, record.schema, record.data,
                record.metadata, at,
            )  # fmt: skip
            part = place + 1
        self._position = position
        return (0, version, position)

    def _records_since(self, mark: int, _: dict[str, Head]) -> list[Record]:
        records: list[Record] = []
        for start in range(mark, len(self._records), _WIDTH):
            position, stream, version, count, _, *rest = self._records[start : start + _WIDTH]
            records.append(Record(position, stream, version, count, *rest))
        return records


def numbers(values: Sequence[int | None]) -> str | None:
    """A list of numbers as PostgreSQL writes it; ``None`` for an empty one.

    Raises:
        TypeError: Something in it is no integer. As text the server might take it for one.
    """
    if not values:
        return None
    if None in values:
        return "{" + ",".join(["NULL" if value is None else _digits(value) for value in values]) + "}"
    return "{" + ",".join(map(_digits, values)) + "}"


def _json(by_table: dict[str, list[Any]]) -> str | None:
    return _encode(by_table).decode() if by_table else None


def _moved(written: Written, shift: int) -> Written:
    appended = tuple(Appended(a.stream, a.version, a.position + shift, a.count) for a in written.appended)
    return Written(written.unit_id, appended)
