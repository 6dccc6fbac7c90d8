"""`EventBus`: events to handlers, in the background, in order where order matters, and none dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from event_workflow_engine._bus.carried import Published, events_in
from event_workflow_engine._bus.dead_letters import DeadLetter, DeadLetters
from event_workflow_engine._bus.durable import DurableFeed
from event_workflow_engine._bus.handling import HANDLING, Handling
from event_workflow_engine._bus.lanes import Lanes
from event_workflow_engine.callables import called
from event_workflow_engine.clock import Clock, Duration, SystemClock, seconds
from event_workflow_engine.errors import DefinitionError, EngineStateError, NotRegisteredError
from event_workflow_engine.event_store import known_metadata
from event_workflow_engine.events import NO_METADATA, REGISTRY, NewEvent, RecordedEvent
from event_workflow_engine.ids import uuid7
from event_workflow_engine.loops import require_loop
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.serialization import committed

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.storage.port import Record, Unit, Written

__all__ = ["DeadLetter", "EventBus", "Subscription"]

T = TypeVar("T")
Handler = Callable[[T], Awaitable[object] | object]
Key = Callable[[T], str]
Start = Literal["beginning", "now"]

FIVE_ATTEMPTS: Final = RetryPolicy(attempts=5)


class Subscription:
    """A handler and what it wants to see; made by `EventBus.subscribe`.

    Attributes:
        name: Its name in the log and in dead letters; that of a durable one is its checkpoint's too.
    """

    def __init__(
        self, bus: EventBus, name: str, wanted: type | Literal["*"], lanes: Lanes, durable: str | None, start: Start
    ) -> None:
        self.name = name
        self.wanted = wanted
        self.lanes = lanes
        self.durable = durable
        self.start = start
        self._bus = bus
        self._types: Sequence[str] = ()
        self._revision = -1

    def __repr__(self) -> str:
        """For the log."""
        return f"Subscription({self.name!r})"

    def cancel(self) -> None:
        """Deliver nothing more to it. Sync; again it does nothing.

        What it has been handed is still handled; a durable one's checkpoint stays, for the next that subscribes under
        its name.
        """
        self._bus.forget(self)

    def wants(self, payload: object) -> bool:
        """Whether a published event is for it."""
        return self.wanted == "*" or isinstance(payload, self.wanted)

    def types(self) -> Sequence[str]:
        """The names of the stored types it wants; empty: all."""
        if self.wanted != "*" and self._revision != REGISTRY.revision:
            self._types, self._revision = sorted(REGISTRY.names_for(self.wanted)), REGISTRY.revision
        return self._types

    def wants_type(self, name: str) -> bool:
        """Whether stored events of a type are for it."""
        return self.wanted == "*" or name in self.types()


class EventBus:
    """Hands events to handlers as background work.

    Events with the same key go to a handler one after the other, others side by side: the key's *stable* hash (never
    Python's ``hash``, which changes by process) chooses one of `partitions`. Sync handlers run in threads. A handler
    that raises is tried again by its policy, while the events behind it in its partition wait; then the event becomes a
    dead letter. None is dropped: what is not handled when the bus stops is a dead letter too, or is fed again.

    An engine's bus is connected to its store: what the engine commits reaches subscriptions, durable ones are fed with
    what any process commits, and dead letters are stored. A bus of one's own knows only what is published on it, keeps
    dead letters in memory, and needs no start.

    Args:
        partitions: For each subscription.
        queue_size: Events that wait in a partition before `publish` waits too.

    Raises:
        DefinitionError: A number is below 1.

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
            raise DefinitionError(
                f"EventBus(partitions={partitions}, queue_size={queue_size}): both must be at least 1"
            )
        self._partitions = partitions
        self._queue_size = queue_size
        self._subscriptions: list[Subscription] = []
        self._leaving: list[Subscription] = []
        self._dead = DeadLetters()
        self._clock: Clock = SystemClock()
        self._store: EventStore | None = None
        self._worker = ""
        self._context = copy_context()
        self._feeds: dict[str, DurableFeed] = {}
        self._ending: dict[str, asyncio.Future[None]] = {}
        self._waiting: list[Record] = []
        self._interest: dict[str, tuple[Subscription, ...]] = {}
        self._revision = -1
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._remove_hook: Callable[[], None] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def attach(self, store: EventStore, *, worker_id: str | None = None) -> None:
        """Connect it to a store: from `start` on committed events reach its subscriptions, dead letters are kept there.

        Args:
            store: The store.
            worker_id: This worker's id; without one durable subscriptions are not fed here. Default: as it was.

        Raises:
            EngineStateError: It has been started.
        """
        if self._started:
            raise EngineStateError("a bus that was started cannot be connected to another store: stop it first")
        self._store = store
        self._clock = store.clock
        self._worker = self._worker if worker_id is None else worker_id
        self._dead.attach(store)

    async def start(self) -> None:
        """Begin to deliver what is committed, and to feed durable subscriptions."""
        if self._started:
            return
        self._started = True
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        if self._store is None:
            return
        for subscription in self._subscriptions:
            self._connect(subscription)
        self._listen()

    async def stop(
        self,
        *,
        timeout: Duration = 10,  # noqa: ASYNC109 - it cuts off, and raises nothing
        haste: asyncio.Future[None] | None = None,
    ) -> None:
        """Let handlers end what they have, and let go of durable checkpoints.

        Args:
            timeout: After it handlers are cancelled (those in threads are left behind), and what was not handled is a
                dead letter; that of durable subscriptions is fed again. Seconds or timedelta.
            haste: When this is done, the timeout is over.
        """
        self._started = False
        self._deliver_committed()
        self._listen()
        for feed in self._feeds.values():
            feed.wind_down()
        every = [subscription.lanes for subscription in (*self._subscriptions, *self._leaving)]
        for lanes in every:
            lanes.wind_down()
        await _at_rest(every, seconds(timeout), () if haste is None else (haste,))
        for lanes in every:
            await lanes.cut_off()
        feeds, self._feeds = list(self._feeds.values()), {}
        await asyncio.gather(*(feed.stop() for feed in feeds), *self._ending.values())
        self._leaving.clear()
        self._ending.clear()
        self._loop = None

    def _connect(self, subscription: Subscription) -> None:
        """Give a subscription what it needs for stored events, once there is a store and the bus runs."""
        if self._store is None or not self._started:
            return
        subscription.lanes.attach(self._store, subscription.types, self._context)
        name = subscription.durable
        if name is None or not self._worker:
            return
        feed = self._feeds[name] = DurableFeed(
            self._store,
            name,
            self._worker,
            subscription.lanes,
            subscription.types,
            from_now=subscription.start == "now",
        )
        feed.start(self._ending.get(name))

    def _listen(self) -> None:
        """Hear of commits as long as somebody wants to know."""
        self._interest.clear()
        wanted = self._started and any(subscription.durable is None for subscription in self._subscriptions)
        if wanted and self._remove_hook is None and self._store is not None:
            self._remove_hook = self._store.storage.add_commit_hook(self._committed)
        elif not wanted and self._remove_hook is not None:
            self._remove_hook()
            self._remove_hook = None

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
        start: Start = ...,
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
        start: Start = ...,
    ) -> Subscription: ...
    def subscribe(
        self,
        type: Any,  # noqa: A002 - the contract's name
        handler: Handler[Any],
        *,
        durable: str | None = None,
        key: Key[Any] | None = None,
        retry: RetryPolicy | None = None,
        start: Start = "beginning",
    ) -> Subscription:
        """Deliver events of a type, or of those derived from it, to a handler. Sync, before or after the start.

        Without `durable` it gets what this bus publishes and what this engine commits, after the commit, in the order
        of commits; nothing from before, and nothing of other processes.

        Args:
            type: A class, or ``"*"`` for everything.
            handler: Sync or async; gets the payload. The whole event is `current_event`. Sync ones run in threads.
            durable: A name: it is then fed from the store with what any process commits, with a checkpoint, at least
                once, over restarts, on one worker of many at a time.
            key: Events of one key are handled in order. Default: the stream; what is only published has no order.
            retry: Five attempts by default. They are counted in memory: a restart begins anew.
            start: Where a new durable subscription begins; one that has a checkpoint goes on there.

        Raises:
            DefinitionError: The durable name is taken or empty, its type is not registered, or an argument is wrong.
            EngineStateError: `durable` on a bus without a store.
        """
        if type != "*" and not isinstance(type, _CLASS):
            raise DefinitionError(f"subscribe({type!r}, …): a class, or '*'")
        if not callable(handler):
            raise DefinitionError(f"subscribe(…, {handler!r}): the handler must be callable")
        if start not in ("beginning", "now"):
            raise DefinitionError(f"subscribe(start={start!r}): 'beginning' or 'now'")
        if durable is not None:
            self._check_durable(type, durable)
        name = durable if durable is not None else self._unused_name(type, handler)
        handling = Handling(
            name, handler, retry or FIVE_ATTEMPTS, self._dead, fed_again=durable is not None, threads=self._partitions
        )
        handling.clock = self._clock
        lanes = Lanes(handling, key, self._partitions, self._queue_size)
        subscription = Subscription(self, name, type, lanes, durable, start)
        self._subscriptions.append(subscription)
        self._connect(subscription)
        self._listen()
        return subscription

    def _check_durable(self, kind: Any, name: str) -> None:
        if self._store is None:
            raise EngineStateError(
                f"subscribe(durable={name!r}): this bus has no store to be fed from; use an engine's bus, or attach it"
            )
        if not name:
            raise DefinitionError(f"subscribe(durable={name!r}): a name that is not empty")
        if any(known.durable == name for known in self._subscriptions):
            raise DefinitionError(f"the durable subscription {name!r} exists already; its name must be its own")
        if kind != "*" and not REGISTRY.names_for(kind):
            raise DefinitionError(
                f"subscribe({kind.__qualname__}, …, durable={name!r}): neither it nor a class derived from it is an "
                'event, so none is stored: decorate it with @event("its-name")'
            )

    def _unused_name(self, kind: Any, handler: Handler[Any]) -> str:
        """The same in the next run, as long as subscriptions are made in the same order: dead letters bear it."""
        name = base = f"{called(handler)}@{'*' if kind == '*' else qualified_name(kind)}"
        taken = {known.name for known in self._subscriptions}
        number = 1
        while name in taken:
            number += 1
            name = f"{base}#{number}"
        return name

    def forget(self, subscription: Subscription) -> None:
        """See `Subscription.cancel`."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        self._leaving = [one for one in self._leaving if one.lanes.tasks]
        self._leaving.append(subscription)
        self._listen()
        name = subscription.durable or ""
        feed = self._feeds.pop(name, None)
        if feed is not None:
            feed.wind_down()
            ending = self._ending[name] = asyncio.ensure_future(self._end(subscription, feed))
            ending.add_done_callback(lambda done: self._ended(name, done))

    async def _end(self, subscription: Subscription, feed: DurableFeed) -> None:
        await subscription.lanes.drained()
        await feed.stop()

    def _ended(self, name: str, ending: asyncio.Future[None]) -> None:
        if self._ending.get(name) is ending:
            del self._ending[name]

    # -- delivering --------------------------------------------------------------------------------------------------

    async def publish(self, event: Any, *, key: str | None = None) -> None:
        """Hand an event to every matching subscription that is not durable, and return; nothing is stored.

        Waits only while a matching subscription's partition is full; not inside of a handler, which might wait for
        itself. What the context knows (the saga, the event that is being handled) goes into the event's metadata;
        handlers run in a copy of the caller's context, outside of its saga.

        Args:
            event: The payload, of any class; of a `NewEvent` its payload is what handlers get.
            key: In place of the subscription's own key.

        Raises:
            EngineStateError: The bus was started on another event loop.
        """
        if self._loop is not None:
            require_loop(self._loop, "the event bus")
        published: Published | None = None
        full: list[asyncio.Future[None]] = []
        payload = event.data if isinstance(event, NewEvent) else event
        for subscription in tuple(self._subscriptions):
            if subscription.durable is None and subscription.wants(payload):
                if published is None:
                    published = self._published(event)
                room = subscription.lanes.publish(published, key)
                if room is not None:
                    full.append(room)
        for room in full:
            await room

    def _published(self, event: Any) -> Published:
        now = self._clock.now()
        if isinstance(event, NewEvent):
            metadata = known_metadata(event.metadata)
            event_id, name, payload = event.id or uuid7(), event.type, event.data
        else:
            known = REGISTRY.by_type(type(event))
            metadata = known_metadata(None)
            event_id, name, payload = uuid7(), qualified_name(type(event)) if known is None else known.name, event
        return Published(RecordedEvent(event_id, name, payload, "", 0, 0, now, metadata or NO_METADATA))

    def _committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        """After a commit: note what somebody here wants; decoding comes later, off the commit's path."""
        if self._revision != REGISTRY.revision:
            self._interest.clear()
            self._revision = REGISTRY.revision
        interest, waiting = self._interest, self._waiting
        was_empty = not waiting
        for unit, written in batch:
            for append in unit.appends:
                for record in append.records:
                    wanted = interest.get(record.type)
                    if wanted is None:
                        wanted = interest[record.type] = self._interested(record.type)
                    if wanted:
                        break
                else:
                    continue
                waiting += committed(unit, written)
                break
        if was_empty and waiting:
            asyncio.get_running_loop().call_soon(self._deliver_committed)

    def _interested(self, name: str) -> tuple[Subscription, ...]:
        kinds = name.split("+")
        return tuple(
            subscription
            for subscription in self._subscriptions
            if subscription.durable is None and any(subscription.wants_type(kind) for kind in kinds)
        )

    def _deliver_committed(self) -> None:
        if not self._waiting or self._store is None:
            return
        records, self._waiting = self._waiting, []
        for record in records:
            interested = self._interested_in(record.type)
            if interested:
                for event in events_in(self._store.serializer, record):
                    kind = event.record.type
                    for subscription in interested if kind == record.type else self._interested_in(kind):
                        subscription.lanes.take(event)

    def _interested_in(self, name: str) -> tuple[Subscription, ...]:
        interested = self._interest.get(name)
        if interested is None:
            interested = self._interest[name] = self._interested(name)
        return interested

    async def drain(self) -> None:
        """Wait until all that was published or committed up to now has been handled, or is a dead letter.

        A durable subscription counts where it is fed on this worker. What handlers publish meanwhile does not count.

        Raises:
            EngineStateError: Called by a handler, which would wait for itself.
        """
        handling = HANDLING.get()
        if handling is not None and handling.under_way:
            raise EngineStateError("drain() was called inside of a handler, and would wait for it")
        if self._loop is not None:
            require_loop(self._loop, "the event bus")
        if self._store is not None and self._started:
            end = await self._store.storage.last_position()
            self._deliver_committed()
            await asyncio.gather(*(feed.reached(end) for feed in self._feeds.values()))
        for subscription in (*self._subscriptions, *self._leaving):
            await subscription.lanes.drained()

    # -- dead letters ------------------------------------------------------------------------------------------------

    async def dead_letters(self, *, limit: int = 100) -> list[DeadLetter]:
        """Events that a handler could not handle, the oldest first; stored, where the bus has a store.

        Args:
            limit: At most so many.
        """
        return await self._dead.listed(limit)

    async def retry_dead(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Hand a dead letter to its subscription once more, and return. Handled, it is one no longer.

        Args:
            id: The dead letter's id.

        Raises:
            NotRegisteredError: Its subscription is not here, or there is no such dead letter.
        """
        by_name = {qualified_name(one.wanted): one.wanted for one in self._subscriptions if one.wanted != "*"}
        found = await self._dead.get(id, by_name)
        if found is None:
            raise NotRegisteredError(f"there is no dead letter {id!r}")
        letter, carried = found
        for subscription in self._subscriptions:
            if subscription.name == letter.subscription:
                subscription.lanes.retry(carried, id, letter.attempts)
                return
        raise NotRegisteredError(f"dead letter {id!r} belongs to {letter.subscription!r}, which has no handler here")

    async def drop_dead(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Forget a dead letter, if there is one of that id."""
        await self._dead.drop(id)


_CLASS: Final = type


async def _at_rest(
    every: Sequence[Lanes],
    timeout: float,  # noqa: ASYNC109 - it cuts off, and raises nothing
    haste: Sequence[asyncio.Future[None]],
) -> None:
    """Wait until none has anything to do: handlers publish to others on the way."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while (tasks := [task for lanes in every for task in lanes.tasks]) and (left := end - loop.time()) > 0:
        if any(one.done() for one in haste):
            return
        await asyncio.wait([*tasks, *haste], timeout=left, return_when=asyncio.FIRST_COMPLETED)
