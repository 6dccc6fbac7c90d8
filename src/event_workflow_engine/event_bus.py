"""`EventBus`: events to handlers, in the background, in order where order matters, and none dropped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from event_workflow_engine._bus.dead_letters import DeadLetter, DeadLetters
from event_workflow_engine._bus.delivery import Delivery, Lanes
from event_workflow_engine._bus.durable import DurableFeed
from event_workflow_engine.callables import called
from event_workflow_engine.errors import DefinitionError, EngineStateError, NotRegisteredError
from event_workflow_engine.events import NO_METADATA, REGISTRY, RecordedEvent
from event_workflow_engine.ids import uuid7
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.serialization import committed, unpack

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.storage.port import Record, Unit, Written

__all__ = ["DeadLetter", "EventBus", "Subscription"]

T = TypeVar("T")
Handler = Callable[[T], Awaitable[object] | object]
Key = Callable[[T], str]

_log: Final = logging.getLogger("event_workflow_engine.bus")
FIVE_ATTEMPTS: Final = RetryPolicy(attempts=5)


class Subscription:
    """A handler and what it wants to see.

    Attributes:
        name: Its name in the log and in dead letters; that of a durable one is its checkpoint's too.
    """

    def __init__(
        self, bus: EventBus, name: str, wanted: type | Literal["*"], lanes: Lanes, durable: str | None
    ) -> None:
        self.name = name
        self.wanted = wanted
        self.lanes = lanes
        self.durable = durable
        self._bus = bus

    def cancel(self) -> None:
        """Deliver nothing more to it. What it has been handed is still handled; a durable checkpoint stays."""
        self._bus.forget(self)

    def wants(self, payload: object) -> bool:
        """Whether a published event is for it."""
        return self.wanted == "*" or isinstance(payload, self.wanted)

    @property
    def types(self) -> frozenset[str] | None:
        """The names of the stored types it wants; ``None``: all."""
        return None if self.wanted == "*" else REGISTRY.names_for(self.wanted)


class EventBus:
    """Hands events to handlers as background work.

    Events with the same key go to a handler one after the other, others side by side: the key's *stable* hash (never
    Python's ``hash``, which changes by process) chooses one of `partitions`. A handler that raises is tried again
    by its policy, then the event becomes a dead letter; none is dropped.

    Args:
        partitions: For each subscription.
        queue_size: Events that wait in a partition before `publish` waits too.

    Example:
        >>> async def main() -> None:
        ...     bus = EventBus()
        ...     bus.subscribe(str, print)
        ...     await bus.publish("hello")
        ...     await bus.drain()
        >>> asyncio.run(main())
        hello
    """

    def __init__(self, *, partitions: int = 16, queue_size: int = 1024) -> None:
        if partitions < 1 or queue_size < 1:
            raise DefinitionError("EventBus: partitions and queue_size must be at least 1")
        self._partitions = partitions
        self._queue_size = queue_size
        self._subscriptions: list[Subscription] = []
        self._dead = DeadLetters()
        self._store: EventStore | None = None
        self._worker = ""
        self._feeds: dict[str, DurableFeed] = {}
        self._waiting: deque[Record] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._interest: dict[str, bool] = {}
        self._revision = -1
        self._started = False
        self._remove_hook: Callable[[], None] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def attach(self, store: EventStore, *, worker_id: str = "") -> None:
        """Connect it to a store: committed events reach its subscriptions, dead letters are kept there.

        Args:
            store: The store.
            worker_id: This worker; without one, durable subscriptions are not fed here.
        """
        self._store = store
        self._worker = worker_id
        self._dead.attach(store)

    async def start(self) -> None:
        """Begin to deliver what is committed, and to feed durable subscriptions."""
        self._started = True
        if self._store is None:
            return
        self._remove_hook = self._store.storage.add_commit_hook(self._committed)
        for subscription in self._subscriptions:
            self._feed(subscription)

    async def stop(self) -> None:
        """Let handlers end what they have begun, and let go of durable checkpoints."""
        self._started = False
        if self._remove_hook is not None:
            self._remove_hook()
            self._remove_hook = None
        feeds, self._feeds = list(self._feeds.values()), {}
        await asyncio.gather(*(feed.stop() for feed in feeds))
        if self._pump is not None:
            await self._pump
        for subscription in self._subscriptions:
            await subscription.lanes.stop()

    def _feed(self, subscription: Subscription) -> None:
        if subscription.durable is None or not self._started or not self._worker or self._store is None:
            return
        feed = DurableFeed(
            self._store, subscription.durable, self._worker, subscription.lanes, lambda: subscription.types
        )
        self._feeds[subscription.durable] = feed
        feed.start()

    # -- subscribing -------------------------------------------------------------------------------------------------

    @overload
    def subscribe(
        self,
        type: type[T],
        handler: Handler[T],
        *,
        durable: str | None = ...,
        key: Key[T] | None = ...,
        retry: RetryPolicy | None = ...,
        start: Literal["beginning", "now"] = ...,
    ) -> Subscription: ...
    @overload
    def subscribe(
        self,
        type: Literal["*"],
        handler: Handler[Any],
        *,
        durable: str | None = ...,
        key: Key[Any] | None = ...,
        retry: RetryPolicy | None = ...,
        start: Literal["beginning", "now"] = ...,
    ) -> Subscription: ...
    def subscribe(
        self,
        type: Any,  # noqa: A002 - the contract's name
        handler: Handler[Any],
        *,
        durable: str | None = None,
        key: Key[Any] | None = None,
        retry: RetryPolicy | None = None,
        start: Literal["beginning", "now"] = "beginning",
    ) -> Subscription:
        """Deliver events of a type, or of those derived from it, to a handler. Sync; only the handler's call is async.

        Args:
            type: A class, or ``"*"`` for everything.
            handler: Gets the payload; the whole event is `current_event`. Sync ones run in a thread.
            durable: A name: it is then fed from the store with a checkpoint, at least once, over restarts, on one
                worker of many at a time, with what any process commits. Without it, it gets what this bus publishes and
                this engine commits.
            key: Events of one key are handled in order. Default: the stream; what is only published has no order.
            retry: Five attempts by default.
            start: Where a new durable subscription begins.

        Raises:
            DefinitionError: The durable name is taken, or `type` is no class.
        """
        if type != "*" and not isinstance(type, builtins_type):
            raise DefinitionError(f"subscribe({type!r}, …): a class, or '*'")
        if start not in ("beginning", "now"):
            raise DefinitionError(f"subscribe(start={start!r}): 'beginning' or 'now'")
        if durable is not None and any(known.durable == durable for known in self._subscriptions):
            raise DefinitionError(f"the durable subscription {durable!r} exists already; its name must be its own")
        name = durable or f"{called(handler)}@{'*' if type == '*' else qualified_name(type)}"
        lanes = Lanes(name, handler, key, retry or FIVE_ATTEMPTS, self._partitions, self._queue_size, self._dead, start)
        subscription = Subscription(self, name, type, lanes, durable)
        self._subscriptions.append(subscription)
        self._interest.clear()
        self._feed(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """See `Subscription.cancel`."""
        with contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)
        self._interest.clear()
        feed = self._feeds.pop(subscription.durable or "", None)
        if feed is not None:
            feed.cancel()

    # -- delivering --------------------------------------------------------------------------------------------------

    async def publish(self, event: Any, *, key: str | None = None) -> None:
        """Hand an event to every matching subscription that is not durable, and return; nothing is stored.

        Waits only while a matching subscription's queue is full.

        Args:
            event: The payload, of any class.
            key: In place of the subscription's own key.
        """
        known = REGISTRY.by_type(type(event))
        name = known.name if known is not None else qualified_name(type(event))
        recorded = RecordedEvent(uuid7(), name, event, "", 0, 0, datetime.now(UTC), NO_METADATA)
        for subscription in tuple(self._subscriptions):
            if subscription.durable is None and subscription.wants(event):
                await subscription.lanes.put(Delivery(lambda: recorded, event, subscription.lanes.key_of(event, key)))

    def _committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        """After a commit: note what somebody here wants; decoding comes later, off the commit's path."""
        if not any(subscription.durable is None for subscription in self._subscriptions):
            return
        for unit, written in batch:
            for append in unit.appends:
                if any(self._is_wanted(record.type) for record in append.records):
                    self._waiting += committed(unit, written)
                    break
        if self._waiting and self._pump is None:
            self._pump = asyncio.ensure_future(self._deliver_committed())

    def _is_wanted(self, name: str) -> bool:
        if self._revision != REGISTRY.revision:
            self._interest.clear()
            self._revision = REGISTRY.revision
        wanted = self._interest.get(name)
        if wanted is None:
            names = set(name.split("+"))
            wanted = self._interest[name] = any(
                subscription.types is None or not names.isdisjoint(subscription.types)
                for subscription in self._subscriptions
                if subscription.durable is None
            )
        return wanted

    async def _deliver_committed(self) -> None:
        assert self._store is not None
        serializer = self._store.serializer
        try:
            while self._waiting:
                for record in unpack(self._waiting.popleft()):
                    for subscription in tuple(self._subscriptions):
                        types = subscription.types
                        if subscription.durable is None and (types is None or record.type in types):
                            await subscription.lanes.put(subscription.lanes.stored(serializer, record))
        finally:
            self._pump = None

    async def drain(self) -> None:
        """Wait until all that was published or committed up to now has been handled, or is a dead letter."""
        if self._store is not None and self._started:
            end = await self._store.storage.last_position()
            await asyncio.gather(*(feed.reached(end) for feed in self._feeds.values()))
        if self._pump is not None:
            await asyncio.wait((self._pump,))
        await asyncio.gather(*(subscription.lanes.idle() for subscription in self._subscriptions))

    # -- dead letters ------------------------------------------------------------------------------------------------

    async def dead_letters(self, *, limit: int = 100) -> list[DeadLetter]:
        """Events that a handler could not handle, oldest first; stored, where the bus has a store."""
        return await self._dead.listed(limit)

    async def retry_dead(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Hand a dead letter to its subscription once more; it is dead no longer until it fails again.

        Raises:
            NotRegisteredError: Its subscription is not here, or there is no such dead letter.
        """
        letter = await self._dead.get(id)
        if letter is None:
            raise NotRegisteredError(f"there is no dead letter {id!r}")
        for subscription in self._subscriptions:
            if subscription.name == letter.subscription:
                await subscription.lanes.put(subscription.lanes.revived(letter))
                await self._dead.drop(id)
                return
        raise NotRegisteredError(f"dead letter {id!r} belongs to {letter.subscription!r}, which has no handler here")

    async def drop_dead(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Forget a dead letter."""
        await self._dead.drop(id)

    def require_store(self) -> EventStore:
        """The store it is attached to.

        Raises:
            EngineStateError: It is attached to none.
        """
        if self._store is None:
            raise EngineStateError("this bus has no store: durable subscriptions need an engine's bus")
        return self._store


builtins_type: Final = type
