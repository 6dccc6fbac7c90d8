"""Between what is stored and what users see: payloads to records, records to payloads and recorded events.

Old payloads pass through their upcasters, packed records come apart into single events, and what is not asked for is
not decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.clock import from_micros
from event_workflow_engine.codecs import JSON, Codec, JsonCodec, Raw
from event_workflow_engine.errors import DecodeError, DefinitionError, EncodeError, NotRegisteredError
from event_workflow_engine.events import (
    NO_METADATA,
    REGISTRY,
    EventRegistry,
    Metadata,
    NewEvent,
    RecordedEvent,
    check_event_name,
)
from event_workflow_engine.history import FACTS
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import NewRecord, Record

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Unit, Written

__all__ = [
    "ENGINE_CATEGORIES",
    "EventCursor",
    "EventSerializer",
    "category_of",
    "check_id",
    "check_stream",
    "committed",
    "is_packed",
    "metadata_of",
    "unpack",
]

ENGINE_CATEGORIES: Final = frozenset({"saga", "inbox"})
"""Categories of streams that only the engine writes; their records are packed, even those of one event."""

_PACKED_STREAMS: Final = tuple(f"{category}-" for category in sorted(ENGINE_CATEGORIES))
_LONGEST_ID: Final = 400
_LONGEST_STREAM: Final = 400
_BAD_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


class _Tag(msgspec.Struct):
    t: str


_split: Final = msgspec.json.Decoder(list[Raw]).decode
_tag_of: Final = msgspec.json.Decoder(_Tag).decode
_decode_metadata: Final = msgspec.json.Decoder(Metadata).decode


def category_of(stream: str) -> str:
    """A stream's category: its name up to the first ``-``."""
    return stream.partition("-")[0]


def check_stream(stream: object) -> None:
    """Check that `stream` may name a stream.

    Raises:
        DefinitionError: It may not.
    """
    if not isinstance(stream, str) or not 0 < len(stream) <= _LONGEST_STREAM or _BAD_CHARACTER(stream):
        raise DefinitionError(
            f"stream name {stream!r}: 1 to {_LONGEST_STREAM} characters, no control characters and no lone surrogates"
        )


def check_id(value: object, what: str) -> None:
    """Check that `value` may be an event's or a command's id.

    Raises:
        DefinitionError: It may not.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID or _BAD_CHARACTER(value):
        raise DefinitionError(
            f"{what} must be text of 1 to {_LONGEST_ID} characters, no control characters and no lone surrogates, "
            f"not {value!r}"
        )


def is_packed(record: Record) -> bool:
    """Whether a record's data is a JSON array of facts, each an event of its own."""
    return record.count > 1 or record.stream.startswith(_PACKED_STREAMS)


def unpack(record: Record) -> Sequence[Record]:
    """A record's events, each as a record of its own. Cheap for one that holds a single event.

    Raises:
        DecodeError: It is a packed one, and holds something else than its count of tagged facts.
    """
    if not is_packed(record):
        return (record,)
    try:
        facts = _split(record.data)
        tags = [_tag_of(fact).t for fact in facts]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"{_where(record)}: its facts cannot be read: {error}") from error
    count = record.count
    if len(facts) != count:
        raise DecodeError(f"{_where(record)}: it holds {len(facts)} facts, but {count} are announced")
    position, version = record.position - count + 1, record.version - count + 1
    return [
        Record(
            position + place,
            record.stream,
            version + place,
            1,
            f"{record.id}:{place}" if place else record.id,
            tag,
            1,
            bytes(fact),
            record.metadata,
            record.recorded_at,
        )
        for place, (tag, fact) in enumerate(zip(tags, facts, strict=True))
    ]


def committed(unit: Unit, written: Written) -> list[Record]:
    """The records of a unit as they stand in the log, from what a commit hook is given."""
    records: list[Record] = []
    landed = iter(written.appended)
    for append in unit.appends:
        if not append.records:
            continue
        end = next(landed)
        version, position = end.version - end.count, end.position - end.count
        for new in append.records:
            version += new.count
            position += new.count
            records.append(
                Record(
                    position,
                    append.stream,
                    version,
                    new.count,
                    new.id,
                    new.type,
                    new.schema,
                    new.data,
                    new.metadata,
                    unit.at,
                )
            )
    return records


class _Writer(msgspec.Struct, frozen=True):
    """How events of one Python type are written."""

    name: str
    version: int
    what: str
    read_back: Callable[[bytes], Any]


