"""Aggregates: what a stream folds to. `Repository` loads them and saves what was decided on them."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from event_workflow_engine.errors import DefinitionError, NotRegisteredError, VersionConflictError
from event_workflow_engine.events import CURRENT_EVENT, REGISTRY
from event_workflow_engine.serialization import ENGINE_CATEGORIES, EventCursor, check_id, check_stream
from event_workflow_engine.storage.port import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from event_workflow_engine.event_store import Appended, EventStore
    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.snapshots import SnapshotManager
    from event_workflow_engine.storage.port import NewRecord, Row

__all__ = ["Aggregate", "Repository", "event_names", "load", "place", "save_decided", "stream_of"]

E = TypeVar("E")
A = TypeVar("A", bound="Aggregate[Any]")

_AHEAD: Final = -1
"""The version of an aggregate to which events were applied that its stream may not have."""
_OWN_NAMES: Final = frozenset({"id", "version"})
_LONGEST_CATEGORY: Final = 100
_PAGE: Final = 4096


class Aggregate(Generic[E]):
    """Base of aggregates: a dataclass whose state is the fold of its stream's events.

    Subclass it with the union of its events and a category; its stream is ``category-id``. Every field needs a default,
    since a new aggregate begins with those. `id` and `version` are no fields: the repository keeps them.

    Snapshots hold the fields, so all that `apply` changes belongs into them.

    Example:
        >>> from dataclasses import dataclass
        >>> from event_workflow_engine.events import event
        >>> @event("lamp-switched")
        ... @dataclass(frozen=True)
        ... class Switched:
        ...     on: bool
        >>> @dataclass
        ... class Lamp(Aggregate[Switched], category="lamp"):
        ...     on: bool = False
        ...
        ...     def apply(self, event: Switched, /) -> None:
        ...         self.on = event.on
        >>> lamp = Lamp()
        >>> lamp.apply(Switched(True))
        >>> lamp, lamp.version
        (Lamp(on=True), 0)
    """

    category: ClassVar[str] = ""
    """The first part of its streams' names."""

    __id: str = ""
    __version: int = 0

    def __init_subclass__(cls, *, category: str | None = None, **kwargs: Any) -> None:
        """Check the category.

        Raises:
            DefinitionError: It is no good as one, or a field has a name that is taken.
        """
        super().__init_subclass__(**kwargs)
        taken = _OWN_NAMES & (vars(cls).keys() | vars(cls).get("__annotations__", {}).keys())
        if taken:
            raise DefinitionError(
                f"aggregate {cls.__qualname__}: {', '.join(sorted(taken))} must not be defined: the repository keeps it"
            )
        if category is None:
            return
        if not category.isprintable() or not 0 < len(category) <= _LONGEST_CATEGORY or "-" in category:
            raise DefinitionError(
                f"aggregate {cls.__qualname__}: category {category!r} must be 1 to {_LONGEST_CATEGORY} printable "
                "characters without '-', which ends it in a stream's name"
            )
        if category in ENGINE_CATEGORIES:
            raise DefinitionError(f"aggregate {cls.__qualname__}: the category {category!r} is the engine's")
        cls.category = category

    @property
    def id(self) -> str:
        """Its id, the part of the stream's name behind the category; empty where no repository made it."""
        return self.__id

    @property
    def version(self) -> int:
        """The version of its stream that it stands for; 0: new, -1: a `Repository.save` of it failed."""
        return self.__version

    def apply(self, event: E, /) -> None:  # noqa: ARG002 - for those that derive
        """Change the state as the event says. Pure: what was stored has happened, so it is not refused.

        Args:
            event: The payload; `current_event` gives the whole event.
        """
        raise DefinitionError(f"aggregate {type(self).__qualname__} has no apply(event)")

    @staticmethod
    def _place(aggregate: Aggregate[Any], id: str, version: int) -> None:  # noqa: A002 - the contract's name
        aggregate.__id = id
        aggregate.__version = version

    @staticmethod
    def _fold(
        aggregate: Aggregate[Any], records: Sequence[Record], payloads: Iterable[Any], serializer: EventSerializer
    ) -> None:
        cursor = EventCursor(serializer)
        apply = aggregate.apply
        record = records[0]
        token = CURRENT_EVENT.set(cursor)
        try:
            for record, payload in zip(records, payloads, strict=True):
                cursor.record = record
                apply(payload)
                aggregate.__version = record.version
        except Exception as error:
            error.add_note(f"while folding {record.type!r}, version {record.version} of stream {record.stream!r}")
            raise
        finally:
            CURRENT_EVENT.reset(token)


