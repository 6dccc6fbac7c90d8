"""One subscription's delivery: partitions in order, side by side, with retries and dead letters."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from event_workflow_engine.callables import call_info
from event_workflow_engine.clock import from_micros
from event_workflow_engine.events import CURRENT_EVENT, NO_METADATA, RecordedEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine._bus.dead_letters import DeadLetter, DeadLetters
    from event_workflow_engine.retries import RetryPolicy
    from event_workflow_engine.serialization import EventSerializer
    from event_workflow_engine.storage.port import Record

__all__ = ["Delivery", "Lanes"]

_log: Final = logging.getLogger("event_workflow_engine.bus")
_THREADS: Final = 8


class Delivery:
    """An event on its way to a handler.

    Args:
        event: Makes the whole event.
        payload: What the handler gets.
        key: Chooses the partition; ``None``: any.
        handled: Called when it was handled, or is a dead letter.
        schema: The payload's schema version.
    """

    __slots__ = ("event", "handled", "key", "payload", "schema")

    def __init__(
        self,
        event: Callable[[], RecordedEvent[Any]],
        payload: Any,
        key: str | None,
        handled: Callable[[], None] | None = None,
        schema: int = 1,
    ) -> None:
        self.event = event
        self.payload = payload
        self.key = key
        self.handled = handled
        self.schema = schema


class _Lane:
    """A partition's queue; its task lives while there is something in it."""

    __slots__ = ("queue", "room", "task")

    def __init__(self) -> None:
        self.queue: deque[Delivery] = deque()
        self.room = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Lanes:
    """Delivers one subscription's events."""

    def __init__(
        self,
        name: str,
        handler: Callable[[Any], Any],
        key: Callable[[Any], str] | None,
        retry: RetryPolicy,
        partitions: int,
        queue_size: int,
        dead: DeadLetters,
        start: Literal["beginning", "now"],
    ) -> None:
        self.name = name
        self.begins = start
        self._handler = handler
        self._is_async = call_info(handler).is_async
        self._key = key
        self._retry = retry
        self._lanes = [_Lane() for _ in range(partitions)]
        self._queue_size = queue_size
        self._dead = dead
        self._next = 0
        self._pool: ThreadPoolExecutor | None = None

    def key_of(self, payload: Any, given: str | None) -> str | None:
        """The key of a published event."""
        if given is not None or self._key is None:
            return given
        return str(self._key(payload))

    def stored(
        self, serializer: EventSerializer, record: Record, handled: Callable[[], None] | None = None
    ) -> Delivery:
        """The delivery of a stored event; one that cannot be read fails like a handler that raises."""
        try:
            payload = serializer.payload(record)
            key = record.stream if self._key is None else str(self._key(payload))
        except Exception as error:  # noqa: BLE001 - a user's upcaster or key may raise anything; it becomes a dead letter
            return Delivery(lambda: _raw_event(record), _Unreadable(error), record.stream, handled, record.schema)
        return Delivery(lambda: serializer.event(record), payload, key, handled, record.schema)

    def revived(self, letter: DeadLetter) -> Delivery:
        """The delivery of a dead letter."""
        return Delivery(lambda: letter.event, letter.event.data, letter.event.stream or None)

    async def put(self, delivery: Delivery) -> None:
        """Queue it in its partition, waiting while that is full."""
        lane = self._lane(delivery.key)
        while len(lane.queue) >= self._queue_size:
            lane.room.clear()
            await lane.room.wait()
        lane.queue.append(delivery)
        if lane.task is None:
            # A context of its own: what publishes is not what handles.
            lane.task = asyncio.create_task(self._work(lane), name=f"ewe-bus:{self.name}")

    def _lane(self, key: str | None) -> _Lane:
        if key is None:
            self._next = (self._next + 1) % len(self._lanes)
            return self._lanes[self._next]
        return self._lanes[zlib.crc32(key.encode()) % len(self._lanes)]

    async def _work(self, lane: _Lane) -> None:
        try:
            while lane.queue:
                delivery = lane.queue[0]
                await self._handle(delivery)
                lane.queue.popleft()
                lane.room.set()
                if delivery.handled is not None:
                    delivery.handled()
        finally:
            lane.task = None

    async def _handle(self, delivery: Delivery) -> None:
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._call(delivery)
            except Exception as error:  # noqa: BLE001 - a handler may raise anything; none of it is dropped
                if not self._retry.may_follow(attempt) or isinstance(error, self._retry.never):
                    await self._bury(delivery, error, attempt)
                    return
                await asyncio.sleep(self._retry.wait_after(attempt))
            else:
                return

    async def _call(self, delivery: Delivery) -> None:
        if isinstance(delivery.payload, _Unreadable):
            raise delivery.payload.error
        context = contextvars.copy_context()
        context.run(CURRENT_EVENT.set, delivery.event)
        if self._is_async:
            await asyncio.create_task(self._handler(delivery.payload), context=context)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ewe-bus")
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._pool, context.run, self._handler, delivery.payload)
        if inspect.isawaitable(result):
            await result

    async def _bury(self, delivery: Delivery, error: Exception, attempts: int) -> None:
        event = delivery.event()
        _log.error("subscription %s: %s %s is a dead letter", self.name, event.type, event.id, exc_info=error)
        while True:
            try:
                await self._dead.add(self.name, event, delivery.schema, error, attempts, datetime.now(UTC))
            except Exception:  # noqa: BLE001 - the event must not be dropped because the store is out of reach for a while
                _log.exception("subscription %s: a dead letter cannot be stored, trying again", self.name)
                await asyncio.sleep(self._retry.wait_after(attempts))
            else:
                return

    async def idle(self) -> None:
        """Wait until all that was queued has been handled."""
        while working := [lane.task for lane in self._lanes if lane.task is not None]:
            await asyncio.wait(working)

    async def stop(self) -> None:
        """Let what is being handled end; what still waits is dropped here (durable ones are fed again)."""
        for lane in self._lanes:
            while len(lane.queue) > 1:
                lane.queue.pop()
            lane.room.set()
        await self.idle()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


class _Unreadable:
    """Stands for a payload that cannot be decoded."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def _raw_event(record: Record) -> RecordedEvent[Any]:
    text = record.data.decode(errors="replace")
    when = from_micros(record.recorded_at)
    return RecordedEvent(
        record.id, record.type, text, record.stream, record.version, record.position, when, NO_METADATA
    )
