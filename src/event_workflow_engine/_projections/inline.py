"""Folds inline documents inside the commit, in batch order, over documents read there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine._projections.feeding import checkpoint_name
from event_workflow_engine._projections.folding import Folding, matching, parked_rows
from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.serialization import metadata_of
from event_workflow_engine.storage.port import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine._projections.definitions import DocumentProjection
    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.storage.port import Record, RowReader, Unit

__all__ = ["InlineDocuments"]


class InlineDocuments:
    """The `InlineFolder` of all inline document projections of an engine. Runs on the writer's thread."""

    def __init__(self, serializer: EventSerializer) -> None:
        self._serializer = serializer
        self._foldings: dict[str, Folding] = {}

    def add(self, projection: DocumentProjection[Any]) -> None:
        """Fold one more; it takes part once its row says that it is inline."""
        self._foldings = {**self._foldings, projection.name: Folding(projection, self._serializer)}

    def __call__(self, unit: Unit, records: Sequence[Record], rows: RowReader, /) -> Sequence[Row]:
        """See `InlineFolder`."""
        written: list[Row] = []
        for name, folding in self._foldings.items():
            routes = folding.projection.routes
            if not any(kind in routes for record in records for kind in record.type.split("+")):
                continue
            live = rows.get("projections", (name,))
            if live is None or live["inline_from"] is None or live["version"] != folding.projection.version:
                continue
            written += self._fold(folding, live["generation"], unit, list(matching(records, routes)), rows)
        return written

    def _fold(self, folding: Folding, generation: int, unit: Unit, singles: list[Record], rows: RowReader) -> list[Row]:
        name = folding.projection.name
        documents: dict[str, Any] = {}
        stored: set[str] = set()
        parked: dict[str, bool] = {}
        written: list[Row] = []
        for record in singles:
            for change in folding.changes(record):
                key = change.key
                if key not in parked:
                    parked[key] = rows.get("parked_keys", (name, generation, key)) is not None
                if parked[key]:
                    written += parked_rows(name, generation, change, None, unit.at)
                    continue
                try:
                    if key not in documents:
                        row = rows.get("documents", (name, generation, key))
                        if row is not None:
                            stored.add(key)
                        documents[key] = folding.read(None if row is None else row["body"])
                    documents[key] = folding.apply(change, documents[key])
                except Exception as error:
                    if unit.strict:
                        raise WorkflowError(
                            f"inline projection {name!r} cannot fold {record.type!r} for key {key!r}, so nothing was "
                            f"appended: {type(error).__name__}: {error}"
                        ) from error
                    parked[key] = True
                    written += parked_rows(name, generation, change, error, unit.at)
        for key, document in documents.items():
            row_key = (name, generation, key)
            if document is not None:
                written.append(Row("documents", "upsert", row_key, {"body": folding.write(document)}))
            elif key in stored:
                written.append(Row("documents", "delete", row_key))
        return [*written, self._checkpoint(name, generation, singles, rows)]

    def _checkpoint(self, name: str, generation: int, singles: list[Record], rows: RowReader) -> Row:
        checkpoint = checkpoint_name(name, generation)
        row = rows.get("checkpoints", (checkpoint,))
        last = singles[-1]
        saga_id = metadata_of(last).saga_id
        if saga_id is None and last.stream.startswith("saga-"):
            saga_id = last.stream.removeprefix("saga-")
        values = {
            "position": last.position,
            "events": (0 if row is None else row["events"] or 0) + len(singles),
            "last_event_id": last.id,
            "saga_id": saga_id,
            "recorded_at": last.recorded_at,
        }
        return Row("checkpoints", "upsert", (checkpoint,), values)
