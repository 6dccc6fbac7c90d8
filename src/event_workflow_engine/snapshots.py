"""Snapshots: the state of a fold at a version, so that loading need not begin at the first event.

A snapshot is only ever a shortcut: one that does not fit is ignored, and what it stands for is folded again.
"""

from __future__ import annotations

import logging
import math
from datetime import datetime
from functools import cached_property
from inspect import isclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from event_workflow_engine.aggregates import Aggregate, event_names, place
from event_workflow_engine.clock import Duration, from_micros, seconds
from event_workflow_engine.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    NotRegisteredError,
    RowConflictError,
    WorkflowError,
)
from event_workflow_engine.ids import uuid7
from event_workflow_engine.serialization import category_of, check_stream
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.event_store import EventStore

__all__ = ["Snapshot", "SnapshotManager", "SnapshotPolicy", "every", "older_than"]

S = TypeVar("S")

_log: Final = logging.getLogger("event_workflow_engine.snapshots")
_MICROSECONDS: Final = 1_000_000
_MOST_SEEN: Final = 10_000


class Snapshot(msgspec.Struct, Generic[S], frozen=True):
    """The state of a fold.

    Attributes:
        state: The state; made anew by each `SnapshotManager.load`, so that it may be changed.
        version: The version of the stream that it stands for.
        taken_at: When it was taken, aware, in UTC.
    """

    state: S
    version: int
    taken_at: datetime


class SnapshotPolicy:
    """When a snapshot is due. Made by `every` and `older_than`; ``a | b`` is due when one of them is, ``a & b`` both.

    Example:
        >>> every(100) | older_than(3600) & every(10)
        (every(100) | (older_than(3600.0) & every(10)))
    """

    __slots__ = ("_due", "_text")

    def __init__(self, due: Callable[[int, float], bool], text: str) -> None:
        self._due = due
        self._text = text

    def due(self, events: int, age: float) -> bool:
        """Whether a snapshot is due.

        Args:
            events: How many events there were since the last one, or since the stream's begin.
            age: Seconds since the last one was taken; infinite where there is none.
        """
        return self._due(events, age)

    def __or__(self, other: SnapshotPolicy) -> SnapshotPolicy:
        """Due when one of them is."""
        if not isinstance(other, SnapshotPolicy):
            return NotImplemented
        first, second = self._due, other._due
        return SnapshotPolicy(lambda events, age: first(events, age) or second(events, age), f"({self} | {other})")

    def __and__(self, other: SnapshotPolicy) -> SnapshotPolicy:
        """Due when both are."""
        if not isinstance(other, SnapshotPolicy):
            return NotImplemented
        first, second = self._due, other._due
        return SnapshotPolicy(lambda events, age: first(events, age) and second(events, age), f"({self} & {other})")

    def __repr__(self) -> str:
        """As it is written."""
        return self._text


def every(events: int) -> SnapshotPolicy:
    """A snapshot is due when there were so many events since the last one.

    Raises:
        DefinitionError: `events` is less than 1.
    """
    if type(events) is not int or events < 1:
        raise DefinitionError(f"every({events!r}): an integer from 1")
    return SnapshotPolicy(lambda since, _: since >= events, f"every({events})")


def older_than(age: Duration) -> SnapshotPolicy:
    """A snapshot is due when the last one is older than this, in seconds or as a timedelta, or where there is none.

    Raises:
        DefinitionError: `age` is negative or no number.
    """
    limit = seconds(age)
    if not limit >= 0:
        raise DefinitionError(f"older_than({age!r}): must not be negative")
    return SnapshotPolicy(lambda _, since: since > limit, f"older_than({limit})")


class _Kind(msgspec.Struct, frozen=True):
    """A registered type of state."""

    name: str
    policy: SnapshotPolicy
    schema_version: int