# For the modules that load and save; users have no use for them.
place: Final = Aggregate._place  # noqa: SLF001
"""Say which aggregate this is, and at which version."""

_fold: Final = Aggregate._fold  # noqa: SLF001
"""Apply records, each of one event, whose payloads are given beside; the aggregate's version goes with them."""


def _category_of(aggregate: Any) -> str:
    """The category of an aggregate's class.

    Raises:
        DefinitionError: It has none, or it is no such class.
    """
    if not isinstance(aggregate, type) or not issubclass(aggregate, Aggregate):
        raise DefinitionError(f"{aggregate!r} is no class derived from Aggregate")
    if not aggregate.category:
        raise DefinitionError(
            f"aggregate {aggregate.__qualname__} has no category: class {aggregate.__name__}(Aggregate[…], "
            f'category="{aggregate.__name__.lower()}")'
        )
    return aggregate.category


def stream_of(aggregate: type[Aggregate[Any]], id: str) -> str:  # noqa: A002 - the contract's name
    """The stream of the aggregate with that id.

    Raises:
        DefinitionError: The class has no category, or the id is no text.
    """
    category = _category_of(aggregate)
    check_id(id, f"the id of aggregate {aggregate.__qualname__}")
    return f"{category}-{id}"


def _fresh(aggregate: type[A], id: str) -> A:  # noqa: A002 - the contract's name
    """A new aggregate, to which nothing has happened.

    Raises:
        DefinitionError: It has fields without a default.
    """
    try:
        made = aggregate()
    except TypeError as error:
        raise DefinitionError(
            f"aggregate {aggregate.__qualname__} cannot begin empty: every field needs a default ({error})"
        ) from error
    place(made, id, 0)
    return made


def event_names(aggregate: type[Aggregate[Any]]) -> frozenset[str]:
    """The names of the event types that ``Aggregate[…]`` names, those derived from them included.

    Empty where one of them is not registered: an aggregate of plain dicts, or of ``Any``.
    """
    names: frozenset[str] = frozenset()
    for kind in _event_types(aggregate):
        # Bare `dict` and `object` are bases of events that have nothing to do with this one.
        plain = not isinstance(kind, type) or kind.__module__ == "builtins"
        found = frozenset() if plain else REGISTRY.names_for(kind)
        if not found:
            return frozenset()
        names |= found
    return names


def _event_types(aggregate: type[Aggregate[Any]]) -> tuple[Any, ...]:
    for cls in aggregate.__mro__:
        for base in vars(cls).get("__orig_bases__", ()):
            if typing.get_origin(base) is Aggregate:
                return _members(typing.get_args(base)[0])
    return ()


def _members(union: Any) -> tuple[Any, ...]:
    union = getattr(union, "__value__", union)  # of a `type X = …` statement
    if typing.get_origin(union) in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(union) for member in _members(part))
    return (union,)


async def load(
    store: EventStore,
    snapshots: SnapshotManager | None,
    aggregate: type[A],
    id: str,  # noqa: A002 - the contract's name
    version: int | None = None,
) -> A:
    """See `Repository.load`."""
    stream = stream_of(aggregate, id)
    check_stream(stream)
    if version is not None and (type(version) is not int or version < 0):
        raise DefinitionError(f"version {version!r} of stream {stream!r} must be an integer from 0")
    snapshot = None
    if snapshots is not None and snapshots.knows(aggregate) and version != 0:
        snapshot = await snapshots.load(stream, aggregate, at=version)
    folded: A = _fresh(aggregate, id) if snapshot is None else snapshot.state
    await _fold_stream(store, folded, stream, version)
    if version is not None and folded.version < version:
        raise VersionConflictError(stream, version, folded.version)
    return folded


async def _fold_stream(store: EventStore, aggregate: Aggregate[Any], stream: str, until: int | None) -> None:
    """Apply the events of `stream` behind the aggregate's version, up to version `until`."""
    typed = bool(event_names(type(aggregate)))
    while until is None or aggregate.version < until:
        size = _PAGE if until is None else min(_PAGE, until - aggregate.version)
        records = await store.storage.read_stream(stream, after=aggregate.version, limit=size)
        if records:
            if typed:
                _require_registered(store, records)
            _fold(aggregate, records, map(store.serializer.payload, records), store.serializer)
        if len(records) < size:
            return


