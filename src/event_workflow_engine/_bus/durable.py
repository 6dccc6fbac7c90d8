"""Feeds one durable subscription from the store: at least once, with a checkpoint, on one worker at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from event_workflow_engine._bus.carried import events_in
from event_workflow_engine.errors import EngineStateError, LogRewoundError, RowConflictError, StorageError
from event_workflow_engine.feeds import Bell, Feed, Progress, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from event_workflow_engine._bus.lanes import Lanes
    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.storage.port import Unit, Written

__all__ = ["DurableFeed"]

_log: Final = logging.getLogger("event_workflow_engine.bus")
_PAGE: Final = 256
_WINDOW: Final = 10_000
"""Events that may be handled behind one that is stuck: so many are handled again after a crash, at most."""

_SAVE_S: Final = 0.1
_SAVE_EVENTS: Final = 1000
_PASSED: Final = 1000
"""Positions of other types that are passed in memory before the checkpoint on disk follows."""

_STANDBY_S: Final = 0.5
_BETWEEN_TRIES_S: Final = 0.05
_BACK_OFF_S: Final = 0.5


class _Prefix:
    """Up to where all events are handled, while they are handled side by side."""

    __slots__ = ("_done", "_order", "handled", "read")

    def __init__(self, read: int) -> None:
        self.read = read
        self.handled = 0
        self._order: deque[int] = deque()
        self._done: set[int] = set()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def position(self) -> int:
        """All up to here is handled."""
        return self._order[0] - 1 if self._order else self.read

    def begin(self, position: int) -> None:
        """An event was handed out."""
        self._order.append(position)

    def end(self, position: int) -> None:
        """It was handled."""
        self._done.add(position)
        while self._order and self._order[0] in self._done:
            self._done.discard(self._order.popleft())
            self.handled += 1


class DurableFeed:
    """Reads the log behind a checkpoint into lanes, and moves the checkpoint behind what was handled.

    The checkpoint is the contiguous prefix: it never passes an event that is still being handled. It is written at most
    some ten times a second, so after a crash events that were handled since are handled again: at least once. Which
    worker feeds is told by the checkpoint's row (see `Feed`): another takes over when this one stops or is declared
    dead; what this one had handed out and not begun by then is dropped here.

    Args:
        store: The store.
        name: The subscription's name.
        worker: This worker's id.
        lanes: Handle the events.
        types: The names of the wanted types; empty: all.
        from_now: A new checkpoint begins at the log's end, not at its beginning.
    """

    def __init__(
        self,
        store: EventStore,
        name: str,
        worker: str,
        lanes: Lanes,
        types: Callable[[], Sequence[str]],
        *,
        from_now: bool,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._types = types
        self._from_now = from_now
        self._feed = Feed(store.storage, f"subscription:{name}", worker, store.now)
        self._prefix = _Prefix(0)
        self._tail = Tail(store.storage, self._feed.name)
        self._owned = False
        self._stopping = False
        self._saved_at = 0.0
        self._progress = Progress()
        self._bell = Bell(store.storage, self._wakes)
        self._first_commit: int | None = None
        self._unhook = store.storage.add_commit_hook(self._note_first) if from_now else None
        self._task: asyncio.Task[None] | None = None

    def start(self, after: asyncio.Future[None] | None = None) -> None:
        """Begin to feed.

        Args:
            after: When this is done.
        """
        self._task = asyncio.create_task(self._run(after), name=f"ewe-feed:{self._feed.name}")

    def wind_down(self) -> None:
        """Hand out nothing more."""
        self._stopping = True
        self._bell.ring()
        self._progress.tell()

    async def stop(self) -> None:
        """Note what was handled, and let another worker go on. The lanes are at rest by then."""
        self.wind_down()
        if self._task is not None:
            # Not cancelled: a checkpoint that is on its way is seen to land.
            await asyncio.wait((self._task,))
        self._bell.close()
        if self._unhook is not None:
            self._unhook()
        if not self._owned:
            return
        self._owned = False
        try:
            await self._save()
            await self._feed.release()
        except (StorageError, EngineStateError) as error:
            _log.warning("%s could not be handed over: %s", self._feed.name, error)

    async def reached(self, position: int) -> None:
        """Wait until all events up to a position were handled; returns where another worker feeds."""
        while self._task is not None and not self._task.done() and not self._stopping:
            moved = self._progress.moved()
            if self._owned and self._prefix.position >= position and await self._is_unrewound():
                return
            if not self._owned and await self._feed.is_fed_elsewhere():
                return
            self._bell.ring()
            await moved

    async def _is_unrewound(self) -> bool:
        """Whether the events that were handled are those that the log holds; otherwise this feed is about to stop."""
        try:
            await self._tail.check()
        except LogRewoundError:
            return False
        return True

    # -- owning ------------------------------------------------------------------------------------------------------

    async def _run(self, after: asyncio.Future[None] | None) -> None:
        if after is not None:
            await asyncio.wait((after,))
        while not self._stopping:
            try:
                if await self._claim():
                    await self._feed_on()
                else:
                    self._progress.tell()
                    await self._stand_by()
            except LogRewoundError as error:
                _log.error("%s stops: %s", self._feed.name, error)
                break
            except EngineStateError:  # the store was closed under it
                break
            except RowConflictError:
                _log.warning("%s is fed by another worker now", self._feed.name)
                self._lose()
            except Exception:  # noqa: BLE001 - whatever it is, it may pass; the events wait in the log
                _log.exception("%s failed; trying again", self._feed.name)
                self._lose()
                await self._bell.wait(_BACK_OFF_S)
        self._progress.tell()

    async def _stand_by(self) -> None:
        """Wait until it is worth trying again: whoever has it may have let go of it, or died, which rings nothing."""
        await self._bell.wait(_STANDBY_S)
        if not self._stopping:
            await asyncio.sleep(_BETWEEN_TRIES_S)

    def _lose(self) -> None:
        self._owned = False
        self._lanes.on_handled = None
        self._lanes.drop()

    async def _claim(self) -> bool:
        feed = self._feed
        # The checkpoint goes back with a log that is rewound, and what was handled does not.
        await self._tail.check()
        if not await feed.claim(await self._store.storage.last_position() if self._from_now else 0):
            return False
        if feed.is_new and self._first_commit is not None and self._first_commit <= feed.position:
            # Committed here behind the call of `subscribe`, so it is part of what comes "now".
            await feed.save(self._first_commit - 1)
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        self._prefix = prefix = _Prefix(feed.position)
        self._tail = Tail(self._store.storage, feed.name, feed.position)
        self._lanes.on_handled = self._handled_by(prefix)
        self._owned = True
        self._progress.tell()
        return True

    def _note_first(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        if self._first_commit is None:
            for _, written in batch:
                for landed in written.appended:
                    self._first_commit = landed.position - landed.count + 1
                    return

    # -- feeding -----------------------------------------------------------------------------------------------------

    def _wakes(self, unit: Unit) -> bool:
        types = self._types()
        for append in unit.appends:
            for record in append.records:
                kind = record.type
                if not types or kind in types or ("+" in kind and not set(types).isdisjoint(kind.split("+"))):
                    return True
        return False

    async def _feed_on(self) -> None:
        rang = True
        while not self._stopping:
            more = await self._read_page() if rang else False
            if self._is_due():
                await self._save()
            if not more:
                behind = len(self._prefix) or self._prefix.handled
                rang = await self._bell.wait(_SAVE_S if behind else None)

    async def _read_page(self) -> bool:
        """Hand out the next page; whether there may be more to hand out now."""
        prefix, tail = self._prefix, self._tail
        if len(prefix) >= _WINDOW:
            return False  # rung again when something was handled
        types = self._types()
        records = await tail.look(_PAGE, types)
        start = prefix.read
        for record in records:
            if self._stopping:
                return False
            for event in events_in(self._store.serializer, record):
                position = event.record.position
                if position > start and (not types or event.flaw is not None or event.record.type in types):
                    prefix.begin(position)
                    self._lanes.take(event)
            tail.move(record)
            prefix.read = record.position
        tail.move_on()
        prefix.read = tail.position
        self._progress.tell()
        return tail.more

    def _handled_by(self, prefix: _Prefix) -> Callable[[int], None]:
        def handled(position: int) -> None:
            full = len(prefix) >= _WINDOW
            prefix.end(position)
            self._progress.tell()
            if full and len(prefix) < _WINDOW:
                self._bell.ring()

        return handled

    def _is_due(self) -> bool:
        prefix, ahead = self._prefix, self._prefix.position - self._feed.position
        if prefix.handled >= _SAVE_EVENTS or ahead >= _PASSED:
            return True
        return bool(prefix.handled) and asyncio.get_running_loop().time() - self._saved_at >= _SAVE_S

    async def _save(self) -> None:
        prefix = self._prefix
        position, handled = prefix.position, prefix.handled
        if position > self._feed.position:
            await self._tail.check()
            await self._feed.save(position, handled)
            prefix.handled -= handled
        self._saved_at = asyncio.get_running_loop().time()
