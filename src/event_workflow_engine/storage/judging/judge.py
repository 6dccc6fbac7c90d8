"""One batch: each unit gets a verdict of its own, and what those that won wrote is gathered to be stored at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from event_workflow_engine.errors import DefinitionError, StorageCorruptError, WorkflowError
from event_workflow_engine.storage.judging.repetition import Ids, RecordLayout, Repetitions
from event_workflow_engine.storage.judging.rows import Changes, RowChanges, RowView
from event_workflow_engine.storage.port import ANY_VERSION, Appended, Record, Written
from event_workflow_engine.storage.unit_checks import check_size, check_unit, check_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.judging.caches import Head, StoreCache
    from event_workflow_engine.storage.port import InlineFolder, NewRecord, Row, Unit

__all__ = ["Judge"]


class Judge(ABC):
    """Judges the units of one batch, in order, and remembers what those that won wrote.

    Args:
        cache: What is known of the store; judging changes it, so it must be put right if the batch is not stored.
        folder: Folds inline projections.
        rows: The rows that units look at.
        ids: The ids that are taken.
        careful: Look all ids up before judging. Without, only those of units that lose for another reason: an id that
            is stored already is then met when the batch is stored, which happens seldom and costs one more round.

    Attributes:
        trouble: Exceptions that tell of the store and not of a unit: they end the judging.
        layout: How `_append` lays out records.
    """

    trouble: ClassVar[tuple[type[BaseException], ...]]
    layout: ClassVar[RecordLayout]

    def __init__(
        self, cache: StoreCache, folder: InlineFolder | None, rows: RowChanges, ids: Ids, *, careful: bool
    ) -> None:
        self._cache = cache
        self._folder = folder
        self._careful = careful
        self._position = cache.position or 0
        self._last_stream = cache.last_stream
        self._records: list[Any] = []  # the values of all records to insert, one after the other
        self._unit_ids: list[Any] = []  # ids and times of units without records
        self._moved: dict[str, Head] = {}  # where streams ended before this batch, of those that it extends
        self._rows = rows
        self._repetitions = Repetitions(ids, self._records, self.layout)

    def _judge_all(self, units: Sequence[Unit]) -> list[Verdict]:
        """A verdict for each unit.

        Raises:
            Exception: A `trouble`.
        """
        try:
            self._fetch(units)
        except (TypeError, AttributeError, ValueError, OverflowError, DefinitionError):
            return [self._fetch_and_judge(unit) for unit in units]  # the malformed one among them loses alone
        return [self._judge(unit) for unit in units]

    @abstractmethod
    def _fetch(self, units: Sequence[Unit]) -> None:
        """Have in the cache all that judging these units needs to know, with few queries."""

    # -- one unit ------------------------------------------------------------------------------------------------

    def _fetch_and_judge(self, unit: Unit) -> Verdict:
        try:
            self._fetch((unit,))
        except self.trouble:
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
        except self.trouble:
            raise  # not the unit's
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
        except self.trouble:
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
        check_size(unit)
        heads = self._cache.heads.young
        mark = len(self._records)
        moved: dict[str, Head] = {}
        appended: tuple[Appended, ...] = ()
        for append in unit.appends:
            stream = append.stream
            head = moved[stream] if stream in moved else heads[stream]
            before = head[1]
            expected = append.expected
            if expected != before and expected != ANY_VERSION:  # noqa: PLR1714 - a tuple made for each unit costs more
                check_version(append, before)
            if records := append.records:
                head = moved[stream] = self._append(unit, stream, records, head, len(appended))
                appended += (Appended(stream, head[1], self._position, head[1] - before),)
        if self._folder is not None and appended:
            self._change_and_fold(self._folder, unit, mark, moved)
        elif unit.rows:
            changes: Changes = {}
            self._rows.apply(unit.rows, changes)
            if changes:
                self._rows.keep(changes)
        for stream, head in moved.items():
            self._moved.setdefault(stream, heads[stream])
            heads[stream] = head
        written = Written(unit.id, appended)
        if not appended:
            self._unit_ids += (unit.id, unit.at)
        self._repetitions.accepted[unit.id] = (unit, written)
        return written

    @abstractmethod
    def _append(self, unit: Unit, stream: str, new: Sequence[NewRecord], head: Head, place: int) -> Head:
        """Add the records of an append behind `head`, the unit's `place`-th one that has any; the stream's new head.

        What is not plain is for `check_unit` to name.
        """

    def _change_and_fold(self, folder: InlineFolder, unit: Unit, mark: int, moved: dict[str, Head]) -> None:
        changes: Changes = {}
        self._rows.apply(unit.rows, changes)
        records = self._records_since(mark, moved)
        self._rows.apply(self._folded(folder, unit, records, RowView(self._rows, changes)), changes)
        self._rows.keep(changes)

    @abstractmethod
    def _records_since(self, mark: int, moved: dict[str, Head]) -> list[Record]:
        """The records of the unit that is being judged, as they will be stored."""

    def _folded(self, folder: InlineFolder, unit: Unit, records: list[Record], view: RowView) -> Sequence[Row]:
        try:
            return folder(unit, records, view)
        except self.trouble:
            raise  # from reading rows
        except Exception as error:
            raise _FoldError(error) from error


class _FoldError(Exception):
    """A fold raised; carries what, past those who judge errors of ours."""

    def __init__(self, raised: Exception) -> None:
        super().__init__()
        self.raised = raised


def _malformed(unit: Unit, error: Exception) -> Exception:
    """The typed error for a unit that could not even be looked at."""
    try:
        check_unit(unit)
    except DefinitionError as typed:
        return typed
    if isinstance(error, WorkflowError):
        return error
    return DefinitionError(f"unit {unit.id!r} is malformed: {type(error).__name__}: {error}")