class EventSerializer:
    """Turns events into records and records into events, with what it worked out for each type kept at hand.

    May be used on several threads at once.

    Args:
        codec: How payloads become bytes.
        registry: Which type a name stands for.
    """

    def __init__(self, codec: Codec = JSON, registry: EventRegistry = REGISTRY) -> None:
        self.codec = codec
        self.registry = registry
        self._readers: dict[tuple[str, int], Callable[[bytes], Any]] = {}
        self._writers: dict[type, _Writer] = {}
        self._revision = registry.revision

    # -- reading -----------------------------------------------------------------------------------------------------

    def payload(self, record: Record) -> Any:
        """The payload of a record that holds one event (see `unpack`): of its registered type, else plain.

        Raises:
            DecodeError: It does not fit its type, or no chain of upcasters leads from its schema version to that of the
                registered type.
        """
        if self._revision != self.registry.revision:
            self._forget()
        readers = self._readers
        try:
            read = readers.get((record.type, record.schema))
            if read is None:
                read = readers[record.type, record.schema] = self._reader(record.type, record.schema)
            return read(record.data)
        except Exception as error:
            # Whatever an upcaster or a model's own code raises, it means this.
            raise _undecodable(record, error) from error

    def event(self, record: Record) -> RecordedEvent[Any]:
        """The event of a record that holds one.

        Raises:
            DecodeError: Its payload or metadata cannot be read.
        """
        return RecordedEvent(
            record.id,
            record.type,
            self.payload(record),
            record.stream,
            record.version,
            record.position,
            from_micros(record.recorded_at),
            metadata_of(record),
        )

    def events(self, record: Record) -> list[RecordedEvent[Any]]:
        """The events of any record.

        Raises:
            DecodeError: One of them cannot be read.
        """
        return [self.event(single) for single in unpack(record)]

    def _forget(self) -> None:
        revision = self.registry.revision
        # What another thread works out meanwhile goes into the old ones, with which it is forgotten.
        self._readers = {}
        self._writers = {}
        self._revision = revision

    def _reader(self, name: str, schema: int) -> Callable[[bytes], Any]:
        """What reads payloads of a type and schema version."""
        known = self.registry.by_name(name)
        chain = self.registry.upcast_chain(name, schema)
        if known is None:
            plain = self._decoder(Any, name)
            return plain if not chain else _Upcast(chain, plain, None)
        if schema > known.version:
            raise DecodeError(
                f"it was written at schema version {schema}, but version {known.version} of {name!r} is registered "
                "here: this process runs older code than the one that wrote it; upgrade it"
            )
        steps = chain[: known.version - schema]
        if schema + len(steps) < known.version:
            raise DecodeError(
                f"schema version {schema + len(steps)} of {name!r} has no upcaster, and version {known.version} is "
                f"registered: add one with @upcaster({name!r}, from_version={schema + len(steps)})"
            )
        if not steps:
            return self._decoder(known.python_type, name)
        # What the codec read is plain by then, so JSON takes it from there.
        return _Upcast(steps, self._decoder(Any, name), JSON.decoder(known.python_type))

    def _decoder(self, kind: Any, name: str) -> Callable[[bytes], Any]:
        codec = self.codec
        if isinstance(codec, JsonCodec):
            return codec.decoder(kind)
        return lambda data: codec.decode(data, kind, f"event {name!r}")

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, event: Any, metadata: bytes = b"") -> tuple[NewRecord, Any]:
        """An event as a record to append, and its payload as it will be read back.

        What can be written but not read back (a field that holds another type than it declares) would stop every reader
        for ever, so it is refused here.

        Args:
            event: An instance of a registered type, or a `NewEvent`; the latter's metadata is not looked at.
            metadata: JSON, or empty.

        Raises:
            NotRegisteredError: The type is not registered.
            EncodeError: It cannot be written as JSON, or not be read back.
            DefinitionError: A `NewEvent` is wrong in itself.
        """
        if self._revision != self.registry.revision:
            self._forget()
        writers = self._writers
        writer = writers.get(type(event))
        if writer is None:
            if isinstance(event, NewEvent):
                return self._write_named(event, metadata)
            writer = writers[type(event)] = self._writer(type(event))
        data = self.codec.encode(event, writer.what)
        try:
            payload = writer.read_back(data)
        except Exception as error:
            raise _unreadable(writer.what, event, error) from error
        return NewRecord(uuid7(), writer.name, data, writer.version, metadata), payload

    def listed(self, events: Any) -> Sequence[Any]:
        """What was given for one or more events, as a sequence: an event may be some kind of tuple itself."""
        if not isinstance(events, Sequence) or isinstance(events, (str, bytes, bytearray, memoryview)):
            return (events,)
        return events if self.registry.by_type(type(events)) is None else (events,)

    def _writer(self, kind: type) -> _Writer:
        known = self.registry.by_type(kind)
        if known is None:
            remedy = (
                'wrap it: NewEvent("its-name", …)'
                if issubclass(kind, dict)
                else f'decorate it with @event("its-name"), or wrap it: NewEvent("its-name", {kind.__name__}(…))'
            )
            raise NotRegisteredError(f"{kind.__module__}.{kind.__qualname__} is not registered as an event: {remedy}")
        _refuse_fact(known.name)
        what = f"event {known.name!r}"
        return _Writer(known.name, known.version, what, self._decoder(known.python_type, known.name))

    def _write_named(self, event: NewEvent, metadata: bytes) -> tuple[NewRecord, Any]:
        name, what = event.type, f"event {event.type!r}"
        check_event_name(name)
        _refuse_fact(name)
        schema = self._schema_of(event)
        event_id = uuid7() if event.id is None else event.id
        check_id(event_id, f"the id of {what}")
        data = self.codec.encode(event.data, what)
        try:
            payload = self._reader(name, schema)(data)
        except Exception as error:
            raise _unreadable(what, event.data, error) from error
        return NewRecord(event_id, name, data, schema, metadata), payload

    def _schema_of(self, event: NewEvent) -> int:
        """The schema version a `NewEvent` is written at; of an instance of a registered type it is that type's."""
        schema, known = event.version, self.registry.by_type(type(event.data))
        if type(schema) is not int or schema < 1:
            raise DefinitionError(f"event {event.type!r}: its version must be an integer from 1, not {schema!r}")
        if known is None:
            return schema
        own = self.registry.by_name(event.type)
        if own is None or own.python_type is not known.python_type:
            raise DefinitionError(
                f"NewEvent({event.type!r}, …) holds a {known.python_type.__qualname__}, which is registered as "
                f"{known.name!r}: append it under that name, or as a dict"
            )
        if schema not in (1, own.version):
            raise DefinitionError(
                f"NewEvent({event.type!r}, …, version={schema}) holds a {known.python_type.__qualname__}, which is "
                f"version {own.version}"
            )
        return own.version


