"""This process as a worker: its row, its sign of life, and the burial of workers that are gone (rule 12)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from event_workflow_engine.errors import RowConflictError, StorageError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit, WorkerRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from event_workflow_engine.storage.liveness import Liveness
    from event_workflow_engine.storage.port import Storage

__all__ = ["Worker", "WorkerOwner"]

_log: Final = logging.getLogger("event_workflow_engine.workers")
_MICROS: Final = 1_000_000
_REMEMBERED: Final = 24 * 3600 * _MICROS
_FIRST_PRUNE_S: Final = 60.0
_PRUNE_EVERY_S: Final = 3600.0
_MISSED_BEAT: Final = 0.25  # of the time between two, after which one that failed is tried again


class WorkerOwner(Protocol):
    """Whom a worker tells what became of it and of others."""

    def offer(self) -> dict[str, Any]:
        """What others should know of it: columns of its row. `Worker` looks now and then whether it has changed."""
        ...

    def worker_came(self) -> None:
        """Another worker has come."""
        ...

    def worker_gone(self) -> None:
        """Another worker has died or signed off: what it had is free."""
        ...

    def worker_reborn(self, ref: WorkerRef) -> None:
        """Others took this worker for dead and have its sagas; it goes on as another life, with none."""
        ...

    def worker_sure_again(self) -> None:
        """For a while it was not certain that others took this worker for alive, but they did."""
        ...


class Worker:
    """One worker. Entering the engine again is another one, with another id.

    Args:
        storage: Where the rows are.
        liveness: Tells who is gone.
        now: Microseconds since 1970.
        owner: Whom to tell.

    Attributes:
        ref: Its id, and which life it is in.
    """

    def __init__(self, storage: Storage, liveness: Liveness, now: Callable[[], int], owner: WorkerOwner) -> None:
        self.ref = WorkerRef(uuid7(), 1)
        self._storage = storage
        self._liveness = liveness
        self._now = now
        self._owner = owner
        self._beat = 0
        self._in_doubt = False
        self._others: set[str] = set()
        self._offered: dict[str, Any] = {}
        self._prune_at = liveness.time() + _FIRST_PRUNE_S
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Register, then bury those that are gone: their sagas are free when this returns."""
        self._liveness.hold(self.ref.id)
        sent = self._liveness.time()
        await self._register("insert", {})
        self._liveness.beaten(sent)
        await self.bury_the_dead()
        self._tasks = [asyncio.create_task(self._look(), name="ewe-workers")]
        if self._liveness.beat_every is not None:
            self._tasks.append(asyncio.create_task(self._beat_for_ever(self._liveness.beat_every), name="ewe-heart"))

    async def _register(self, op: Literal["insert", "update"], where: dict[str, Any]) -> None:
        now = self._now()
        self._offered = self._owner.offer()
        values = {
            "incarnation": self.ref.incarnation,
            "alive": 1,
            "beat": self._beat,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": now,
            "lease": None if self._liveness.lease is None else math.ceil(self._liveness.lease * _MICROS),
            "died_at": None,
            **self._offered,
            "beat_at": now,
        }
        await self._storage.write(Unit(uuid7(), now, rows=(Row("workers", op, (self.ref.id,), values, where),)))

    async def stop(self, *, left_in: Sequence[Executor] = ()) -> None:
        """End its tasks, and sign off: what the caller has not handed over is free.

        Args:
            left_in: Where code of sagas goes on in threads, which the caller has left. What this worker has stays its
                own until that has ended, but no longer than others take it for alive.
        """
        try:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not left_in:
                with contextlib.suppress(StorageError):
                    await self._storage.perform(
                        "bury_worker", beat=None, id=self.ref.id, incarnation=self.ref.incarnation, now=self._now()
                    )
        finally:  # where it could not be buried, others do that as soon as it does not show that it lives
            if left_in:
                # No task: the loop may end before the threads do.
                threading.Thread(
                    target=self._release_behind, args=(left_in,), name="ewe-left-behind", daemon=True
                ).start()
            else:
                self._liveness.release(self.ref.id)

    def _release_behind(self, pools: Sequence[Executor]) -> None:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._liveness.release(self.ref.id)

    # -- this one ----------------------------------------------------------------------------------------------------

    async def _beat_for_ever(self, every: float) -> None:
        complained = False
        while True:
            await asyncio.sleep(every if not complained else every * _MISSED_BEAT)
            try:
                await self.beat()
            except StorageError as error:
                if not complained:
                    complained = True
                    _log.warning("worker %s: its heartbeat failed, trying again: %s", self.ref.id, error)
                continue
            complained = False

    async def beat(self) -> None:
        """Count one heartbeat; where others took this worker for dead, begin another life."""
        sent = self._liveness.time()
        self._beat += 1
        alive = {"incarnation": self.ref.incarnation, "alive": 1}
        now = self._now()
        row = Row("workers", "update", (self.ref.id,), {"beat": self._beat, "beat_at": now}, alive)
        try:
            await self._storage.write(Unit(uuid7(), now, rows=(row,)))
        except RowConflictError:
            await self._begin_again()
        # Asked now and not when it was sent: doubt that arose while it was under way is over as well.
        self._in_doubt |= not self._liveness.is_sure()
        self._liveness.beaten(sent)
        if self._in_doubt and self._liveness.is_sure():
            self._in_doubt = False
            self._owner.worker_sure_again()

    async def _begin_again(self) -> None:
        self.ref = WorkerRef(self.ref.id, self.ref.incarnation + 1)
        _log.warning("worker %s was taken for dead and goes on as its life %d: its heartbeats came too late, as after "
                     "a suspended process or a blocked event loop", self.ref.id, self.ref.incarnation)  # fmt: skip
        # First of all its sagas are let go of: they are others'.
        self._owner.worker_reborn(self.ref)
        # As the store has it: a life before that was begun without an answer may be in it, or not.
        row = await self._storage.get("workers", (self.ref.id,))
        known = {} if row is None else {"incarnation": row["incarnation"], "alive": row["alive"]}
        await self._register("insert" if row is None else "update", known)

    async def _tell(self) -> None:
        """Have its row say what it offers, where that has changed. One that is dead tells it in its next life."""
        offer = self._owner.offer()
        if offer != self._offered:
            alive = {"incarnation": self.ref.incarnation, "alive": 1}
            with contextlib.suppress(RowConflictError):
                await self._storage.write(
                    Unit(uuid7(), self._now(), rows=(Row("workers", "update", (self.ref.id,), offer, alive),))
                )
            self._offered = offer

    # -- others ------------------------------------------------------------------------------------------------------

    async def bury_the_dead(self) -> bool:
        """Declare dead whoever is gone, irrevocably; whether one went since the last look, in whatever way."""
        before, others = self._others, set[str]()
        for row in await self._storage.query("live_workers"):
            if row["id"] == self.ref.id:
                continue
            if not self._liveness.is_gone(row):
                others.add(row["id"])
                continue
            before.add(row["id"])  # stays there if the burial has no answer: that it went is noticed at the next look
            now = self._now()
            freed = await self._storage.perform(
                "bury_worker", id=row["id"], incarnation=row["incarnation"], beat=row["beat"], now=now
            )
            if not freed and await self._lives(row):  # its heart has beaten since this look, and it counts on that
                others.add(row["id"])
                continue
            level = logging.WARNING if freed else logging.INFO
            _log.log(level, "worker %s (pid %s on %s) is gone; %d of its sagas go on elsewhere", row["id"], row["pid"],
                     row["host"], len(freed))  # fmt: skip
        self._others = others
        if not others <= before:
            self._owner.worker_came()
        return not before <= others

    async def _lives(self, row: Mapping[str, Any]) -> bool:
        seen = await self._storage.get("workers", (row["id"],))
        return seen is not None and (seen["incarnation"], seen["alive"]) == (row["incarnation"], 1)

    async def _prune(self) -> None:
        """Forget those that have been dead for a day. One that comes back to life all the same registers anew."""
        if self._liveness.time() >= self._prune_at:
            self._prune_at = self._liveness.time() + _PRUNE_EVERY_S
            await self._storage.perform("prune_workers", before=self._now() - _REMEMBERED)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._liveness.look_every)
            try:
                if await self.bury_the_dead():
                    self._owner.worker_gone()
                await self._tell()
                await self._prune()
            except StorageError as error:
                _log.warning("could not look for dead workers, trying again: %s", error)
