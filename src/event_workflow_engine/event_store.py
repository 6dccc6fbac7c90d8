"""`EventStore`: appending events to streams, reading them, following them, and folding them into aggregates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from event_workflow_engine.aggregates import Aggregate, load
from event_workflow_engine.clock import Clock, SystemClock, micros
from event_workflow_engine.codecs import JSON, Codec
from event_workflow_engine.context import present_saga
from event_workflow_engine.errors import (
    DefinitionError,
    EncodeError,
    EngineStateError,
    NotRegisteredError,
)
from event_workflow_engine.events import CURRENT_EVENT, Metadata, NewEvent, RecordedEvent, current_event
from event_workflow_engine.feeds import Tail
from event_workflow_engine.serialization import (
    ENGINE_CATEGORIES,
    EventSerializer,
    category_of,
    check_stream,
    unpack,
)
from event_workflow_engine.storage.port import ANY_VERSION, STREAM_EXISTS, Append, Unit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from event_workflow_engine.snapshots import SnapshotManager
    from event_workflow_engine.storage.port import NewRecord, Record, Row, Storage, Written

__all__ = ["Appended", "EventStore", "ExpectedVersion", "known_metadata"]

A = TypeVar("A", bound=Aggregate[Any])

ExpectedVersion = int | Literal["any", "no_stream", "stream_exists"]
"""The version that a stream must have: a number (0: no events), or a word."""

_WORDS: Final = {"any": ANY_VERSION, "no_stream": 0, "stream_exists": STREAM_EXISTS}
_PAGE: Final = 1000
_encode_metadata: Final = msgspec.json.Encoder().encode


class Appended(msgspec.Struct, frozen=True):
    """What an append stored.

    Attributes:
        version: The stream's version with it.
        positions: The positions of its events, in order.
    """

    version: int
    positions: tuple[int, ...]


class EventStore:
    """Streams of events over one storage.

    Args:
        storage: An opened storage (see `event_workflow_engine.storage.open_storage`); it stays the caller's to close.
        clock: Gives events their `recorded_at`; the machine's clock by default.
        codec: How payloads become bytes; JSON by default.

    Attributes:
        storage: The storage.
        serializer: Turns records into events; for services that read the storage themselves.
        snapshots: Where `replay` begins; set by the last `SnapshotManager` made for this store.
        before_strict: Awaited before each strict append; set by a `ProjectionManager` that has begun.

    Example:
        >>> from dataclasses import dataclass
        >>> from event_workflow_engine.events import event
        >>> from event_workflow_engine.storage import open_storage
        >>> @event("door-opened")
        ... @dataclass(frozen=True)
        ... class Opened:
        ...     by: str
        >>> async def main() -> None:
        ...     async with open_storage("memory://") as storage:
        ...         store = EventStore(storage)
        ...         print(await store.append("door-1", Opened("ann"), expected_version="no_stream"))
        ...         async for event in store.read("door-1"):
        ...             print(event.version, event.type, event.data)
        >>> asyncio.run(main())
        Appended(version=1, positions=(1,))
        1 door-opened Opened(by='ann')
    """

    def __init__(self, storage: Storage, *, clock: Clock | None = None, codec: Codec | None = None) -> None:
        self.storage = storage
        self.codec: Codec = JSON if codec is None else codec
        self.clock: Clock = SystemClock() if clock is None else clock
        self.serializer = EventSerializer(self.codec)
        self.before_strict: Callable[[], Awaitable[None]] | None = None
        self._now = micros(self.clock)
        self.snapshots: SnapshotManager | None = None

    def now(self) -> int:
        """The clock's time, in microseconds since 1970."""
        return self._now()

    # -- writing -----------------------------------------------------------------------------------------------------

    async def append(
        self,
        stream: str,
        events: Any,
        *,
        expected_version: ExpectedVersion = "any",
        strict: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Appended:
        """Append events to a stream: all or none, durable when this returns.

        Idempotent by event id: appending again what is stored, with the same ids (see `NewEvent`), changes nothing and
        returns what the first time returned, whatever version is expected.

        A caller that is cancelled does not learn whether the events landed; `outcome` tells, by the first event's id.

        Args:
            stream: The stream's name, ``category-id`` by custom: 1 to 400 characters. The categories ``saga`` and
                ``inbox`` are the engine's.
            events: An event or a sequence of them: instances of types registered with `event`, or `NewEvent`.
            expected_version: The version that the stream must have, ``"no_stream"`` (as 0), ``"stream_exists"`` or
                ``"any"``.
            strict: An inline projection that raises fails the append, instead of parking its key.
            metadata: For all these events; what it leaves out is filled from the context: the saga, or the event that
                is being handled. That of a `NewEvent` goes before it.

        Raises:
            VersionConflictError: The stream is not at the expected version.
            EventIdConflictError: One of the ids is stored already, with other events.
            NotRegisteredError: An event's type is not registered.
            EncodeError: A payload cannot be written as JSON, or not be read back as its type, or all are too large.
            DefinitionError: The stream's name, the expectation or the events are wrong in themselves.
            StorageError: The store cannot write.
        """
        records, _ = self.prepare(events, metadata)
        return await self.write(self.unit(stream, records, self._expected(expected_version), strict=strict))

    async def write(self, unit: Unit) -> Appended:
        """Write what `unit` made."""
        if unit.strict and self.before_strict is not None:
            await self.before_strict()
        written = await self.storage.write(unit)
        landed = written.appended[0]
        if landed.count == 1:
            return Appended(landed.version, (landed.position,))
        return _appended(written)

    def prepare(
        self, events: Any, metadata: Mapping[str, Any] | None = None
    ) -> tuple[tuple[NewRecord, ...], list[Any]]:
        """Events as records to append, and their payloads as they will be read back. For `append` and its kin.

        Args:
            events: An event or a sequence of them.
            metadata: See `append`.

        Raises:
            NotRegisteredError: An event's type is not registered.
            EncodeError: A payload cannot be written as JSON, or not be read back as its type.
            DefinitionError: There are no events, or one is wrong in itself.
        """
        known = known_metadata(metadata)
        encoded = b"" if known is None else _metadata_json(known)
        write = self.serializer.write
        records: list[NewRecord] = []
        payloads: list[Any] = []
        for event in self.serializer.listed(events):
            own = event.metadata if type(event) is NewEvent else None
            record, payload = write(event, encoded if own is None else _metadata_json(_overlaid(own, known)))
            records.append(record)
            payloads.append(payload)
        if not records:
            raise DefinitionError("an append needs at least one event")
        return tuple(records), payloads

    def unit(
        self,
        stream: str,
        records: tuple[NewRecord, ...],
        expected: int,
        *,
        rows: tuple[Row, ...] = (),
        strict: bool = False,
    ) -> Unit:
        """What `append` writes, for writing rows with it.

        Raises:
            DefinitionError: The stream's name is wrong, or it is the engine's.
        """
        check_stream(stream)
        if category_of(stream) in ENGINE_CATEGORIES:
            raise DefinitionError(
                f"stream {stream!r}: the category {category_of(stream)!r} is the engine's; "
                "to reach a saga, use its handle"
            )
        return Unit(records[0].id, self.now(), (Append(stream, records, expected),), rows, None, strict)

    def beside(self, stream: str, events: Any, metadata: Mapping[str, Any] | None = None) -> Append:
        """An append to go with a unit of somebody else's, which lands once: whatever version the stream has then.

        Raises:
            DefinitionError: As in `append`; or an event has an id of its own, which might be taken when it is too late.
            NotRegisteredError: An event's type is not registered.
            EncodeError: A payload cannot be written as JSON, or not be read back as its type.
        """
        for event in self.serializer.listed(events):
            if type(event) is NewEvent and event.id is not None:
                raise DefinitionError(
                    f"event {event.type!r} has the id {event.id!r}: what is appended in a transaction gets its id "
                    "there, and is in the log once without; leave the id out"
                )
        records, _ = self.prepare(events, metadata)
        (append,) = self.unit(stream, records, ANY_VERSION).appends
        return append

    def _expected(self, version: ExpectedVersion) -> int:
        if version == "any":
            return ANY_VERSION
        if type(version) is int and version >= 0:
            return version
        word = _WORDS.get(version) if isinstance(version, str) else None
        if word is None:
            raise DefinitionError(
                f"expected_version={version!r}: a version from 0, or one of {', '.join(map(repr, _WORDS))}"
            )
        return word

    async def outcome(self, unit_id: str) -> Appended | None:
        """Whether an append landed whose caller was cancelled or saw an error past sending. The answer is final.

        Args:
            unit_id: The id of its first event, as given in a `NewEvent`.

        Returns:
            What the append would have returned; ``None`` where nothing of it is stored or ever will be.
        """
        written = await self.storage.outcome(unit_id)
        return None if written is None else _appended(written)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def head(self, stream: str) -> int:
        """The stream's version; 0 when it has no events."""
        check_stream(stream)
        return await self.storage.head(stream)

    def read(
        self, stream: str, *, after: int = 0, limit: int | None = None, backwards: bool = False
    ) -> AsyncGenerator[RecordedEvent[Any], None]:
        """A stream's events in order. It may be the stream of a saga, whose facts come as single typed events.

        Args:
            stream: The stream's name; one without events yields nothing.
            after: Yield events behind this version; backwards, below it (0: from the end).
            limit: Yield no more than this; default all.
            backwards: The last first.

        Raises:
            DecodeError: An event cannot be read, when its turn comes. Those behind it can be: go on from its version.
            DefinitionError: The name or a number is wrong.
        """
        check_stream(stream)
        _check_range(after, limit)
        return self._read(stream, after, limit, backwards)

    async def _read(
        self, stream: str, after: int, limit: int | None, backwards: bool
    ) -> AsyncGenerator[RecordedEvent[Any], None]:
        cursor = after or None if backwards else after
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            records = await self.storage.read_stream(stream, after=cursor, limit=size, backwards=backwards)
            for record in records:
                singles = unpack(record)
                for single in reversed(singles) if backwards else singles:
                    if cursor is not None and (single.version >= cursor if backwards else single.version <= cursor):
                        continue
                    yield self.serializer.event(single)
                    cursor = single.version
                    if left is not None:
                        left -= 1
                        if not left:
                            return
            if len(records) < size:
                return

    def read_all(
        self,
        *,
        after: int = 0,
        types: str | type | Collection[str | type] = (),
        categories: str | Collection[str] = (),
        limit: int | None = None,
    ) -> AsyncGenerator[RecordedEvent[Any], None]:
        """The events of all streams, by position. It ends with what is committed when it gets there.

        Args:
            after: Yield events behind this position.
            types: Only these: event type names, or registered classes and their bases; default all.
            categories: Only streams of these (a stream's name up to its first ``-``); default all.
            limit: Yield no more than this; default all.

        Raises:
            DecodeError: An event cannot be read, when its turn comes. Those behind it can be: go on from its position.
            NotRegisteredError: A class of `types` is not registered.
            DefinitionError: A number is wrong.
        """
        _check_range(after, limit)
        return self._read_all(after, self._names(types), _listed(categories), limit)

    async def _read_all(
        self, after: int, types: Sequence[str], categories: Sequence[str], limit: int | None
    ) -> AsyncGenerator[RecordedEvent[Any], None]:
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            records = await self.storage.read_log(after=after, limit=size, types=types, categories=categories)
            for record in records:
                for single in _wanted(record, after, types):
                    yield self.serializer.event(single)
                    if left is not None:
                        left -= 1
                        if not left:
                            return
            if len(records) < size:
                return
            after = records[-1].position

    def follow(
        self,
        *,
        after: int | Literal["end"] = "end",
        types: str | type | Collection[str | type] = (),
        categories: str | Collection[str] = (),
    ) -> AsyncGenerator[RecordedEvent[Any], None]:
        """The events of all streams as they are committed, by this process or another, without end.

        Each once, by position, none left out. It waits without polling and ends when the storage is closed; leaving the
        loop early is best done inside of `contextlib.aclosing`.

        Args:
            after: Begin behind this position; ``"end"``: with what is committed from the first wait on.
            types: See `read_all`.
            categories: See `read_all`.

        Raises:
            LogRewoundError: The log ends before `after`, or an event that was read is not in it any more.
            DecodeError: An event cannot be read. Those behind it can be: go on from its position.
            NotRegisteredError: A class of `types` is not registered.
            DefinitionError: `after` is wrong.
        """
        if after != "end":
            _check_range(after, None)
        return self._follow(after, self._names(types), _listed(categories))

    async def _follow(
        self, after: int | Literal["end"], types: Sequence[str], categories: Sequence[str]
    ) -> AsyncGenerator[RecordedEvent[Any], None]:
        storage, bell, opened = self.storage, asyncio.Event(), False
        silence = storage.add_bell(bell.set)
        tail = Tail(storage, "a follower", 0 if after == "end" else after)
        try:
            if after == "end":
                await tail.go_to_end()
                opened = True
            while True:
                records = await tail.look(_PAGE, types, categories)
                opened = True
                for record in records:
                    for single in _wanted(record, tail.position, types):
                        yield self.serializer.event(single)
                    tail.move(record)
                tail.move_on()
                if not tail.more:
                    await bell.wait()
                    bell.clear()
        except EngineStateError:
            if not opened:
                raise  # it never was open; else it was closed, which rang the bell
        finally:
            silence()

    def _names(self, types: str | type | Collection[str | type]) -> Sequence[str]:
        names: set[str] = set()
        for kind in (types,) if isinstance(types, (str, type)) else types:
            if isinstance(kind, str):
                names.add(kind)
                continue
            found = self.serializer.registry.names_for(kind)
            if not found:
                raise NotRegisteredError(f"{kind!r} is not registered as an event, nor is a class derived from it")
            names |= found
        return sorted(names)

    # -- folding -----------------------------------------------------------------------------------------------------

    async def replay(self, aggregate: type[A], id: str, *, version: int | None = None) -> A:  # noqa: A002
        """An aggregate as its stream tells: from its snapshot if there is one, and the events behind it.

        Args:
            aggregate: Its class.
            id: Its id; the stream is ``category-id``.
            version: As of this version; default: now.

        Returns:
            The aggregate; with version 0 where its stream has no events.

        Raises:
            VersionConflictError: The stream has not come to `version` yet.
            NotRegisteredError: The stream holds an event whose type is not registered.
            DecodeError: An event cannot be read.
            DefinitionError: The id or the version is wrong.
        """
        return await load(self, self.snapshots, aggregate, id, version)


def _appended(written: Written) -> Appended:
    positions = [
        position
        for landed in written.appended
        for position in range(landed.position - landed.count + 1, landed.position + 1)
    ]
    return Appended(written.appended[0].version if written.appended else 0, tuple(positions))


def known_metadata(given: Mapping[str, Any] | None) -> Metadata | None:
    """What the caller and the context know, ``None`` where neither knows anything."""
    saga, handling = present_saga(), CURRENT_EVENT.get()
    if saga is None and handling is None:
        return None if not given else Metadata.of(given)
    correlation = causation = saga_id = None
    if saga is not None:
        saga_id, correlation, causation = saga.saga_id, saga.correlation_id or saga.saga_id, saga.causation_id
    if handling is not None:
        event = current_event()
        correlation, causation = event.metadata.correlation_id or event.id, event.id
    around = Metadata(correlation, causation, saga_id)
    return around if not given else Metadata.of(given).over(around)


def _overlaid(own: Mapping[str, Any], below: Metadata | None) -> Metadata:
    return Metadata.of(own) if below is None else Metadata.of(own).over(below)


def _metadata_json(metadata: Metadata) -> bytes:
    try:
        data = _encode_metadata(metadata)
    except UnicodeEncodeError as error:
        raise EncodeError(f"an event's metadata holds text that UTF-8 cannot store: {error}") from error
    return b"" if data == b"{}" else data


def _wanted(record: Record, after: int, types: Sequence[str]) -> Iterable[Record]:
    """The events of a record that are behind a position and of some types."""
    singles = unpack(record)
    if len(singles) == 1:
        return singles  # that record was asked for
    return [single for single in singles if single.position > after and (not types or single.type in types)]


def _listed(names: str | Collection[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else sorted(set(names))


def _check_range(after: int, limit: int | None) -> None:
    if type(after) is not int or after < 0:
        raise DefinitionError(f"after={after!r} must be an integer from 0")
    if limit is not None and (type(limit) is not int or limit < 0):
        raise DefinitionError(f"limit={limit!r} must be an integer from 0, or None for all")
