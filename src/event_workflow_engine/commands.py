"""The command bus: load an aggregate, let a handler decide, save what it decided; again where another was faster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from event_workflow_engine.aggregates import Aggregate, load, save_decided, stream_of
from event_workflow_engine.codecs import digest
from event_workflow_engine.errors import (
    DefinitionError,
    EventIdConflictError,
    NotRegisteredError,
    RowConflictError,
    VersionConflictError,
)
from event_workflow_engine.event_store import Appended, EventStore
from event_workflow_engine.ids import uuid7
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.serialization import check_id
from event_workflow_engine.storage.port import Append, Row, Unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.snapshots import SnapshotManager
    from event_workflow_engine.storage.port import NewRecord

__all__ = ["CONFLICT_RETRY", "CommandBus"]

C = TypeVar("C")
A = TypeVar("A", bound=Aggregate[Any])

CONFLICT_RETRY: Final = RetryPolicy(attempts=5, delay=0.01, max_delay=1.0, jitter=1.0)
"""The default: five attempts, at random within 20 ms behind the first, doubling."""

_holding: ContextVar[frozenset[str]] = ContextVar("ewe_command_streams", default=frozenset())


class _Route(msgspec.Struct, frozen=True):
    """What happens to commands of one type."""

    handler: Callable[[Any, Any], Any]
    aggregate: type[Aggregate[Any]]
    key: Callable[[Any], str]
    retry: RetryPolicy


class CommandBus:
    """Executes commands, each on one aggregate.

    Args:
        store: The event store.
        snapshots: Where loading begins; by default the snapshots of the store, if any.

    Example:
        >>> from dataclasses import dataclass
        >>> from event_workflow_engine.events import event
        >>> from event_workflow_engine.storage import open_storage
        >>> @event("counted")
        ... @dataclass(frozen=True)
        ... class Counted:
        ...     by: int
        >>> @dataclass
        ... class Counter(Aggregate[Counted], category="counter"):
        ...     value: int = 0
        ...
        ...     def apply(self, event: Counted, /) -> None:
        ...         self.value += event.by
        >>> @dataclass(frozen=True)
        ... class Count:
        ...     counter: str
        ...     by: int
        >>> def count(counter: Counter, command: Count) -> list[Counted]:
        ...     return [Counted(command.by)] if counter.value + command.by <= 10 else []
        >>> async def main() -> None:
        ...     async with open_storage("memory://") as storage:
        ...         store = EventStore(storage)
        ...         commands = CommandBus(store)
        ...         commands.register(Count, count, aggregate=Counter, key=lambda command: command.counter)
        ...         await commands.execute(Count("c", 7), id="once")
        ...         await commands.execute(Count("c", 7), id="once")
        ...         print(await store.replay(Counter, "c"))
        >>> asyncio.run(main())
        Counter(value=7)
    """

    def __init__(self, store: EventStore, *, snapshots: SnapshotManager | None = None) -> None:
        self._store = store
        self._own_snapshots = snapshots
        self._routes: dict[type, _Route] = {}
        self._turns: dict[str, _Turn] = {}

    def register(
        self,
        type: type[C],  # noqa: A002 - the contract's name
        handler: Callable[[A, C], Any],
        *,
        aggregate: type[A],
        key: Callable[[C], str],
        retry: RetryPolicy | None = None,
    ) -> None:
        """Say what decides on commands of a type.

        Args:
            type: The commands' class; a dataclass, Struct or Pydantic model, since commands with an id are compared.
            handler: Takes the aggregate and the command; decides, and returns an event, a sequence of events, or
                ``None``. Sync or async. It may run several times for one command, so all that it does is to decide.
            aggregate: The class of the aggregate.
            key: Takes the command and returns the aggregate's id.
            retry: How often it may be decided anew where another append to the stream was faster; default five attempts
                in all.

        Raises:
            DefinitionError: The type has another handler, or the aggregate no category.
        """
        known = self._routes.get(type)
        if known is not None and _address(known.handler) != _address(handler):
            raise DefinitionError(
                f"commands {type.__qualname__} are handled by {_address(known.handler)}, so not by {_address(handler)}"
            )
        stream_of(aggregate, "any")  # that it has a category shows here and not at the first command
        self._routes[type] = _Route(handler, aggregate, key, CONFLICT_RETRY if retry is None else retry)

    async def execute(self, command: Any, *, id: str | None = None) -> Appended:  # noqa: A002 - the contract's name
        """Have a command decided, and append what was decided to the aggregate's stream.

        With an id it is executed once: again, even at the same time or after a restart, it returns what the first time
        returned, and the handler is not asked. In one process commands on the same aggregate go one after the other.

        Args:
            command: An instance of a registered type.
            id: The command's id, unique over all commands; it becomes the causation id of the events.

        Returns:
            The stream's version with what was decided, and the positions; none where there was nothing to do.

        Raises:
            NotRegisteredError: Nothing handles such commands, or an event's type is not registered.
            EventIdConflictError: The id belongs to another command.
            VersionConflictError: Others were faster at every attempt.
            EncodeError: The command, or an event, cannot be written as JSON.
            DefinitionError: The key or the id is no text.
            StorageError: The store cannot write.
            Exception: What the handler raised; nothing was stored then.
        """
        route = self._routes.get(type(command))
        if route is None:
            raise NotRegisteredError(
                f"no handler for commands {type(command).__module__}.{type(command).__qualname__}: "
                "register(type, handler, aggregate=…, key=…) with the command bus"
            )
        if id is not None:
            check_id(id, "a command's id")
        key = route.key(command)
        stream = stream_of(route.aggregate, key)
        claim = None if id is None else _Claim(id, _digest(command, id), stream)
        attempt = 1
        while True:
            try:
                async with self._turn(stream):
                    return await self._attempt(route, command, key, claim)
            except (VersionConflictError, RowConflictError, EventIdConflictError) as error:
                if claim is not None and (first := await self._executed(claim)) is not None:
                    return first  # the same command, somewhere else
                again = isinstance(error, VersionConflictError) and error.stream == stream
                if not again or not route.retry.may_follow(attempt):
                    raise
            # By the machine's time, whatever the clock says: it is contention that has to pass.
            await asyncio.sleep(route.retry.wait_after(attempt))
            attempt += 1

    async def _attempt(self, route: _Route, command: Any, key: str, claim: _Claim | None) -> Appended:
        if claim is not None and (first := await self._executed(claim)) is not None:
            return first
        store, snapshots = self._store, self._store.snapshots if self._own_snapshots is None else self._own_snapshots
        aggregate = await load(store, snapshots, route.aggregate, key)
        decided = route.handler(aggregate, command)
        if isawaitable(decided):
            decided = await decided
        events = drained(self._store.serializer, decided)
        if not events:
            return await self._nothing(claim, stream_of(route.aggregate, key), aggregate.version)
        records, payloads = store.prepare(events, None if claim is None else {"causation_id": claim.id})
        version = aggregate.version + len(records)
        rows = () if claim is None else (claim.row(version, records),)
        return await save_decided(store, snapshots, aggregate, records, payloads, rows=rows)

    async def _nothing(self, claim: _Claim | None, stream: str, version: int) -> Appended:
        """There was nothing to do: with an id, that is kept too, if the stream still is as it was looked at."""
        if claim is not None:
            append = Append(stream, (), version)
            await self._store.storage.write(Unit(uuid7(), self._store.now(), (append,), (claim.row(version, ()),)))
        return Appended(version, ())

    async def _executed(self, claim: _Claim) -> Appended | None:
        """What the first execution returned, if there was one."""
        row = await self._store.storage.get("commands", (claim.id,))
        if row is None:
            return None
        if row["command_hash"] != claim.digest or row["stream"] != claim.stream:
            raise EventIdConflictError(
                f"command id {claim.id!r} was used for another command, on stream {row['stream']!r}: "
                "each command needs an id of its own"
            )
        first = await self._store.outcome(row["positions"]) if row["positions"] else None
        return Appended(row["version"], ()) if first is None else first

    @asynccontextmanager
    async def _turn(self, stream: str) -> AsyncIterator[None]:
        """Let commands on one stream wait for one another, instead of losing against one another."""
        if stream in _holding.get():  # a handler that executes a command on its own aggregate
            yield
            return
        turn = self._turns.setdefault(stream, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                token = _holding.set(_holding.get() | {stream})
                try:
                    yield
                finally:
                    _holding.reset(token)
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[stream]


class _Turn:
    """Who is executing a command on a stream, or waits to."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class _Claim(msgspec.Struct, frozen=True):
    """A command's id, and what it is the id of."""

    id: str
    digest: str
    stream: str

    def row(self, version: int, records: tuple[NewRecord, ...]) -> Row:
        """What keeps it. `positions` names the unit, since where that lands is not known before."""
        values = {
            "command_hash": self.digest,
            "stream": self.stream,
            "version": version,
            "positions": records[0].id if records else None,
        }
        return Row("commands", "insert", (self.id,), values)


def drained(serializer: EventSerializer, decided: Any) -> Sequence[Any]:
    """What a handler decided: one event, several, some that it yields, or ``None``."""
    if decided is None:
        return ()
    return serializer.listed(list(decided) if isinstance(decided, Iterator) else decided)


def _digest(command: Any, command_id: str) -> str:
    what = f"command {type(command).__qualname__} {command_id!r}"
    return digest([type(command).__qualname__, command], what)


def _address(handler: Any) -> str:
    named = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{named.__module__}.{named.__qualname__}"
