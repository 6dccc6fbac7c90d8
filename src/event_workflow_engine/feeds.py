"""Feeding something from the log, on one worker of many at a time, with a checkpoint that never goes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from event_workflow_engine.errors import LogRewoundError, RowConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from event_workflow_engine.storage.port import Record, Storage, Written

__all__ = ["Bell", "ChangeBell", "Feed", "Progress", "Tail"]


class Bell:
    """Wakes one task when anything was committed: a commit rings it, `wait` takes the ring.

    Args:
        storage: Whose commits.
        wanted: Whether a unit of this process is worth waking for. What others committed always is, since nobody here
            knows what it was. Default: everything is.
    """

    def __init__(self, storage: Storage, wanted: Callable[[Unit], bool] | None = None) -> None:
        self._rang = asyncio.Event()
        self._wanted = wanted
        self._removers = [storage.add_bell(self._rang.set, own=wanted is None)]
        if wanted is not None:
            self._removers.append(storage.add_commit_hook(self._committed))

    def _committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        wanted = self._wanted
        assert wanted is not None
        if not self._rang.is_set():
            for unit, _ in batch:
                if wanted(unit):
                    self._rang.set()
                    return

    def ring(self) -> None:
        """Wake the task."""
        self._rang.set()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - it returns, and raises nothing
        """Wait for a ring since the last, or for some seconds; whether it rang."""
        if timeout is None:
            await self._rang.wait()
        elif not self._rang.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._rang.wait()
            except TimeoutError:
                return False
        self._rang.clear()
        return True

    def close(self) -> None:
        """Hear no more."""
        for remove in self._removers:
            remove()


class ChangeBell(Bell):
    """Wakes one task when another process committed, or this one wrote to one of some tables."""

    def __init__(self, storage: Storage, tables: frozenset[str]) -> None:
        def wanted(unit: Unit) -> bool:
            for row in unit.rows:  # noqa: SIM110 - each unit of a batch is looked at: a generator would cost the most
                if row.table in tables:
                    return True
            return False

        super().__init__(storage, wanted)


class Progress:
    """Tells any number of tasks that something moved on.

    A task asks for `moved` before it looks, then awaits it where what it saw was not enough: no move is missed.
    """

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def moved(self) -> asyncio.Future[None]:
        """Done at the next `tell`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def tell(self) -> None:
        """Something moved on."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)


class Tail:
    """Up to where one reader knows the log, and which record it saw there.

    A position alone would not do: a log that a failover has shortened gives the same positions to other events, and a
    reader that looked only when it had grown past its own would miss those. So each look brings the record that was
    seen last, too.

    Args:
        storage: Whose log.
        reader: Who reads, for errors.
        position: Where to begin behind; what is there was not seen yet.

    Attributes:
        position: All up to here is known.
        more: Whether there may be more behind what the last look brought.
    """

    def __init__(self, storage: Storage, reader: str, position: int = 0) -> None:
        self.position = position
        self.more = True
        self._storage = storage
        self._reader = reader
        self._id: str | None = None
        self._end: tuple[int, str | None] = (0, None)
        self._rewinds = len(storage.rewinds)

    async def go_to_end(self) -> None:
        """Begin behind what is committed now."""
        self.position, self._id = self._end = await self._look_at_end()

    async def look(self, limit: int, types: Sequence[str] = (), categories: Sequence[str] = ()) -> list[Record]:
        """The next records, in order. The tail stays where it is until it is moved.

        Raises:
            LogRewoundError: What was seen is not there any more.
        """
        self._rewinds = len(self._storage.rewinds)
        end, last = self._end = await self._look_at_end()
        if end < self.position:
            raise LogRewoundError(self._reader, self._storage.url, self.position, end)
        if end == self.position:
            self.more = False
            if self._id not in (None, last):
                raise LogRewoundError(self._reader, self._storage.url, self.position, end)
            return []
        seen = self._id is not None
        records = await self._storage.read_log(
            after=self.position, limit=limit, types=types, categories=categories, seen=seen
        )
        if seen:
            if not records or (records[0].position, records[0].id) != (self.position, self._id):
                raise LogRewoundError(self._reader, self._storage.url, self.position, end)
            del records[0]
        self.more = len(records) == limit
        return records

    def move(self, record: Record) -> None:
        """This record is known, and all before it."""
        self.position, self._id = record.position, record.id

    def move_on(self) -> None:
        """All that the last look brought is known, and where that was the last that is wanted, the log to its end."""
        # The end was looked at before the records, so up to there nothing that is wanted is left.
        if not self.more and self._end[0] >= self.position:
            self.position, self._id = self._end

    async def check(self) -> None:
        """See that what was seen is still there. What is submitted before the next await lands only while it is.

        Raises:
            LogRewoundError: It is not.
        """
        if self._id is None:
            return
        rewinds = -1
        while rewinds != len(self._storage.rewinds):  # another server may have answered than will be written to
            rewinds = len(self._storage.rewinds)
            found = await self._storage.read_log(after=self.position, limit=0, seen=True)
            if not found or found[0].id != self._id:
                end, _ = await self._look_at_end()
                raise LogRewoundError(self._reader, self._storage.url, self.position, end)

    def require_unrewound(self) -> None:
        """See that what the last look brought may be counted on. What is submitted before the next await then may, too.

        Raises:
            LogRewoundError: Since then it was found out that a part of the log is lost.
        """
        if len(self._storage.rewinds) != self._rewinds:
            raise LogRewoundError(self._reader, self._storage.url, self.position, self._storage.rewinds[-1][1])

    async def _look_at_end(self) -> tuple[int, str | None]:
        rows = await self._storage.query("log_end")
        return (rows[0]["position"], rows[0]["id"]) if rows else (0, None)


class Feed:
    """The checkpoint of one reader of the log, and who may move it.

    A checkpoint's row names the worker that feeds from it (`owner`; empty: nobody). The protocol:

    - **Claim**: whoever finds the row absent, without an owner, or with an owner whose row in ``workers`` is absent or
      not alive, puts itself in by compare-and-set on owner *and* position. One of several wins.
    - **Move**: compare-and-set on owner and position, in one unit with whatever was fed. A worker that lost the
      checkpoint, or died and came back, fails there with `RowConflictError` and writes nothing.
    - **Release**: compare-and-set on the owner, to nobody. The next to claim goes on at once.

    So at most one worker's feeding ever counts, and none is waited for longer than it takes to declare it dead.

    Args:
        storage: The store.
        name: The checkpoint's name.
        worker: This worker's id.
        now: Microseconds since 1970.

    Attributes:
        position: Where the checkpoint is.
        events: How many events were fed up to there.
        row: The checkpoint's row as it was when it was claimed.
        is_new: Whether the claim made it.
    """

    def __init__(self, storage: Storage, name: str, worker: str, now: Callable[[], int]) -> None:
        self.name = name
        self._storage = storage
        self._worker = worker
        self._now = now
        self.position = 0
        self.events = 0
        self.row: dict[str, Any] = {}
        self.is_new = False

    async def claim(self, start: int = 0) -> bool:
        """Take the checkpoint if nobody alive has it; whether it is this worker's now.

        Args:
            start: Where a new one begins.

        Raises:
            LogRewoundError: The log ends before the checkpoint.
        """
        row = await self._storage.get("checkpoints", (self.name,))
        is_new = row is None
        if row is None:
            row = {"position": start, "events": 0, "last_event_id": None, "saga_id": None, "recorded_at": None}
            claim = Row("checkpoints", "insert", (self.name,), {**row, "owner": self._worker})
        else:
            if row["owner"] != self._worker and await self.is_alive(row["owner"]):
                return False
            owned = {"owner": row["owner"], "position": row["position"]}
            claim = Row("checkpoints", "update", (self.name,), {"owner": self._worker}, owned)
        last = await self._storage.last_position()
        if row["position"] > last:
            raise LogRewoundError(self.name, self._storage.url, row["position"], last)
        try:
            await self._storage.write(Unit(uuid7(), self._now(), rows=(claim,)))
        except RowConflictError:
            return False
        self.row, self.is_new = row, is_new
        self.position, self.events = row["position"], row["events"] or 0
        return True

    async def is_fed_elsewhere(self) -> bool:
        """Whether another worker that lives has the checkpoint."""
        row = await self._storage.get("checkpoints", (self.name,))
        return row is not None and row["owner"] != self._worker and await self.is_alive(row["owner"])

    async def is_alive(self, worker: str | None) -> bool:
        """Whether somebody is a worker that lives."""
        if not worker:
            return False
        row = await self._storage.get("workers", (worker,))
        return row is not None and row["alive"] == 1

    def move(self, position: int, **values: Any) -> Row:
        """The row that moves the checkpoint from where it is; `moved` when it is on disk."""
        owned = {"owner": self._worker, "position": self.position}
        return Row("checkpoints", "update", (self.name,), {"position": position, **values}, owned)

    def moved(self, position: int, events: int = 0) -> None:
        """The move is on disk."""
        self.position = position
        self.events += events

    async def save(self, position: int, events: int = 0) -> None:
        """Move the checkpoint alone.

        Args:
            position: Where to.
            events: How many events were fed on the way.

        Raises:
            RowConflictError: Another worker has it now.
        """
        values = {"events": self.events + events} if events else {}
        await self._storage.write(Unit(uuid7(), self._now(), rows=(self.move(position, **values),)))
        self.moved(position, events)

    async def release(self) -> None:
        """Let go of it, so that another takes it over at once."""
        row = Row("checkpoints", "update", (self.name,), {"owner": ""}, {"owner": self._worker})
        try:
            await self._storage.write(Unit(uuid7(), self._now(), rows=(row,)))
        except RowConflictError:
            return
