"""Folds inline documents inside the commit, in batch order, over documents read there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from event_workflow_engine._projections.feeding import checkpoint_name
from event_workflow_engine._projections.folding import Documents, Folding, last_values, matching
from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.storage.port import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine._projections.definitions import DocumentProjection
    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.storage.port import Record, RowReader, Storage, Unit

__all__ = ["InlineDocuments"]


_FOLDERS: Final[WeakKeyDictionary[Storage, InlineDocuments]] = WeakKeyDictionary()


class InlineDocuments:
    """The `InlineFolder` of all inline document projections of an engine. Runs on the writer's thread.

    A projection takes part once its row says that it is inline, at the version that this process has, and this process
    has seen that the read model lacks nothing. An event of its types that is committed otherwise turns the projection
    back into one that catches up.
    """

    def __init__(self) -> None:
        self._foldings: dict[str, Folding] = {}
        self._trusted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, storage: Storage) -> InlineDocuments:
        """The one of a store: engines that share a storage object share it."""
        found = _FOLDERS.get(storage)
        if found is None:
            found = _FOLDERS[storage] = cls()
        storage.set_inline_folder(found)
        return found

    def add(self, projection: DocumentProjection[Any], serializer: EventSerializer) -> None:
        """Fold one more."""
        self._foldings = {**self._foldings, projection.name: Folding(projection, serializer)}
        self._trusted -= {projection.name}

    def trust(self, name: str) -> None:
        """This process has seen that the read model lacks nothing."""
        self._trusted |= {name}

    def __call__(self, unit: Unit, records: Sequence[Record], rows: RowReader, /) -> Sequence[Row]:
        """See `InlineFolder`."""
        written: list[Row] = []
        for name, folding in self._foldings.items():
            routes = folding.projection.routes
            singles = list(matching(records, routes))
            if not singles:
                continue
            live = rows.get("projections", (name,))
            if live is None or live["inline_from"] is None:
                _check_may_miss(unit, name)
                continue
            if name in self._trusted and live["version"] == folding.projection.version:
                written += self._fold(folding, live["generation"], unit, singles, rows)
            else:
                _check_may_miss(unit, name)
                written.append(Row("projections", "update", (name,), {"inline_from": None}))
        return written

    def _fold(self, folding: Folding, generation: int, unit: Unit, singles: list[Record], rows: RowReader) -> list[Row]:
        name = folding.projection.name

        def load(key: str) -> str | None:
            row = rows.get("documents", (name, generation, key))
            return None if row is None else row["body"]

        def is_parked(key: str) -> bool:
            return rows.get("parked_keys", (name, generation, key)) is not None

        documents = Documents(folding, load, is_parked)
        for record in singles:
            documents.fold(record)
        if unit.strict:
            for change, error in documents.failed:
                if error is not None:
                    raise WorkflowError(
                        f"inline projection {name!r} cannot fold {change.record.type!r} for key {change.key!r}, so "
                        f"nothing was appended: {type(error).__name__}: {error}"
                    ) from error
        folded = documents.folded
        checkpoint = checkpoint_name(name, generation)
        row = rows.get("checkpoints", (checkpoint,))
        values: dict[str, Any] = {
            "position": singles[-1].position,
            "events": (0 if row is None else row["events"] or 0) + folded,
            **last_values(singles[-1]),
        }
        return [*documents.rows(generation, unit.at), Row("checkpoints", "upsert", (checkpoint,), values)]


def _check_may_miss(unit: Unit, name: str) -> None:
    if unit.strict:
        raise WorkflowError(
            f"inline projection {name!r} has still to catch up with the log, so it cannot be strict about this append; "
            "nothing was appended: append again when `wait_for` says that it is level"
        )
