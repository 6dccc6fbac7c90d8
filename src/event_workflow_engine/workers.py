"""This process as a worker: its row, its sign of life, and the burial of workers that are gone (rule 12)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import StorageError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit, WorkerRef

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.storage.liveness import Liveness
    from event_workflow_engine.storage.port import Storage

__all__ = ["Worker"]

_log: Final = logging.getLogger("event_workflow_engine.workers")
_LOOK_EVERY_S: Final = 0.1


class Worker:
    """One life of this worker. Entering the engine again is another life, with another id.

    Args:
        storage: Where the rows are.
        liveness: Tells who is gone.
        now: Microseconds since 1970.
        on_burial: Called when a dead worker's sagas have become free.
    """

    def __init__(
        self, storage: Storage, liveness: Liveness, now: Callable[[], int], on_burial: Callable[[], None]
    ) -> None:
        self.ref = WorkerRef(uuid7(), 1)
        self._storage = storage
        self._liveness = liveness
        self._now = now
        self._on_burial = on_burial
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, then bury those that are gone: their sagas are free when this returns."""
        self._liveness.hold(self.ref.id)
        now = self._now()
        values = {
            "incarnation": self.ref.incarnation,
            "alive": 1,
            "beat": 0,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": now,
        }
        await self._storage.write(Unit(uuid7(), now, rows=(Row("workers", "insert", (self.ref.id,), values),)))
        await self.bury_the_dead()
        self._task = asyncio.create_task(self._look(), name="ewe-workers")

    async def stop(self) -> None:
        """Sign off; the caller has handed its sagas over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        with contextlib.suppress(StorageError):
            await self._storage.perform(
                "bury_worker", id=self.ref.id, incarnation=self.ref.incarnation, now=self._now()
            )
        self._liveness.release(self.ref.id)

    async def bury_the_dead(self) -> bool:
        """Declare dead whoever is gone, irrevocably; whether there was one."""
        found = False
        for row in await self._storage.query("live_workers"):
            if row["id"] == self.ref.id or not self._liveness.is_gone(row["id"]):
                continue
            now = self._now()
            freed = await self._storage.perform("bury_worker", id=row["id"], incarnation=row["incarnation"], now=now)
            found = True
            level = logging.WARNING if freed else logging.INFO
            _log.log(level, "worker %s (pid %s on %s) is gone; %d of its sagas go on elsewhere", row["id"], row["pid"],
                     row["host"], len(freed))  # fmt: skip
        return found

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                if await self.bury_the_dead():
                    self._on_burial()
            except StorageError:
                _log.warning("could not look for dead workers; trying again", exc_info=True)
