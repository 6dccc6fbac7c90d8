"""Folding events into documents: the same for async, inline and live projections."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.codecs import JSON
from event_workflow_engine.errors import DecodeError
from event_workflow_engine.events import CURRENT_EVENT
from event_workflow_engine.serialization import EventCursor, metadata_of, unpack
from event_workflow_engine.storage.names import check_name, storable
from event_workflow_engine.storage.port import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from event_workflow_engine._projections.definitions import DocumentProjection, Projection
    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.storage.port import Record

__all__ = ["Change", "Documents", "Folding", "changes_of", "last_values", "matching", "mended", "parked_rows"]

_log: Final = logging.getLogger("event_workflow_engine.projections")


def matching(records: Iterable[Record], names: Collection[str]) -> Iterable[Record]:
    """The events of some types, each as a record of its own."""
    wanted = frozenset(names)
    for record in records:
        if record.count == 1:
            if record.type in wanted:
                yield record
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


def changes_of(
    projection: Projection, serializer: EventSerializer, record: Record, cursor: EventCursor
) -> list[Change]:
    """What an event changes, by route. One that cannot be read, or has no key, is a change with an error.

    Its key is then made of the route's number and the stream, so that it is found again when it was mended; where keys
    are streams, it is the stream.
    """
    payload: Any = None
    unread: Exception | None = None
    try:
        payload = serializer.payload(record)
    except Exception as error:  # noqa: BLE001 - a user's upcaster may raise anything
        unread = error
    cursor.record = record
    token = CURRENT_EVENT.set(cursor)
    try:
        return [
            _change(record, number, route, payload, unread)
            for number, route in enumerate(projection.routes[record.type])
        ]
    finally:
        CURRENT_EVENT.reset(token)


def _change(record: Record, number: int, route: Any, payload: Any, unread: Exception | None) -> Change:
    if route.key is None:
        return Change(record, record.stream, payload, route, unread)
    try:
        if unread is not None:
            raise unread  # noqa: TRY301 - one way out
        key = route.key(payload)
        if key != "":
            check_name(key, "the key")
    except Exception as error:  # noqa: BLE001 - a user's key function may raise anything
        return Change(record, _lost_key(number, record), payload, route, error)
    return Change(record, key, payload, route)


def mended(changes: Iterable[Change], parked_key: str) -> list[Change]:
    """Those changes of an event that are parked under a key; each has the key that it has by now."""
    return [
        change for number, change in enumerate(changes) if parked_key in (change.key, _lost_key(number, change.record))
    ]


def _lost_key(route: int, record: Record) -> str:
    return f"~{route}~{record.stream}"


class Folding:
    """Routes events to documents and folds them."""

    def __init__(self, projection: DocumentProjection[Any], serializer: EventSerializer) -> None:
        self.projection = projection
        self._what = f"document of projection {projection.name!r}"
        self._serializer = serializer
        self._cursor = EventCursor(serializer)

    def changes(self, record: Record) -> list[Change]:
        """See `changes_of`."""
        return changes_of(self.projection, self._serializer, record, self._cursor)

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
        return None if body is None else JSON.decode(body.encode(), self.projection.document, self._what)

    def write(self, document: Any) -> str | None:
        """A document as it is stored."""
        return None if document is None else JSON.encode(document, self._what).decode()


class Documents:
    """Documents in memory, of one generation, while events are folded into them.

    An event changes a document as a whole or not at all: where one of its folds raises, or returns what cannot be
    stored, the document stays as it was before the event, whose key is parked.

    Args:
        folding: How they are folded.
        load: The stored body of a key that is not in memory.
        is_parked: Whether a key is parked in the store.
    """

    def __init__(self, folding: Folding, load: Callable[[str], str | None], is_parked: Callable[[str], bool]) -> None:
        self._folding = folding
        self._load = load
        self._is_parked = is_parked
        self.values: dict[str, Any] = {}
        self.bodies: dict[str, str | None] = {}
        self.parked: dict[str, bool] = {}
        self._stored: set[str] = set()
        self.touched: dict[str, None] = {}
        self.failed: list[tuple[Change, Exception | None]] = []
        """Events to park, since the last `rows`; with an error the first of their key."""
        self.folded = 0
        """Events that were folded, since the last `rows`."""

    def __len__(self) -> int:
        return len(self.values)

    def clear(self) -> None:
        """Forget all documents; what is parked stays known."""
        self.values.clear()
        self.bodies.clear()
        self._stored.clear()

    def put(self, key: str, body: str | None) -> None:
        """Take a stored document in."""
        self.values[key] = self._folding.read(body)
        self.bodies[key] = body
        if body is not None:
            self._stored.add(key)

    def fold(self, record: Record) -> None:
        """Fold an event."""
        self.fold_changes(self._folding.changes(record))

    def fold_changes(self, changes: list[Change]) -> None:
        """Fold an event of which it is known what it changes."""
        if len(changes) == 1:
            self.folded += self._fold(changes)
            return
        by_key: dict[str, list[Change]] = {}
        for change in changes:
            by_key.setdefault(change.key, []).append(change)
        # Every key's turn, whatever became of the others; it counts once.
        self.folded += max([self._fold(of_key) for of_key in by_key.values()], default=0)

    def _fold(self, changes: list[Change]) -> int:
        key = changes[0].key
        parked = self.parked.get(key)
        if parked is None:
            parked = self.parked[key] = self._is_parked(key)
        if parked:
            self.failed.append((changes[0], None))
            return 0
        try:
            self.change(key, changes)
        except Exception as error:  # noqa: BLE001 - a fold may raise anything: its key is parked, others go on
            self.parked[key] = True
            self.failed.append((changes[0], error))
            return 0
        return 1

    def change(self, key: str, changes: Iterable[Change]) -> None:
        """Change one document; raises what its folds raise, and is then as before."""
        if key not in self.values:
            self.put(key, self._load(key))
        document = self.values[key]
        try:
            for change in changes:
                document = self._folding.apply(change, document)
            body = self._folding.write(document)
        except BaseException:
            # A fold that broke its promise not to change what it is given leaves no trace either.
            self.values[key] = self._folding.read(self.bodies[key])
            raise
        self.values[key], self.bodies[key] = document, body
        self.touched[key] = None

    def rows(self, generation: int, now: int) -> list[Row]:
        """The rows to write for what was folded since the last time; begins anew."""
        name = self._folding.projection.name
        rows: list[Row] = []
        for key in self.touched:
            body = self.bodies[key]
            if body is not None:
                self._stored.add(key)
                rows.append(Row("documents", "upsert", (name, generation, key), {"body": body}))
            elif key in self._stored:
                self._stored.discard(key)
                rows.append(Row("documents", "delete", (name, generation, key)))
        for change, error in self.failed:
            rows += parked_rows(name, generation, change, error, now)
        self.touched, self.failed, self.folded = {}, [], 0
        return rows


def last_values(last: Record) -> dict[str, Any]:
    """What a checkpoint tells of the last event."""
    try:
        saga_id = metadata_of(last).saga_id
    except DecodeError:
        saga_id = None  # whatever somebody wrote there, it must not fail a commit
    if saga_id is None and last.stream.startswith("saga-"):
        saga_id = last.stream.removeprefix("saga-")
    return {"last_event_id": last.id, "saga_id": saga_id, "recorded_at": last.recorded_at}


def parked_rows(name: str, generation: int, change: Change, error: Exception | None, now: int) -> list[Row]:
    """The rows that park an event, and its key when it is the first."""
    rows = [Row("parked_events", "upsert", (name, generation, change.key, change.record.position))]
    if error is not None:
        text = storable(
            f"{type(error).__name__}: {error} (event {change.record.id} at position {change.record.position})"
        )
        _log.warning(
            "projection %s parks key %r and its events from here on, until retry_parked(): %s raised %s",
            name, change.key, change.record.type, text, exc_info=error,
        )  # fmt: skip
        rows.append(Row("parked_keys", "upsert", (name, generation, change.key), {"error": text, "parked_at": now}))
    return rows
