"""Feeding something from the log, on one worker of many at a time, with a checkpoint that never goes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from event_workflow_engine.errors import LogRewoundError, RowConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from event_workflow_engine.storage.port import Storage, Written

__all__ = ["Bell", "ChangeBell", "Feed"]


class Bell:
    """Wakes one task when anything was committed: a commit rings it, `wait` takes the ring."""

    def __init__(self, storage: Storage) -> None:
        self._rang = asyncio.Event()
        self._remove = storage.add_bell(self._rang.set)

    def ring(self) -> None:
        """Wake the task."""
        self._rang.set()

    async def wait(self) -> None:
        """Wait for a ring since the last."""
        await self._rang.wait()
        self._rang.clear()

    def close(self) -> None:
        """Hear no more."""
        self._remove()


class ChangeBell(Bell):
    """Wakes one task when another process committed, or this one wrote to one of some tables.

    A commit of this process runs the commit hooks and then rings the bells; one of another only rings.
    """

    def __init__(self, storage: Storage, tables: frozenset[str]) -> None:
        self._rang = asyncio.Event()
        self._tables = tables
        self._own = False
        removers = (storage.add_commit_hook(self._committed), storage.add_bell(self._heard))

        def remove() -> None:
            for one in removers:
                one()

        self._remove = remove

    def _committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        self._own = True
        tables = self._tables
        for unit, _ in batch:
            for row in unit.rows:
                if row.table in tables:
                    self._rang.set()
                    return

    def _heard(self) -> None:
        own, self._own = self._own, False
        if not own:
            self._rang.set()


class Feed:
    """The checkpoint of one reader of the log, and who may move it.

    A checkpoint row names the worker that feeds from it. Another takes it over when that one has let go of it, or was
    declared dead; each move is a compare-and-set on owner and position, so that a worker that lost it cannot move it.

    Args:
        storage: The store.
        name: The checkpoint's name.
        worker: This worker's id.
        now: Microseconds since 1970.
    """

    def __init__(self, storage: Storage, name: str, worker: str, now: Callable[[], int]) -> None:
        self.name = name
        self._storage = storage
        self._worker = worker
        self._now = now
        self.position = 0
        self.events = 0
        self.row: dict[str, Any] = {}

    async def claim(self, start: int = 0) -> bool:
        """Take the checkpoint if nobody alive has it; whether it is this worker's now.

        Args:
            start: Where a new one begins.

        Raises:
            LogRewoundError: The log ends before the checkpoint.
        """
        row = await self._storage.get("checkpoints", (self.name,))
        if row is None:
            fresh: dict[str, Any] = {
                "position": start,
                "events": 0,
                "last_event_id": None,
                "saga_id": None,
                "recorded_at": None,
            }
            claim = Row("checkpoints", "insert", (self.name,), {**fresh, "owner": self._worker})
            row = fresh
        else:
            if row["owner"] not in ("", None, self._worker) and await self._lives(row["owner"]):
                return False
            owned = {"owner": row["owner"], "position": row["position"]}
            claim = Row("checkpoints", "update", (self.name,), {"owner": self._worker}, owned)
        last = await self._storage.last_position()
        if row["position"] > last:
            raise LogRewoundError(
                f"{self.name} has read up to position {row['position']}, but the log of {self._storage.url} "
                f"ends at {last}: it was restored from a backup or lost its end; rebuild what was fed from it"
            )
        try:
            await self._storage.write(Unit(uuid7(), self._now(), rows=(claim,)))
        except RowConflictError:
            return False
        self.row = row
        self.position, self.events = row["position"], row["events"]
        return True

    async def _lives(self, worker: str) -> bool:
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

    async def save(self, position: int) -> None:
        """Move the checkpoint alone.

        Raises:
            RowConflictError: Another worker has it now.
        """
        await self._storage.write(Unit(uuid7(), self._now(), rows=(self.move(position),)))
        self.moved(position)

    async def release(self) -> None:
        """Let go of it, so that another takes it over at once."""
        row = Row("checkpoints", "update", (self.name,), {"owner": ""}, {"owner": self._worker})
        try:
            await self._storage.write(Unit(uuid7(), self._now(), rows=(row,)))
        except RowConflictError:
            return
