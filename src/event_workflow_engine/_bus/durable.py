"""Feeds one durable subscription from the store: at least once, with a checkpoint, on one worker at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import LogRewoundError, RowConflictError, StorageError
from event_workflow_engine.feeds import Bell, Feed
from event_workflow_engine.serialization import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine._bus.delivery import Lanes
    from event_workflow_engine.event_store import EventStore

__all__ = ["DurableFeed"]

_log: Final = logging.getLogger("event_workflow_engine.bus")
_PAGE: Final = 256
_WINDOW: Final = 4096
_BACK_OFF_S: Final = 0.5


class DurableFeed:
    """Reads the log behind a checkpoint into lanes, and moves the checkpoint behind what was handled.

    The checkpoint is the contiguous prefix: it never passes an event that is still being handled. After a crash, events
    behind it are handed out again.
    """

    def __init__(
        self, store: EventStore, name: str, worker: str, lanes: Lanes, types: Callable[[], frozenset[str] | None]
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._types = types
        self._feed = Feed(store.storage, f"subscription:{name}", worker, store.now)
        self._open: dict[int, None] = {}
        self._read = 0
        self._owned = False
        self._stop_asked = asyncio.Event()
        self._progress = asyncio.Event()
        self._bell: Bell | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to feed."""
        self._bell = Bell(self._store.storage)
        self._task = asyncio.create_task(self._run(), name=f"ewe-feed:{self._feed.name}")

    def cancel(self) -> None:
        """Feed no more; `stop` without waiting."""
        if self._task is not None:
            self._task.cancel()
        if self._bell is not None:
            self._bell.close()

    async def stop(self) -> None:
        """Feed no more, note what was handled, and let another worker go on."""
        self._stop_asked.set()  # not cancelled: a checkpoint that is on its way is seen to land
        if self._bell is not None:
            self._bell.ring()
        self._progress.set()
        await self._lanes.stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._lanes.stop()
        self.cancel()
        if self._owned:
            try:
                await self._save()
                await self._feed.release()
            except StorageError as error:
                _log.warning("%s could not be handed over: %s", self._feed.name, error)

    async def reached(self, position: int) -> None:
        """Wait until all events up to a position were handled; returns at once where another worker feeds."""
        while self._task is not None and not self._task.done() and (not self._owned or self._prefix() < position):
            if not self._owned and await self._fed_elsewhere():
                return
            self._progress.clear()
            await self._progress.wait()

    async def _fed_elsewhere(self) -> bool:
        row = await self._store.storage.get("checkpoints", (self._feed.name,))
        return row is not None and row["owner"] not in ("", None)

    def _prefix(self) -> int:
        return next(iter(self._open)) - 1 if self._open else self._read

    async def _run(self) -> None:
        assert self._bell is not None
        while not self._stop_asked.is_set():
            try:
                while not self._stop_asked.is_set() and not await self._feed.claim(await self._start()):
                    await self._bell.wait()
                if self._stop_asked.is_set():
                    return
                self._owned = True
                self._read = self._feed.position
                self._progress.set()
                await self._read_on()
            except LogRewoundError as error:
                _log.error("%s stops: %s", self._feed.name, error)
                self._owned = False
                self._progress.set()
                return
            except RowConflictError:
                _log.warning("%s is fed by another worker now", self._feed.name)
                self._owned = False
            except StorageError as error:
                _log.warning("%s: %s; trying again", self._feed.name, error)
                await asyncio.sleep(_BACK_OFF_S)

    async def _start(self) -> int:
        return await self._store.storage.last_position() if self._lanes.begins == "now" else 0

    async def _read_on(self) -> None:
        assert self._bell is not None
        while not self._stop_asked.is_set():
            types = self._types()
            records = await self._store.storage.read_log(
                after=self._read, limit=_PAGE, types=sorted(types) if types is not None else ()
            )
            for record in records:
                if self._stop_asked.is_set():
                    return
                for single in unpack(record):
                    if types is None or single.type in types:
                        self._open[single.position] = None
                        await self._lanes.put(
                            self._lanes.stored(self._store.serializer, single, self._handled(single.position))
                        )
                self._read = record.position
            if not records:
                await self._catch_up(types)
                continue
            while len(self._open) > _WINDOW and not self._stop_asked.is_set():
                self._progress.clear()
                await self._progress.wait()
            await self._save()

    async def _catch_up(self, types: frozenset[str] | None) -> None:
        """Nothing more to read: pass events of other types, note what was handled, wait for more."""
        assert self._bell is not None
        end = await self._store.storage.last_position()
        if types is not None and not await self._store.storage.read_log(after=self._read, limit=1, types=sorted(types)):
            self._read = max(self._read, end)
        self._progress.set()
        await self._save()
        await self._bell.wait()

    def _handled(self, position: int) -> Callable[[], None]:
        def handled() -> None:
            self._open.pop(position, None)
            self._progress.set()
            if not self._open and self._bell is not None:
                self._bell.ring()

        return handled

    async def _save(self) -> None:
        prefix = self._prefix()
        if prefix > self._feed.position:
            await self._feed.save(prefix)
