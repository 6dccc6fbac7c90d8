"""What judging a batch turned out to need of the store, to be fetched before it is judged again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.storage.judging.landed import KnownIds, LandedUnit
    from event_workflow_engine.storage.port import Unit
    from event_workflow_engine.storage.row_images import Key

__all__ = ["FetchedIds", "NotFetchedError", "Wanted"]


class Wanted:
    """Facts of the store that are not known.

    Attributes:
        heads: Streams whose ends are wanted.
        rows: Keys of rows, by table.
        record_ids: Ids of which it is wanted whether a record has them.
        unit_ids: Ids of which it is wanted whether a unit without records has them.
        landed: Ids of units to be read back.
    """

    __slots__ = ("heads", "landed", "record_ids", "rows", "unit_ids")

    def __init__(self) -> None:
        self.heads: set[str] = set()
        self.rows: dict[str, set[Key]] = {}
        self.record_ids: set[str] = set()
        self.unit_ids: set[str] = set()
        self.landed: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.heads or self.rows or self.record_ids or self.unit_ids or self.landed)

    def add(self, other: Wanted) -> None:
        """Want what `other` wants, too."""
        self.heads |= other.heads
        for table, keys in other.rows.items():
            self.rows.setdefault(table, set()).update(keys)
        self.record_ids |= other.record_ids
        self.unit_ids |= other.unit_ids
        self.landed |= other.landed


class NotFetchedError(BaseException):
    """Judging cannot go on without what is wanted.

    It passes through the folds of users, whose `except Exception` must not take it for a failure of their own.
    """

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self.wanted = wanted


class FetchedIds:
    """Ids of which the store was asked, and its answers. Serves one batch."""

    def __init__(self) -> None:
        self.records: dict[str, bool] = {}
        self.row_units: dict[str, bool] = {}
        self.units: dict[str, LandedUnit | None] = {}

    def find(self, units: Iterable[Unit], known: KnownIds) -> None:
        """Add to `known` those ids of the units and their records that are stored.

        Raises:
            NotFetchedError: The store was not asked of some.
        """
        wanted = Wanted()
        for unit in units:
            ids = [record.id for append in unit.appends for record in append.records]
            for one in ids:
                if one not in self.records:
                    wanted.record_ids.add(one)
                elif self.records[one]:
                    known.records.add(one)
            if not ids:
                if unit.id not in self.row_units:
                    wanted.unit_ids.add(unit.id)
                elif self.row_units[unit.id]:
                    known.row_units.add(unit.id)
        if wanted:
            raise NotFetchedError(wanted)

    def landed(self, unit_id: str) -> LandedUnit | None:
        """The unit whose first record has that id.

        Raises:
            NotFetchedError: The store was not asked.
        """
        if unit_id not in self.units:
            wanted = Wanted()
            wanted.landed.add(unit_id)
            raise NotFetchedError(wanted)
        return self.units[unit_id]
