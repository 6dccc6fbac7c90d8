"""Folding events into documents: the same for async, inline and live projections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.codecs import JSON
from event_workflow_engine.events import CURRENT_EVENT
from event_workflow_engine.serialization import EventCursor, unpack
from event_workflow_engine.storage.port import Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine._projections.definitions import DocumentProjection
    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.storage.port import Record

__all__ = ["Change", "Folding", "matching", "parked_rows"]


def matching(records: Iterable[Record], names: Iterable[str]) -> Iterable[Record]:
    """The events of some types, each as a record of its own."""
    wanted = frozenset(names)
    for record in records:
        if record.type in wanted and record.count == 1:
            yield from unpack(record)
        elif not wanted.isdisjoint(record.type.split("+")):
            yield from (single for single in unpack(record) if single.type in wanted)


class Change:
    """What one event does to one document."""

    __slots__ = ("error", "key", "payload", "record", "route")

    def __init__(self, record: Record, key: str, payload: Any, route: Any, error: Exception | None = None) -> None:
        self.record = record
        self.key = key
        self.payload = payload
        self.route = route
        self.error = error


class Folding:
    """Routes events to documents and folds them."""

    def __init__(self, projection: DocumentProjection[Any], serializer: EventSerializer) -> None:
        self.projection = projection
        self._serializer = serializer
        self._cursor = EventCursor(serializer)

    def changes(self, record: Record) -> list[Change]:
        """What an event changes. One that cannot be read, or has no key, is a change with an error."""
        try:
            payload = self._serializer.payload(record)
        except Exception as error:  # noqa: BLE001 - a user's upcaster may raise anything
            return [Change(record, f"~{record.stream}", None, None, error)]
        found = []
        for route in self.projection.routes[record.type]:
            assert route.key is not None
            try:
                key = route.key(payload)
                if not isinstance(key, str):
                    raise TypeError(f"the key must be text, not {type(key).__name__}")  # noqa: TRY301 - one way out
            except Exception as error:  # noqa: BLE001 - a user's key function may raise anything
                found.append(Change(record, f"~{record.stream}", payload, route, error))
            else:
                found.append(Change(record, key, payload, route))
        return found

    def apply(self, change: Change, document: Any) -> Any:
        """The document behind a change; raises what the fold raises."""
        if change.error is not None:
            raise change.error
        self._cursor.record = change.record
        token = CURRENT_EVENT.set(self._cursor)
        try:
            return change.route.fold(document, change.payload)
        finally:
            CURRENT_EVENT.reset(token)

    def read(self, body: str | None) -> Any:
        """A stored document."""
        if body is None:
            return None
        what = f"document of projection {self.projection.name!r}"
        return JSON.decode(body.encode(), self.projection.document, what)

    def write(self, document: Any) -> str:
        """A document as it is stored."""
        return JSON.encode(document, f"document of projection {self.projection.name!r}").decode()


def parked_rows(name: str, generation: int, change: Change, error: Exception | None, now: int) -> list[Row]:
    """The rows that park an event, and its key when it is the first."""
    rows = [Row("parked_events", "upsert", (name, generation, change.key, change.record.position))]
    if error is not None:
        text = f"{type(error).__name__}: {error} (event {change.record.id} at position {change.record.position})"
        rows.append(Row("parked_keys", "upsert", (name, generation, change.key), {"error": text, "parked_at": now}))
    return rows
