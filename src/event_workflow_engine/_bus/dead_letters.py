"""Events that a handler could not handle: kept until somebody looks at them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine._bus.carried import Carried, Stored
from event_workflow_engine.clock import Clock, SystemClock, from_micros, to_micros
from event_workflow_engine.codecs import Raw
from event_workflow_engine.errors import DecodeError, EncodeError, RowConflictError, WorkflowError
from event_workflow_engine.events import Metadata, RecordedEvent
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.names import storable
from event_workflow_engine.storage.port import Record, Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore

__all__ = ["DeadLetter", "DeadLetters"]


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that stayed unhandled.

    Attributes:
        id: Its own id: the same for one event and one subscription, however often it fails.
        subscription: Whose handler failed.
        event: The event. Where its payload cannot be read, that is its text.
        error: Type and text of the last error.
        attempts: How often it was tried.
        parked_at: When it was given up, aware, in UTC.
    """

    id: str
    subscription: str
    event: RecordedEvent[Any]
    error: str
    attempts: int
    parked_at: datetime


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dead letter's event as it is stored; `flaw` tells why its data is only text."""

    id: str
    type: str
    data: Raw
    stream: str
    version: int
    position: int
    recorded_at: int
    metadata: Metadata
    schema: int = 1
    flaw: str | None = None


_decode: Final = msgspec.json.Decoder(_Kept).decode
_is_json: Final = msgspec.json.Decoder(Raw).decode
_encode: Final = msgspec.json.Encoder().encode


class DeadLetters:
    """Keeps dead letters in the store; in memory where there is none."""

    def __init__(self) -> None:
        self._store: EventStore | None = None
        self._clock: Clock = SystemClock()
        self._in_memory: dict[str, tuple[DeadLetter, Carried]] = {}

    def attach(self, store: EventStore) -> None:
        """Keep them in a store from now on."""
        self._store = store
        self._clock = store.clock

    async def add(self, subscription: str, carried: Carried, error: BaseException, attempts: int) -> None:
        """Keep an event whose handler failed for good, or failed again.

        Raises:
            StorageError: The store cannot write.
        """
        event, now = carried.readable(), self._clock.now()
        letter = f"{event.id}@{subscription}"
        text = f"{type(error).__name__}: {error}"
        if self._store is None:
            self._in_memory[letter] = (DeadLetter(letter, subscription, event, text, attempts, now), carried)
            return
        values = {
            "subscription": subscription,
            "event": _encode(self._kept(self._store, event, carried.record)),
            "error": storable(text),
            "attempts": attempts,
            "parked_at": to_micros(now),
        }
        row = Row("dead_letters", "upsert", (letter,), values)
        await self._store.storage.write(Unit(uuid7(), to_micros(now), rows=(row,)))

    def _kept(self, store: EventStore, event: RecordedEvent[Any], record: Record | None) -> _Kept:
        flaw = None
        if record is None:
            known = store.serializer.registry.by_type(type(event.data))
            schema = 1 if known is None else known.version
            try:
                data = store.codec.encode(event.data, f"event {event.type!r}")
            except EncodeError as error:  # never stored, and no JSON: its text is all that can be kept
                data, flaw = _encode(repr(event.data)), str(error)
        else:
            data, schema = record.data, record.schema
            try:
                _is_json(data)
            except msgspec.MsgspecError as error:
                data, flaw = _encode(data.decode(errors="replace")), f"its data is no JSON: {error}"
        when = to_micros(event.recorded_at)
        return _Kept(
            event.id, event.type, Raw(data), event.stream, event.version, event.position, when, event.metadata,
            schema, flaw,
        )  # fmt: skip

    async def listed(self, limit: int) -> list[DeadLetter]:
        """The oldest."""
        if self._store is None:
            return [letter for letter, _ in self._in_memory.values()][:limit]
        rows = await self._store.storage.query("dead_letters_page", subscription=None, limit=limit)
        return [self._letter(row, self._carried(self._store, row, None)) for row in rows]

    async def get(self, letter: str, as_types: dict[str, type]) -> tuple[DeadLetter, Carried] | None:
        """One of them, and its event to be carried again.

        Args:
            letter: Its id.
            as_types: By name, classes that are not registered as events.
        """
        if self._store is None:
            return self._in_memory.get(letter)
        row = await self._store.storage.get("dead_letters", (letter,))
        if row is None:
            return None
        carried = self._carried(self._store, row, as_types)
        return self._letter(row, carried), carried

    async def drop(self, letter: str) -> None:
        """Forget one, if it is there."""
        if self._store is None:
            self._in_memory.pop(letter, None)
            return
        row = Row("dead_letters", "delete", (letter,))
        try:
            await self._store.storage.write(Unit(uuid7(), self._store.now(), rows=(row,)))
        except RowConflictError:
            return

    def _carried(self, store: EventStore, row: dict[str, Any], as_types: dict[str, type] | None) -> Stored:
        kept = _decode(row["event"])
        record = Record(
            kept.position, kept.stream, kept.version, 1, kept.id, kept.type, kept.schema, bytes(kept.data),
            _encode(kept.metadata), kept.recorded_at,
        )  # fmt: skip
        flaw: WorkflowError | None = None
        if kept.flaw is not None:
            flaw = DecodeError(f"event {kept.id!r} ({kept.type}) was kept as text only: {kept.flaw}")
        known = store.serializer.registry.by_name(kept.type) is not None
        return Stored(store.serializer, record, flaw, None if known or not as_types else as_types.get(kept.type))

    def _letter(self, row: dict[str, Any], carried: Stored) -> DeadLetter:
        return DeadLetter(
            row["id"],
            row["subscription"],
            carried.readable(),
            row["error"],
            row["attempts"],
            from_micros(row["parked_at"]),
        )