class EventCursor:
    """Makes the event that a fold is at, when somebody asks for it: what `CURRENT_EVENT` is set to.

    Attributes:
        record: The record that the fold is at, which holds one event.
    """

    __slots__ = ("_made", "_made_of", "_serializer", "record")

    def __init__(self, serializer: EventSerializer) -> None:
        self._serializer = serializer
        self._made: RecordedEvent[Any] | None = None
        self._made_of: Record | None = None
        self.record: Record | None = None

    def __call__(self) -> RecordedEvent[Any]:
        """The event."""
        record = self.record
        assert record is not None
        if self._made is None or self._made_of is not record:
            self._made, self._made_of = self._serializer.event(record), record
        return self._made


class _Upcast:
    """Reads old payloads: as plain dicts, through the upcasters, and then as the registered type."""

    __slots__ = ("_plain", "_steps", "_typed")

    def __init__(
        self,
        steps: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        plain: Callable[[bytes], Any],
        typed: Callable[[bytes], Any] | None,
    ) -> None:
        self._steps = steps
        self._plain = plain
        self._typed = typed

    def __call__(self, data: bytes) -> Any:
        value = self._plain(data)
        for step in self._steps:
            if not isinstance(value, dict):
                raise DecodeError(f"an upcaster takes and returns a dict, but there is {type(value).__name__}")
            value = step(value)
        if not isinstance(value, dict):
            raise DecodeError(f"the last upcaster returned {type(value).__name__}, not a dict")
        return value if self._typed is None else self._typed(JSON.encode(value, "the upcast payload"))


def metadata_of(record: Record) -> Metadata:
    """A record's metadata.

    Raises:
        DecodeError: It cannot be read.
    """
    if not record.metadata:
        return NO_METADATA
    try:
        return _decode_metadata(record.metadata)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"{_where(record)}: its metadata cannot be read: {error}") from error


def _refuse_fact(name: str) -> None:
    if name in FACTS:
        raise DefinitionError(f"event name {name!r} is one of the engine's own, which only the engine writes")


def _where(record: Record) -> str:
    return f"event {record.id!r} ({record.type}), version {record.version} of stream {record.stream!r}"


def _undecodable(record: Record, error: Exception) -> DecodeError:
    why = str(error) if isinstance(error, DecodeError) else f"{type(error).__name__}: {error}"
    return DecodeError(f"{_where(record)} cannot be read: {why}")


def _unreadable(what: str, value: Any, error: Exception) -> EncodeError:
    kind = type(value)
    return EncodeError(
        f"{what}: the JSON of this {kind.__module__}.{kind.__qualname__} could not be read back ({error}): give it "
        "values of the types that its fields declare"
    )
