"""One subscription's partitions: each in order, side by side, with bounded queues."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine._bus.carried import Carried, Published, Stored, events_in
from event_workflow_engine._bus.handling import HANDLING, Delivery, Handling
from event_workflow_engine.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from event_workflow_engine.event_store import EventStore

__all__ = ["Lanes"]

_log: Final = logging.getLogger("event_workflow_engine.bus")
_PAGE: Final = 256
_BACK_OFF_S: Final = 0.5

_running: Final[set[asyncio.Task[None]]] = set()
"""The loop itself holds its tasks only weakly."""


class _Lane:
    """A partition.

    Attributes:
        queue: What waits; the first is being handled.
        line: Published events that wait for room, each with its publisher's future.
        behind: Positions of stored events that wait in the log, since the queue was full.
        taken: How many events it was given so far.
        done: How many of them it is rid of.
        marks: Who waits for `done` to reach a number.
        task: Works as long as there is something to do.
    """

    __slots__ = ("behind", "done", "line", "marks", "queue", "taken", "task")

    def __init__(self) -> None:
        self.queue: deque[Delivery] = deque()
        self.line: deque[tuple[asyncio.Future[None], Delivery]] = deque()
        self.behind: deque[int] = deque()
        self.taken = self.done = 0
        self.marks: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.task: asyncio.Task[None] | None = None


class Lanes:
    """Delivers one subscription's events, in partitions by a stable hash of their key.

    Published events that find their partition's queue full make their publisher wait. Stored ones never make anybody
    wait: they stay in the log, and only their positions are kept, until there is room. So a handler that hangs holds up
    its own partition and nothing else.

    Args:
        handling: Calls the handler.
        key: The key of a payload. Default: the stream; what is only published has no order then.
        partitions: How many.
        queue_size: How many events wait in each.
    """

    def __init__(self, handling: Handling, key: Callable[[Any], str] | None, partitions: int, queue_size: int) -> None:
        self.handling = handling
        self.on_handled: Callable[[int], None] | None = None
        self._key = key
        self._lanes = [_Lane() for _ in range(partitions)]
        self._queue_size = queue_size
        self._next = 0
        self._base = copy_context()
        self._store: EventStore | None = None
        self._types: Callable[[], Sequence[str]] = tuple

    def attach(self, store: EventStore, types: Callable[[], Sequence[str]], context: Context) -> None:
        """Deliver stored events.

        Args:
            store: Whose they are.
            types: The names of those that it is given; empty: all.
            context: What their handlers run in.
        """
        self._store = store
        self._types = types
        self._base = context
        self.handling.clock = store.clock

    # -- taking ------------------------------------------------------------------------------------------------------

    def publish(self, event: Published, key: str | None) -> asyncio.Future[None] | None:
        """Take a published event; where its partition is full, a future for when there was room."""
        flaw: Exception | None = None
        try:
            if key is None and self._key is not None:
                key = self._key(event.payload())
            lane = self._lane(key)
        except Exception as error:  # noqa: BLE001 - a user's key function may raise anything; that concerns no publisher
            lane, flaw = self._lane(None), error
        # What a handler publishes must not wait for that handler.
        waits = HANDLING.get() is None
        delivery = Delivery(event, copy_context(), flaw=flaw)
        if waits and (len(lane.queue) >= self._queue_size or lane.line or lane.behind):
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            lane.line.append((room, delivery))
            return room
        self._queue(lane, delivery)
        return None

    def take(self, event: Stored) -> None:
        """Take a stored event. Never waits."""
        lane, flaw = self._lane_of(event)
        if lane.behind or len(lane.queue) >= self._queue_size:
            lane.behind.append(event.record.position)
            lane.taken += 1
            return
        self._queue(lane, self._delivery(event, flaw))

    def retry(self, event: Carried, letter: str, attempts: int) -> None:
        """Take an event that was a dead letter."""
        lane, flaw = self._lane_of(event)
        self._queue(lane, Delivery(event, self._base, letter=letter, attempts=attempts, flaw=flaw))

    def _delivery(self, event: Stored, flaw: Exception | None) -> Delivery:
        return Delivery(event, self._base, handled=self.on_handled, flaw=flaw)

    def _lane_of(self, event: Carried) -> tuple[_Lane, Exception | None]:
        """The partition of an event; one whose key cannot be told goes to that of its stream, to fail there."""
        stream = event.record.stream if event.record is not None else None
        if self._key is None:
            return self._lane(stream), None
        try:
            return self._lane(self._key(event.payload())), None
        except Exception as error:  # noqa: BLE001 - a user's upcaster or key function may raise anything
            return self._lane(stream), error

    def _lane(self, key: str | None) -> _Lane:
        if key is None:
            self._next = (self._next + 1) % len(self._lanes)
            return self._lanes[self._next]
        # Not Python's hash, which differs from process to process.
        return self._lanes[zlib.crc32(str(key).encode(errors="surrogatepass")) % len(self._lanes)]

    def _queue(self, lane: _Lane, delivery: Delivery) -> None:
        lane.queue.append(delivery)
        lane.taken += 1
        if lane.task is None:
            lane.task = asyncio.create_task(self._work(lane), name=f"ewe-bus:{self.handling.name}")
            _running.add(lane.task)
            lane.task.add_done_callback(_running.discard)

    # -- working -----------------------------------------------------------------------------------------------------

    async def _work(self, lane: _Lane) -> None:
        try:
            while lane.queue or lane.behind:
                if lane.behind and len(lane.queue) <= self._queue_size // 2:
                    fetched = await self._fetch(lane)
                    if not fetched and not lane.queue:
                        await asyncio.sleep(_BACK_OFF_S)
                if not lane.queue:
                    continue
                delivery = lane.queue[0]
                handled = await self.handling.handle(delivery)
                if lane.queue and lane.queue[0] is delivery:
                    lane.queue.popleft()
                    self._count(lane, 1)
                    if handled and delivery.handled is not None and delivery.carried.record is not None:
                        delivery.handled(delivery.carried.record.position)
                self._admit(lane)
        finally:
            lane.task = None

    def _admit(self, lane: _Lane) -> None:
        """Let in who waits in line, behind what waits in the log."""
        while lane.line and not lane.behind and len(lane.queue) < self._queue_size:
            room, delivery = lane.line.popleft()
            if not room.done():
                room.set_result(None)
                self._queue(lane, delivery)

    def _count(self, lane: _Lane, done: int) -> None:
        lane.done += done
        while lane.marks and lane.marks[0][0] <= lane.done:
            _, mark = lane.marks.popleft()
            if not mark.done():
                mark.set_result(None)

    async def _fetch(self, lane: _Lane) -> bool:
        """Read the next of what waits in the log; whether the log could be read."""
        store = self._store
        assert store is not None
        try:
            records = await store.storage.read_log(after=lane.behind[0] - 1, limit=_PAGE, types=self._types())
        except StorageError as error:
            _log.warning("subscription %s: %s; trying again", self.handling.name, error)
            return False
        if not records or not lane.behind:
            while lane.behind:
                self._gone(lane, lane.behind.popleft())
            self._admit(lane)
            return True
        upto = records[-1].position
        found = {event.record.position: event for record in records for event in events_in(store.serializer, record)}
        while lane.behind and lane.behind[0] <= upto:
            position = lane.behind.popleft()
            event = found.get(position)
            if event is None:
                self._gone(lane, position)
            else:
                lane.queue.append(self._delivery(event, None if self._key is None else self._lane_of(event)[1]))
        return True

    def _gone(self, lane: _Lane, position: int) -> None:
        _log.error("subscription %s: the event at position %d is in the log no more", self.handling.name, position)
        self._count(lane, 1)
        if self.on_handled is not None:
            self.on_handled(position)

    # -- waiting and stopping ----------------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Wait until all that was taken up to now is handled or a dead letter."""
        marks: list[asyncio.Future[None]] = []
        for lane in self._lanes:
            if lane.taken > lane.done:
                marks.append(asyncio.get_running_loop().create_future())
                lane.marks.append((lane.taken, marks[-1]))
        for mark in marks:
            await mark

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What is at work."""
        return [lane.task for lane in self._lanes if lane.task is not None]

    def drop(self) -> None:
        """Forget what is not being handled: it is another worker's now, or is fed again."""
        for lane in self._lanes:
            dropped = len(lane.behind)
            lane.behind.clear()
            while len(lane.queue) > 1:
                lane.queue.pop()
                dropped += 1
            self._count(lane, dropped)

    def wind_down(self) -> None:
        """Come to an end soon: nothing that fails is tried again, and what is fed again is let go of."""
        self.handling.stop()
        if self.handling.fed_again:
            self.drop()

    async def cut_off(self) -> None:
        """End what still runs. What was not handled is a dead letter, unless it is fed again."""
        late = self.tasks
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        for lane in self._lanes:
            await self._clear(lane)
        self.handling.stopped()

    async def _clear(self, lane: _Lane) -> None:
        while lane.line:
            room, delivery = lane.line.popleft()
            if not room.done():
                room.set_result(None)
                lane.queue.append(delivery)
                lane.taken += 1
        while (lane.queue or lane.behind) and not self.handling.fed_again:
            while lane.queue:
                await self.handling.abandon(lane.queue[0])
                lane.queue.popleft()
                self._count(lane, 1)
            if lane.behind and not await self._fetch(lane):
                _log.error("subscription %s: %d events stay unhandled", self.handling.name, len(lane.behind))
                break
        lane.queue.clear()
        lane.behind.clear()
        self._count(lane, lane.taken - lane.done)
