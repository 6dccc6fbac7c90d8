"""An event as the bus carries it: published, or stored and then decoded only when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.clock import from_micros
from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.events import NO_METADATA, Metadata, RecordedEvent
from event_workflow_engine.serialization import metadata_of, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.storage.port import Record

__all__ = ["Carried", "Published", "Stored", "events_in"]


class Published:
    """An event that was only published; several handlers may share it.

    Attributes:
        record: None: it does not stand in the log.
    """

    __slots__ = ("_event",)

    record: None = None

    def __init__(self, event: RecordedEvent[Any]) -> None:
        self._event = event

    def payload(self) -> Any:
        """What handlers get."""
        return self._event.data

    def event(self) -> RecordedEvent[Any]:
        """The whole event."""
        return self._event

    def readable(self) -> RecordedEvent[Any]:
        """The whole event."""
        return self._event


class Stored:
    """An event of the log, decoded when first asked for; several handlers may share it.

    Args:
        serializer: Reads it.
        record: Holds this event alone.
        flaw: See below.
        as_type: What to read the payload as, where the type is not registered.

    Attributes:
        record: As it stands in the log.
        flaw: Why it cannot be read, where that is known already.
    """

    __slots__ = ("_as_type", "_event", "_serializer", "flaw", "record")

    def __init__(
        self,
        serializer: EventSerializer,
        record: Record,
        flaw: WorkflowError | None = None,
        as_type: type | None = None,
    ) -> None:
        self.record = record
        self._serializer = serializer
        self.flaw = flaw
        self._as_type = as_type
        self._event: RecordedEvent[Any] | None = None

    def payload(self) -> Any:
        """What handlers get.

        Raises:
            WorkflowError: It cannot be read.
        """
        return self.event().data

    def event(self) -> RecordedEvent[Any]:
        """The whole event.

        Raises:
            WorkflowError: It cannot be read.
        """
        if self._event is None:
            if self.flaw is not None:
                raise self.flaw
            self._event = self._made(self._read(), metadata_of(self.record))
        return self._event

    def readable(self) -> RecordedEvent[Any]:
        """The whole event; where it cannot be read, with its text as the payload."""
        try:
            return self.event()
        except WorkflowError:
            return self._made(self.record.data.decode(errors="replace"), self._metadata())

    def _metadata(self) -> Metadata:
        try:
            return metadata_of(self.record)
        except WorkflowError:
            return NO_METADATA

    def _read(self) -> Any:
        record = self.record
        if self._as_type is None:
            return self._serializer.payload(record)
        return self._serializer.codec.decode(record.data, self._as_type, f"event {record.id!r} ({record.type})")

    def _made(self, payload: Any, metadata: Metadata) -> RecordedEvent[Any]:
        record = self.record
        when = from_micros(record.recorded_at)
        return RecordedEvent(
            record.id, record.type, payload, record.stream, record.version, record.position, when, metadata
        )


def events_in(serializer: EventSerializer, record: Record) -> Sequence[Stored]:
    """The events of a record. One that cannot be taken apart counts as a single event that cannot be read."""
    try:
        return [Stored(serializer, single) for single in unpack(record)]
    except WorkflowError as error:
        return (Stored(serializer, record, error),)


Carried = Published | Stored
