"""Runs one projection: catches up, turns inline, rebuilds beside the live one, takes over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine._projections.definitions import DocumentProjection, Projection
from event_workflow_engine._projections.feeding import GenerationFeed, checkpoint_name
from event_workflow_engine.errors import (
    EngineStateError,
    LogRewoundError,
    RowConflictError,
    StorageError,
    WorkflowError,
)
from event_workflow_engine.feeds import Bell
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore

__all__ = ["ProjectionRunner"]

_log: Final = logging.getLogger("event_workflow_engine.projections")
_BACK_OFF_S: Final = 0.5
_LAZY: Final = 1000
"""Positions of other types that are passed in memory before the checkpoint on disk follows."""


class ProjectionRunner:
    """Keeps one projection up to date, as long as it is this worker's.

    Attributes:
        inline: It is folded inside the commits now.
    """

    def __init__(self, store: EventStore, projection: Projection, worker: str) -> None:
        self.inline = False
        self._store = store
        self._projection = projection
        self._worker = worker
        self._feed: GenerationFeed | None = None
        self._owned = False
        self._failure: WorkflowError | None = None
        self._progress = asyncio.Event()
        self._lock = asyncio.Lock()
        self._bell: Bell | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """Up to where it has looked at the log, as far as this process knows."""
        return self._feed.read_to if self._feed is not None and self._owned else 0

    def start(self) -> None:
        """Begin."""
        self._bell = Bell(self._store.storage)
        if self._worker:
            self._task = asyncio.create_task(self._run(), name=f"ewe-projection:{self._projection.name}")

    async def stop(self) -> None:
        """End, and let another worker go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._bell is not None:
            self._bell.close()
        if self._feed is not None and self._owned and not self.inline:
            try:
                await self._feed.level()
                await self._feed.feed.release()
            except StorageError as error:
                _log.warning("projection %s could not be handed over: %s", self._projection.name, error)

    async def ready(self) -> None:
        """Of an inline projection: wait until it is inline, so that what was committed is in it."""
        if self._projection.mode != "inline" or not isinstance(self._projection, DocumentProjection):
            return
        while not self.inline and self._task is not None and not self._task.done():
            row = await self._store.storage.get("projections", (self._projection.name,))
            if row is not None and row["inline_from"] is not None:
                return
            await self._wait()

    async def reached(self, position: int) -> None:
        """Wait until it has looked at a position."""
        while self.position < position and not self.inline:
            self._raise_failure()
            if not self._owned:
                row = await self._store.storage.get("projections", (self._projection.name,))
                name = checkpoint_name(self._projection.name, 1 if row is None else row["generation"])
                checkpoint = await self._store.storage.get("checkpoints", (name,))
                if checkpoint is not None and checkpoint["position"] >= position:
                    return
            await self._wait()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        """Wait for progress here, or a commit anywhere."""
        remove = self._store.storage.add_bell(self._progress.set)
        try:
            await self._progress.wait()
            self._progress.clear()
        finally:
            remove()

    # -- running -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        assert self._bell is not None
        while True:
            try:
                if await self._claim():
                    await self._feed_on()
                    return
                await self._bell.wait()
            except LogRewoundError as error:
                _log.error("projection %s stops: %s", self._projection.name, error)
                self._failure = error
                self._progress.set()
                return
            except RowConflictError:
                _log.warning("projection %s is fed by another worker now", self._projection.name)
                self._owned = False
            except StorageError as error:
                _log.warning("projection %s: %s; trying again", self._projection.name, error)
                self._owned = False
                await asyncio.sleep(_BACK_OFF_S)
            except WorkflowError as error:
                _log.exception("projection %s stops", self._projection.name)
                self._failure = error
                self._progress.set()
                return

    async def _claim(self) -> bool:
        """Take the live generation; make the projection's row when there is none."""
        projection, storage = self._projection, self._store.storage
        row = await storage.get("projections", (projection.name,))
        if row is None:
            values: dict[str, Any] = {"generation": 1, "version": projection.version, "mode": projection.mode}
            values |= {"shadow": None, "inline_from": None}
            insert = Row("projections", "insert", (projection.name,), values)
            await storage.write(Unit(uuid7(), self._store.now(), rows=(insert,)))
            row = values
        self._feed = GenerationFeed(self._store, projection, row["generation"], self._worker)
        if row["inline_from"] is not None and row["version"] == projection.version and projection.mode == "inline":
            self.inline = True
            self._progress.set()
            return True
        if not await self._feed.claim():
            return False
        self._owned = True
        if row["version"] != projection.version or row["mode"] != projection.mode:
            await self._build(row["generation"])
        self._progress.set()
        return True

    async def _feed_on(self) -> None:
        assert self._bell is not None
        documents = isinstance(self._projection, DocumentProjection)
        while not self.inline:
            async with self._lock:
                feed = self._feed
                assert feed is not None
                while await feed.step():
                    self._progress.set()
                if documents and self._projection.mode == "inline" and await self._turn_inline(feed):
                    return
                if feed.read_to - feed.feed.position >= _LAZY:
                    await feed.level()
            self._progress.set()
            await self._bell.wait()

    async def _turn_inline(self, feed: GenerationFeed) -> bool:
        """Level with the log, and nothing in between: from here on its events are folded inside their commits."""
        storage, name = self._store.storage, self._projection.name
        await feed.level()
        shadow = Row("projections", "update", (name,), {"shadow": feed.generation, "mode": self._projection.mode})
        await storage.write(Unit(uuid7(), self._store.now(), rows=(shadow,)))
        swapped = await storage.perform(
            "swap_projection",
            name=name,
            shadow=feed.generation,
            version=self._projection.version,
            position=feed.feed.position,
        )
        if swapped:
            await feed.feed.release()
            self.inline = True
            self._owned = False
            self._progress.set()
        elif self._bell is not None:
            self._bell.ring()
        return self.inline

    # -- rebuilding --------------------------------------------------------------------------------------------------

    async def rebuild(self) -> None:
        """Build a new generation and swap it in."""
        self._raise_failure()
        await self.ready()
        async with self._lock:
            if not self._owned and not self.inline:
                raise EngineStateError(
                    f"projection {self._projection.name!r} is fed by another worker: rebuild it there"
                )
            row = await self._store.storage.get("projections", (self._projection.name,))
            assert row is not None
            await self._build(row["generation"])

    async def _build(self, live: int) -> None:
        projection, storage = self._projection, self._store.storage
        generation = live + 1
        await storage.perform("delete_documents", projection=projection.name, generation=generation)
        shadow = GenerationFeed(self._store, projection, generation, self._worker)
        row = Row("projections", "update", (projection.name,), {"shadow": generation, "mode": projection.mode})
        stale = await storage.get("checkpoints", (shadow.feed.name,))
        dropped = () if stale is None else (Row("checkpoints", "delete", (shadow.feed.name,)),)
        await storage.write(Unit(uuid7(), self._store.now(), rows=(row, *dropped)))
        await shadow.claim()
        while True:
            while await shadow.step():
                pass
            await shadow.level()
            swapped = await storage.perform(
                "swap_projection",
                name=projection.name,
                shadow=generation,
                version=projection.version,
                position=shadow.feed.position,
            )
            if swapped:
                break
        self._feed, self._owned = shadow, not self.inline
        if projection.mode == "inline" and isinstance(projection, DocumentProjection):
            self.inline = True
            await shadow.feed.release()
        await storage.perform("delete_documents", projection=projection.name, generation=live)

    async def retry(self, key: str | None) -> int:
        """Fold parked events again."""
        self._raise_failure()
        async with self._lock:
            feed = self._feed
            if feed is None or not (self._owned or self.inline):
                raise EngineStateError(
                    f"projection {self._projection.name!r} is fed by another worker: retry its parked events there"
                )
            if self.inline:
                row = await self._store.storage.get("projections", (self._projection.name,))
                assert row is not None
                feed = GenerationFeed(self._store, self._projection, row["generation"], self._worker)
                await feed.claim()
            rows = await self._store.storage.query(
                "parked_keys_page", projection=self._projection.name, generation=feed.generation
            )
            keys = [row["key"] for row in rows if key is None or row["key"] == key]
            folded = 0
            for one in keys:
                folded += await feed.retry(one)
            if self.inline:
                await feed.feed.release()
            return folded