def _require_registered(store: EventStore, records: Sequence[Record]) -> None:
    # A plain dict would fall through a fold's cases without a word.
    for name in {record.type for record in records}:
        if store.serializer.registry.by_name(name) is None:
            raise NotRegisteredError(
                f"stream {records[0].stream!r} holds events {name!r}, whose type is not registered: "
                f'import the module that has the class with @event("{name}")'
            )


class Repository(Generic[A]):
    """Loads aggregates of one type, and saves the events that were decided on them.

    Args:
        store: The event store.
        aggregate: The class.
        snapshots: Where to begin loading and what to keep for it; by default the snapshots of the store, if any.

    Raises:
        DefinitionError: The class has no category.
    """

    def __init__(self, store: EventStore, aggregate: type[A], *, snapshots: SnapshotManager | None = None) -> None:
        _category_of(aggregate)
        self._store = store
        self._aggregate = aggregate
        self._own_snapshots = snapshots

    @property
    def _snapshots(self) -> SnapshotManager | None:
        return self._store.snapshots if self._own_snapshots is None else self._own_snapshots

    async def load(self, id: str, *, version: int | None = None) -> A:  # noqa: A002 - the contract's name
        """The aggregate with that id, from its snapshot if there is one, and the events behind it.

        Args:
            id: Its id.
            version: As of this version; default: now.

        Returns:
            The aggregate; with version 0 where nothing has happened to it.

        Raises:
            VersionConflictError: Its stream has not come to `version` yet.
            NotRegisteredError: Its stream holds an event whose type is not registered.
            DecodeError: An event cannot be read.
            DefinitionError: The id or the version is wrong.
        """
        return await load(self._store, self._snapshots, self._aggregate, id, version)

    async def save(
        self,
        aggregate: A,
        events: Any,
        *,
        strict: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Appended:
        """Append events to the aggregate's stream, which must be at the aggregate's version.

        They are applied to the aggregate *before* they are stored, so that what cannot be applied is never stored. When
        this raises, the aggregate may be ahead of its stream and cannot be saved again: load it anew. `current_event`
        tells `apply` all but the position, which is 0 by then.

        Args:
            aggregate: As it was loaded, or as it was after the last `save`.
            events: What was decided: an event or a sequence of them.
            strict: See `EventStore.append`.
            metadata: See `EventStore.append`.

        Raises:
            VersionConflictError: Somebody else appended meanwhile: load it again and decide anew.
            NotRegisteredError: An event's type is not registered.
            EncodeError: A payload cannot be written as JSON, or not be read back as its type.
            DefinitionError: The aggregate did not come from `load`, or was left behind by a `save` that failed.
            StorageError: The store cannot write.
        """
        records, payloads = self._store.prepare(events, metadata)
        return await save_decided(self._store, self._snapshots, aggregate, records, payloads, strict=strict)


async def save_decided(
    store: EventStore,
    snapshots: SnapshotManager | None,
    aggregate: Aggregate[Any],
    records: tuple[NewRecord, ...],
    payloads: Sequence[Any],
    *,
    rows: tuple[Row, ...] = (),
    strict: bool = False,
) -> Appended:
    """`Repository.save` of prepared events, with rows in the same unit."""
    version = aggregate.version
    if not aggregate.id or version < 0:
        raise DefinitionError(
            f"{type(aggregate).__qualname__} {aggregate.id!r} cannot be saved: it did not come from a repository's "
            "load, or an earlier save of it failed; load it (again)"
        )
    stream = stream_of(type(aggregate), aggregate.id)
    unit = store.unit(stream, records, version, rows=rows, strict=strict)
    as_stored = [
        Record(0, stream, version + n, 1, new.id, new.type, new.schema, new.data, new.metadata, unit.at)
        for n, new in enumerate(records, start=1)
    ]
    try:
        _fold(aggregate, as_stored, payloads, store.serializer)
        appended = await store.write(unit)
    except BaseException:
        place(aggregate, aggregate.id, _AHEAD)
        raise
    if appended.version != version + len(records):
        # The same event ids were stored before, so they are applied twice now.
        place(aggregate, aggregate.id, _AHEAD)
    elif snapshots is not None:
        await snapshots.consider(stream, aggregate)
    return appended