class SnapshotManager:
    """Keeps the newest snapshot of each stream and type of state.

    Args:
        store: The event store; its `EventStore.replay` begins at these snapshots from now on.

    Example:
        >>> import asyncio
        >>> from dataclasses import dataclass
        >>> from event_workflow_engine.event_store import EventStore
        >>> from event_workflow_engine.storage import open_storage
        >>> @dataclass
        ... class Cart:
        ...     items: list[str]
        >>> async def main() -> None:
        ...     async with open_storage("memory://") as storage:
        ...         manager = SnapshotManager(EventStore(storage))
        ...         manager.register(Cart, every(100))
        ...         print(await manager.save("cart-1", Cart(["lamp"]), version=99))
        ...         print(await manager.save("cart-1", Cart(["lamp"]), version=100))
        ...         print((await manager.load("cart-1", Cart)).state)
        >>> asyncio.run(main())
        False
        True
        Cart(items=['lamp'])
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._kinds: dict[type, _Kind] = {}
        self._fingerprints: dict[type, tuple[int, str]] = {}
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}
        """Versions and times of snapshots as last seen: whether it is worth a look if one is due."""
        store.snapshots = self

    def register(self, type: type[Any], policy: SnapshotPolicy, *, schema_version: int = 1) -> None:  # noqa: A002
        """Let snapshots of a type of state be kept. The same type again replaces its policy and schema version.

        Args:
            type: A dataclass (an `Aggregate` is one), Struct or Pydantic model.
            policy: When one is due.
            schema_version: To be raised when the fold changes: older snapshots are then ignored.

        Raises:
            DefinitionError: Something of it is wrong.
        """
        if not isclass(type):
            raise DefinitionError(f"snapshots are of classes; {type!r} is none")
        name = f"{type.__module__}.{type.__qualname__}"
        if not isinstance(policy, SnapshotPolicy):
            raise DefinitionError(f"snapshots of {name}: {policy!r} is no policy, use every() and older_than()")
        if schema_version.__class__ is not int or schema_version < 1:
            raise DefinitionError(f"snapshots of {name}: schema_version {schema_version!r} must be an integer from 1")
        if issubclass(type, Aggregate) and not hasattr(type, "__dataclass_fields__"):
            raise DefinitionError(f"snapshots of {name}: make the aggregate a @dataclass, whose fields can be stored")
        self._kinds[type] = _Kind(name, policy, schema_version)

    def knows(self, type: type[Any]) -> bool:  # noqa: A002 - as in `register`
        """Whether a type of state is registered."""
        return type in self._kinds

    async def save(self, stream: str, state: Any, version: int) -> bool:
        """Keep a snapshot if the policy says that one is due, and no newer one is there.

        Args:
            stream: The stream that was folded.
            state: What it folds to.
            version: The version of the stream that `state` stands for.

        Returns:
            Whether it was kept.

        Raises:
            NotRegisteredError: The state's type is not registered.
            EncodeError: The state cannot be written as JSON, or would not come back whole.
            DefinitionError: The stream's name or the version is wrong.
        """
        kind = self._kind(type(state))
        check_stream(stream)
        if type(version) is not int or version < 1:
            raise DefinitionError(f"snapshot of stream {stream!r}: version {version!r} must be an integer from 1")
        key, fingerprint = (stream, kind.name), self._fingerprint(type(state))
        encoded: bytes | None = None
        while True:
            row, now = await self._look(key), self._store.now()
            if not _is_due(row, version, kind, fingerprint, now):
                return False
            encoded = self._encoded(stream, state) if encoded is None else encoded
            values = {
                "version": version,
                "schema_version": kind.schema_version,
                "fingerprint": fingerprint,
                "state": encoded,
                "taken_at": now,
            }
            if await self._change(Row("snapshots", "update" if row else "insert", key, values, _as_seen(row))):
                self._remember(key, version, now)
                return True

    async def load(self, stream: str, type: type[S], *, at: int | None = None) -> Snapshot[S] | None:  # noqa: A002
        """The snapshot of a stream.

        Args:
            stream: The stream's name.
            type: The registered type of the state.
            at: Only one of this version or an older one.

        Returns:
            It; ``None`` where there is none, or none that fits: taken by another schema version of the fold, before the
            upcasters of its event types changed, or undecodable.

        Raises:
            NotRegisteredError: The type is not registered.
        """
        kind = self._kind(type)
        check_stream(stream)
        row = await self._look((stream, kind.name))
        if row is None or not _fits(row, kind, self._fingerprint(type)) or (at is not None and row["version"] > at):
            return None
        try:
            state = self._store.codec.decode(row["state"], type, f"snapshot of stream {stream!r}")
        except DecodeError as error:
            _log.warning("the snapshot of stream %r is ignored, its events are folded instead: %s", stream, error)
            return None
        if isinstance(state, Aggregate):
            place(state, stream[len(category_of(stream)) + 1 :], row["version"])
        return Snapshot(state, row["version"], from_micros(row["taken_at"]))

    async def delete(self, stream: str) -> None:
        """Forget the snapshots of a stream, of all registered types. Loading then folds all its events."""
        check_stream(stream)
        for kind in self._kinds.values():
            key = (stream, kind.name)
            while (row := await self._look(key)) is not None:
                if await self._change(Row("snapshots", "delete", key, {}, _as_seen(row))):
                    break
            self._seen.pop(key, None)

    async def consider(self, stream: str, state: Any) -> None:
        """Keep a snapshot of an aggregate that was just saved, if one is due. Its failure is only logged.

        Args:
            stream: The aggregate's stream.
            state: The aggregate.
        """
        kind = self._kinds.get(type(state))
        if kind is None:
            return
        version, taken_at = self._seen.get((stream, kind.name), (0, 0))
        age = (self._store.now() - taken_at) / _MICROSECONDS if version else math.inf
        if not kind.policy.due(state.version - version, age):
            return
        try:
            await self.save(stream, state, state.version)
        except WorkflowError as error:
            _log.warning("no snapshot of stream %r at version %d: %s", stream, state.version, error)

    async def _look(self, key: tuple[str, str]) -> dict[str, Any] | None:
        row = await self._store.storage.get("snapshots", key)
        if row is not None:
            self._remember(key, row["version"], row["taken_at"])
        return row

    def _remember(self, key: tuple[str, str], version: int, taken_at: int) -> None:
        if len(self._seen) >= _MOST_SEEN and key not in self._seen:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (version, taken_at)

    async def _change(self, row: Row) -> bool:
        """Write a row; ``False`` where another one came between."""
        try:
            await self._store.storage.write(Unit(uuid7(), self._store.now(), (), (row,)))
        except RowConflictError:
            return False
        return True

    def _kind(self, type: type[Any]) -> _Kind:  # noqa: A002 - as in `register`
        kind = self._kinds.get(type)
        if kind is None:
            raise NotRegisteredError(
                f"no snapshots of {type.__module__}.{type.__qualname__} are kept: "
                f"register({type.__name__}, every(100)) with the SnapshotManager"
            )
        return kind

    def _fingerprint(self, type: type[Any]) -> str:  # noqa: A002 - as in `register`
        if not issubclass(type, Aggregate):
            return ""
        registry = self._store.serializer.registry
        revision, fingerprint = self._fingerprints.get(type, (-1, ""))
        if revision != registry.revision:
            fingerprint = registry.fingerprint(event_names(type))
            self._fingerprints[type] = (registry.revision, fingerprint)
        return fingerprint

    def _encoded(self, stream: str, state: Any) -> bytes:
        """The state as it is stored.

        Raises:
            EncodeError: It would not come back whole.
        """
        what = f"snapshot of stream {stream!r}"
        data = self._store.codec.encode(state, what)
        try:
            back = self._store.codec.decode(data, type(state), what)
        except DecodeError as error:
            raise EncodeError(f"{what} could not be read back: {error}") from error
        if isinstance(state, Aggregate):
            lost = {
                name
                for name in vars(state).keys() - vars(back).keys()
                if not isinstance(getattr(type(state), name, None), cached_property)
                and not name.startswith("_Aggregate__")
            }
            if lost:
                raise EncodeError(
                    f"{what} would lose {', '.join(sorted(lost))}: declare them as fields of {type(state).__qualname__}"
                )
        return data


def _as_seen(row: dict[str, Any] | None) -> dict[str, Any]:
    return {} if row is None else {name: row[name] for name in ("version", "schema_version", "taken_at")}


def _fits(row: dict[str, Any], kind: _Kind, fingerprint: str) -> bool:
    return bool(row["schema_version"] == kind.schema_version and row["fingerprint"] == fingerprint)


def _is_due(row: dict[str, Any] | None, version: int, kind: _Kind, fingerprint: str, now: int) -> bool:
    if row is None:
        return kind.policy.due(version, math.inf)
    if not _fits(row, kind, fingerprint):
        # As if there were none; but one that other code took of a newer version stays, since that code runs too.
        return row["version"] <= version and kind.policy.due(version, math.inf)
    age = (now - row["taken_at"]) / _MICROSECONDS
    return row["version"] < version and kind.policy.due(version - row["version"], age)
