"""Which units of a batch come again: stored before it, or accepted earlier in it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from event_workflow_engine.errors import EventIdConflictError
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.judging.landed import KnownIds, stored_appends
from event_workflow_engine.storage.port import Written

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.storage.judging.landed import LandedUnit
    from event_workflow_engine.storage.port import Unit

__all__ = ["Ids", "RecordLayout", "Repetitions"]


class Ids(Protocol):
    """Asks the store for ids."""

    def find(self, units: Iterable[Unit], known: KnownIds) -> None:
        """Add to `known` those ids of the units and their records that are stored."""
        ...

    def landed(self, unit_id: str) -> LandedUnit | None:
        """The unit whose first record has that id."""
        ...


class RecordLayout(NamedTuple):
    """How a backend lays out the records of a batch: flat, so many values each, the id among them at a place."""

    width: int
    id_place: int


class Repetitions:
    """Ids of units and records that are taken. Ids of units with and without records are kept apart.

    Attributes:
        accepted: The units of this batch that won, by id.
    """

    def __init__(self, ids: Ids, records: list[Any], layout: RecordLayout) -> None:
        """Watch the records that the batch is going to insert, as flat parameters."""
        self._ids = ids
        self._records = records
        self._layout = layout
        self._seen = 0  # how far `_record_ids` is up to date
        self.accepted: dict[str, tuple[Unit, Written]] = {}

    @cached_property
    def _record_ids(self) -> set[str]:
        return set()

    @cached_property
    def _known(self) -> KnownIds:
        return KnownIds(set(), set())

    def look_up(self, units: Iterable[Unit]) -> None:
        """Find out which ids of `units` the store holds; `verdict` knows only of those."""
        self._ids.find(units, self._known)

    def verdict(self, unit: Unit) -> Repeated | None:
        """What the unit wrote the first time; ``None`` where none of its ids is taken.

        Raises:
            EventIdConflictError: Its ids are taken by something else.
        """
        wanted = stored_appends(unit)
        if unit.id in self.accepted:
            first, written = self.accepted[unit.id]
            accepted = stored_appends(first)
            if bool(accepted) == bool(wanted):
                if accepted != wanted:
                    raise _other_content(unit)
                return Repeated(written)
        if not wanted:
            return Repeated(Written(unit.id, ())) if unit.id in self._known.row_units else None
        ids = [record[0] for _, records in wanted for record in records]
        if len(set(ids)) != len(ids):
            raise EventIdConflictError(f"unit {unit.id!r} uses an event id twice")
        accepted_ids = self._accepted_record_ids()
        taken = [i for i in ids if i in self._known.records or i in accepted_ids]
        if not taken:
            return None
        landed = self._ids.landed(unit.id)
        if landed is None:
            raise EventIdConflictError(f"event id {taken[0]!r} is stored already, in another unit")
        if landed.appends != wanted:
            raise _other_content(unit)
        return Repeated(landed.written)

    def _accepted_record_ids(self) -> set[str]:
        """The ids of all records accepted so far; brought up to date only when somebody asks."""
        width, place = self._layout
        self._record_ids.update(self._records[self._seen + place :: width])
        self._seen = len(self._records)
        return self._record_ids


def _other_content(unit: Unit) -> EventIdConflictError:
    return EventIdConflictError(f"event id {unit.id!r} is stored already, with other content")
