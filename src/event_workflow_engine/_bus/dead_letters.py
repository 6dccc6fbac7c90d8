"""Events that a handler could not handle: kept until somebody looks at them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.clock import from_micros, to_micros
from event_workflow_engine.codecs import JSON, Raw
from event_workflow_engine.errors import EncodeError
from event_workflow_engine.events import Metadata, RecordedEvent
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Record, Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore

__all__ = ["DeadLetter", "DeadLetters"]


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that stayed unhandled.

    Attributes:
        id: Its own id.
        subscription: Whose handler failed.
        event: The event.
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


class _Kept(msgspec.Struct, frozen=True):
    """A dead letter's event as it is stored."""

    id: str
    type: str
    data: Raw
    stream: str
    version: int
    position: int
    recorded_at: int
    metadata: Metadata
    schema: int = 1


_decode: Final = msgspec.json.Decoder(_Kept).decode


class DeadLetters:
    """Keeps dead letters in the store; in memory where there is none."""

    def __init__(self) -> None:
        self._store: EventStore | None = None
        self._in_memory: dict[str, DeadLetter] = {}

    def attach(self, store: EventStore) -> None:
        """Keep them in a store from now on."""
        self._store = store

    async def add(
        self,
        subscription: str,
        event: RecordedEvent[Any],
        schema: int,
        error: BaseException,
        attempts: int,
        now: datetime,
    ) -> None:
        """Keep an event whose handler failed for good."""
        text = f"{type(error).__name__}: {error}"
        letter = DeadLetter(uuid7(), subscription, event, text, attempts, now)
        if self._store is None:
            self._in_memory[letter.id] = letter
            return
        try:
            data = JSON.encode(event.data, f"event {event.type!r}")
        except EncodeError:  # published, never stored, and no JSON: its text is all that can be kept
            data = JSON.encode(repr(event.data), "event")
        kept = _Kept(
            event.id,
            event.type,
            Raw(data),
            event.stream,
            event.version,
            event.position,
            to_micros(event.recorded_at),
            event.metadata,
            schema,
        )
        values = {
            "subscription": subscription,
            "event": msgspec.json.encode(kept),
            "error": text,
            "attempts": attempts,
            "parked_at": to_micros(now),
        }
        row = Row("dead_letters", "insert", (letter.id,), values)
        await self._store.storage.write(Unit(uuid7(), to_micros(now), rows=(row,)))

    async def listed(self, limit: int) -> list[DeadLetter]:
        """The oldest."""
        if self._store is None:
            return list(self._in_memory.values())[:limit]
        rows = await self._store.storage.query("dead_letters_page", subscription=None, limit=limit)
        return [self._read(row) for row in rows]

    async def get(self, letter: str) -> DeadLetter | None:
        """One of them."""
        if self._store is None:
            return self._in_memory.get(letter)
        row = await self._store.storage.get("dead_letters", (letter,))
        return None if row is None else self._read(row)

    async def drop(self, letter: str) -> None:
        """Forget one, if it is there."""
        if self._store is None:
            self._in_memory.pop(letter, None)
        elif await self._store.storage.get("dead_letters", (letter,)) is not None:
            row = Row("dead_letters", "delete", (letter,))
            await self._store.storage.write(Unit(uuid7(), self._store.now(), rows=(row,)))

    def _read(self, row: dict[str, Any]) -> DeadLetter:
        assert self._store is not None
        kept = _decode(row["event"])
        record = Record(
            kept.position, kept.stream, kept.version, 1, kept.id, kept.type, kept.schema, bytes(kept.data), b"",
            kept.recorded_at,
        )  # fmt: skip
        event = RecordedEvent(
            kept.id,
            kept.type,
            self._store.serializer.payload(record),
            kept.stream,
            kept.version,
            kept.position,
            from_micros(kept.recorded_at),
            kept.metadata,
        )
        return DeadLetter(
            row["id"], row["subscription"], event, row["error"], row["attempts"], from_micros(row["parked_at"])
        )
