"""Runs one projection: catches up, turns inline, rebuilds beside the live one, takes over."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine._projections.feeding import GenerationFeed, checkpoint_name
from event_workflow_engine.errors import (
    EngineStateError,
    LogRewoundError,
    RowConflictError,
    StorageError,
    WorkflowError,
)
from event_workflow_engine.feeds import Bell, ChangeBell
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from event_workflow_engine._projections.definitions import Projection
    from event_workflow_engine._projections.inline import InlineDocuments
    from event_workflow_engine.event_store import EventStore

__all__ = ["ProjectionRunner"]

_log: Final = logging.getLogger("event_workflow_engine.projections")
_BACK_OFF_S: Final = 0.5
_STOP_S: Final = 5.0
_LAZY: Final = 1000
"""Positions of other types that are passed in memory before the checkpoint on disk follows."""

_LEVEL_S: Final = 10.0
"""Or after this time: who looks from outside takes what was not passed on disk for events that wait."""


class ProjectionRunner:
    """Keeps one projection up to date, as long as it is this worker's.

    Attributes:
        inline: It is folded inside the commits now.
    """

    def __init__(self, store: EventStore, projection: Projection, worker: str, folder: InlineDocuments | None) -> None:
        self.inline = False
        self._store = store
        self._projection = projection
        self._worker = worker
        self._feed: GenerationFeed | None = None
        self._owned = False
        self._failure: WorkflowError | None = None
        self._progress = asyncio.Event()
        self._lock = asyncio.Lock()
        self._rebuilding = asyncio.Lock()
        self._settled = asyncio.Event()
        """Whether it is known if this worker feeds it."""
        self._folder = folder
        self._told = False
        self._may_be_inline = folder is not None
        self._bell: Bell | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """Up to where it has looked at the log, as far as this process knows."""
        return self._feed.read_to if self._feed is not None and self._owned else 0

    def start(self) -> None:
        """Begin."""
        self._bell = Bell(self._store.storage)
        if not self._worker:
            self._settled.set()
        else:
            self._task = asyncio.create_task(self._run(), name=f"ewe-projection:{self._projection.name}")

    async def stop(self) -> None:
        """End, and let another worker go on."""
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S), self._lock:  # the page under way is written to its end
                    self._task.cancel()
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
        if not self._may_be_inline:
            return
        async with self._listening() as wait:
            while not self.inline and self._task is not None and not self._task.done():
                row = await self._store.storage.get("projections", (self._projection.name,))
                if row is not None and row["version"] > self._projection.version:
                    return
                await wait()
        self._raise_failure()

    async def reached(self, position: int) -> None:
        """Wait until it has looked at a position."""
        async with self._listening() as wait:
            while self.position < position and not self.inline:
                self._raise_failure()
                if not self._owned and await self._reached_elsewhere(position):
                    return
                if self.position < position and not self.inline:
                    await wait()

    async def _reached_elsewhere(self, position: int) -> bool:
        """Whether another worker's checkpoint is there, or only events of other types are between."""
        storage, projection = self._store.storage, self._projection
        row = await storage.get("projections", (projection.name,))
        if row is None or row["version"] < projection.version:
            return False
        if row["inline_from"] is not None:
            return not self._may_be_inline or self._task is None
        checkpoint = await storage.get("checkpoints", (checkpoint_name(projection.name, row["generation"]),))
        if checkpoint is None:
            return False
        next_one = await storage.read_log(after=checkpoint["position"], limit=1, types=sorted(projection.routes))
        return (not next_one or next_one[0].position > position) and await storage.last_position() >= position

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        """Wake all who wait for progress."""
        told, self._progress = self._progress, asyncio.Event()
        told.set()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Gives what waits for progress here, or a commit anywhere, since it was last awaited or the block began."""
        rang, seen = asyncio.Event(), self._progress
        remove = self._store.storage.add_bell(rang.set)

        async def wait() -> None:
            nonlocal seen
            waits = [asyncio.ensure_future(rang.wait()), asyncio.ensure_future(seen.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waits:
                    one.cancel()
            rang.clear()
            seen = self._progress

        try:
            yield wait
        finally:
            remove()

    # -- running -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        assert self._bell is not None
        while True:
            try:
                claimed = await self._claim()
                self._settled.set()
                if claimed:
                    await self._feed_on()
                    await self._watch()
                else:
                    await self._bell.wait()
            except LogRewoundError as error:
                _log.error("projection %s stops: %s", self._projection.name, error)
                self._failure = error
                self._settled.set()
                self._tell()
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
                self._settled.set()
                self._tell()
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
        if row["version"] > projection.version:
            if not self._told:
                _log.warning(
                    "projection %s: the store has version %d, so version %d is not fed here",
                    projection.name,
                    row["version"],
                    projection.version,
                )
            self._told = True
            return False
        if self._feed is not None:
            # The checkpoint goes back with a log that is rewound; who read further shall know.
            await self._feed.check()
        self._feed = GenerationFeed(self._store, projection, row["generation"], self._worker)
        current = row["version"] == projection.version and row["mode"] == projection.mode
        if current and row["inline_from"] is not None and await self._trusted(row):
            self.inline = True
            self._tell()
            return True
        if not await self._feed.claim():
            return False
        if not current:
            await self._build(row["generation"])
        self._owned = not self.inline
        self._tell()
        return True

    async def _trusted(self, row: dict[str, Any]) -> bool:
        """Whether an inline projection lacks nothing; if it does, it is one that catches up now.

        From here on this process folds its events inside their commits.
        """
        storage, projection = self._store.storage, self._projection
        checkpoint = await storage.get("checkpoints", (checkpoint_name(projection.name, row["generation"]),))
        position = max(row["inline_from"], 0 if checkpoint is None else checkpoint["position"])
        behind = await storage.read_log(after=position, limit=1, types=sorted(projection.routes))
        if not behind:
            self._trust()
        else:
            again = await storage.get("checkpoints", (checkpoint_name(projection.name, row["generation"]),))
            if again is not None and again["position"] >= behind[0].position:
                return await self._trusted(row)  # it was folded inside a commit, between the two reads
            late = Row("projections", "update", (projection.name,), {"inline_from": None})
            await storage.write(Unit(uuid7(), self._store.now(), rows=(late,)))
            return False
        # An event that was committed before this process trusted it has made it one that catches up; a write is behind
        # whatever was under way.
        same = Row("projections", "check", (projection.name,), {}, {"inline_from": row["inline_from"]})
        try:
            await storage.write(Unit(uuid7(), self._store.now(), rows=(same,)))
        except RowConflictError:
            return False
        return True

    def _trust(self) -> None:
        assert self._folder is not None
        self._folder.trust(self._projection.name)

    async def _watch(self) -> None:
        """While it is folded inside the commits: until a process that cannot do so has committed its events."""
        bell = ChangeBell(self._store.storage, frozenset({"projections"}))
        try:
            while self.inline:
                row = await self._store.storage.get("projections", (self._projection.name,))
                if row is None or row["inline_from"] is None or row["version"] != self._projection.version:
                    async with self._rebuilding:
                        row = await self._store.storage.get("projections", (self._projection.name,))
                        self.inline = row is not None and row["inline_from"] is not None
                        self.inline &= row is not None and row["version"] == self._projection.version
                else:
                    await bell.wait()
        finally:
            bell.close()

    async def _feed_on(self) -> None:
        assert self._bell is not None
        loop = asyncio.get_running_loop()
        levelled = loop.time()
        while not self.inline:
            async with self._lock:
                feed = self._feed
                assert feed is not None
                if self._may_be_inline:
                    await feed.catch_up()
                elif await feed.step():
                    self._tell()
                    continue
                if self._may_be_inline:
                    await self._turn_inline(feed)
                    return
                ahead, now = feed.read_to - feed.feed.position, loop.time()
                if ahead >= _LAZY or (ahead and now - levelled >= _LEVEL_S):
                    await feed.level()
                    levelled = now
            self._tell()
            await self._bell.wait(_LEVEL_S)

    async def _turn_inline(self, feed: GenerationFeed) -> None:
        """From here on events are folded inside their commits."""
        await self._mark_shadow(feed.generation)
        self._trust()
        await feed.swap_in_inline(self._projection.version)
        await feed.feed.release()
        self.inline, self._owned = True, False
        self._tell()

    async def _mark_shadow(self, generation: int) -> None:
        row = Row("projections", "update", (self._projection.name,), {"shadow": generation})
        await self._store.storage.write(Unit(uuid7(), self._store.now(), rows=(row,)))

    # -- rebuilding --------------------------------------------------------------------------------------------------

    async def rebuild(self) -> None:
        """Build a new generation and swap it in."""
        self._raise_failure()
        await self._settled.wait()
        await self.ready()
        async with self._rebuilding:
            if not self._owned and not self.inline:
                raise EngineStateError(
                    f"projection {self._projection.name!r} is fed by another worker: rebuild it there"
                )
            row = await self._store.storage.get("projections", (self._projection.name,))
            assert row is not None
            await self._build(row["generation"])

    async def _build(self, live: int) -> None:
        """Fold the log into another generation beside the live one, which goes on meanwhile, and swap."""
        shadow = GenerationFeed(self._store, self._projection, live + 1, self._worker)
        await shadow.erase()
        await self._mark_shadow(shadow.generation)
        if not await shadow.claim():
            raise RowConflictError("checkpoints", (shadow.feed.name,), "nobody's, or this worker's")
        await shadow.catch_up()
        async with self._lock:
            if self._may_be_inline:
                self._trust()
                await shadow.swap_in_inline(self._projection.version)
                await shadow.feed.release()
                self.inline, self._owned = True, False
            else:
                await shadow.swap_in(self._projection.version)
            self._feed = shadow
        self._tell()
        await GenerationFeed(self._store, self._projection, live, self._worker).erase()

    # -- parked events -----------------------------------------------------------------------------------------------

    async def retry(self, key: str | None) -> int:
        """Fold parked events again."""
        self._raise_failure()
        await self._settled.wait()
        await self.ready()
        async with self._rebuilding, self._lock:
            if self._feed is None or not (self._owned or self.inline):
                raise EngineStateError(
                    f"projection {self._projection.name!r} is fed by another worker: retry its parked events there"
                )
            if self.inline:
                return await self._retry_inline(key)
            return await self._retry(self._feed, key)

    async def _retry(self, feed: GenerationFeed, key: str | None) -> int:
        rows = await self._store.storage.query(
            "parked_keys_page", projection=self._projection.name, generation=feed.generation
        )
        return sum([await feed.retry(row["key"]) for row in rows if key is None or row["key"] == key])

    async def _retry_inline(self, key: str | None) -> int:
        """Hold the checkpoint meanwhile, so that it is one that catches up; then it turns inline again."""
        storage, name = self._store.storage, self._projection.name
        row = await storage.get("projections", (name,))
        assert row is not None
        feed = GenerationFeed(self._store, self._projection, row["generation"], self._worker)
        late = Row("projections", "update", (name,), {"inline_from": None, "shadow": feed.generation})
        await storage.write(Unit(uuid7(), self._store.now(), rows=(late,)))
        try:
            if not await feed.claim():
                raise RowConflictError("checkpoints", (feed.feed.name,), "nobody's, or this worker's")
            return await self._retry(feed, key)
        finally:
            await feed.catch_up()
            await feed.swap_in_inline(self._projection.version)
            await feed.feed.release()
