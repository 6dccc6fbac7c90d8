"""Fires slots of schedules as one worker, each slot once over all workers."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.clock import from_micros, micros
from event_workflow_engine.errors import (
    DefinitionError,
    EngineStateError,
    EventIdConflictError,
    RowConflictError,
    StorageError,
)
from event_workflow_engine.feeds import ChangeBell
from event_workflow_engine.storage.port import Row
from event_workflow_engine.tasks import read_task
from event_workflow_engine.triggers import next_cron, next_interval

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from event_workflow_engine._scheduling.code import Code
    from event_workflow_engine.clock import Clock
    from event_workflow_engine.storage.port import Storage

__all__ = ["Firing", "read_spec"]

_log: Final = logging.getLogger("event_workflow_engine.scheduler")
_BATCH: Final = 100
_BACK_OFF_S: Final = 0.5
_FAR: Final = 2**62
_LATEST: Final = 60_000_000
_GRACE: Final = 1_000_000
"""A slot is missed when it is late by more than this (microseconds)."""

read_spec: Final = msgspec.json.Decoder(dict[str, Any]).decode
"""Reads the column of that name of ``schedules``."""


class Firing:
    """The firing of slots, from a scheduler's start to its stop.

    Args:
        storage: Where schedules are kept.
        clock: Where time comes from.
        code: What can run here.
        write: Writes rows as one unit.
        worker: This worker's id.
        threads: For sync functions.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        code: Code,
        write: Callable[..., Awaitable[None]],
        *,
        worker: str,
        threads: int,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._now = micros(clock)
        self._code = code
        self._write = write
        self._worker = worker
        self._runs: set[asyncio.Task[bool]] = set()
        self._repaired = False
        self._doubt_ends = 0  # when a claim that had no answer has landed, or will not
        self._open: set[tuple[str, int]] = set()
        """Slots that run here."""
        self._passed: set[str] = set()
        """Tasks that are due, and whose slot somebody has: maybe a run here, for the same instant."""
        self._asleep = False
        self._bell = ChangeBell(storage, frozenset({"schedules"}))
        self._bell.ring()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ewe-schedule")
        self._timer = asyncio.create_task(self._fire_for_ever(), name="ewe-scheduler")

    async def stop(self) -> None:
        """Fire no more. What runs is cut off; what runs in a thread ends there."""
        self._timer.cancel()
        await asyncio.gather(self._timer, return_exceptions=True)
        self._bell.close()
        for run in list(self._runs):
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        self._pool.shutdown(wait=False)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, and what is to run waits for its time."""
        return not self._runs and self._asleep

    def look_again(self) -> None:
        """Look again at what is due, and for slots that nobody finishes."""
        self._repaired = False
        self._bell.ring()

    async def run_now(self, row: dict[str, Any]) -> None:
        """Run a task, which can run here, besides its schedule."""
        now = slot = self._now()
        while True:
            claim = Row("slots", "insert", (row["id"], slot), {"worker": self._worker, "fired_at": now, "done": 0})
            try:
                await self._write(claim)
            except RowConflictError:
                slot += 1  # it fired at this very instant; this is a run of its own
            else:
                break
        self._launch(row, slot)

    async def _fire_for_ever(self) -> None:
        while True:
            try:
                if not self._repaired:
                    self._repaired = self._now() >= self._doubt_ends
                    await self._repair()
                waiting = await self._fire_due()
                if not self._repaired:
                    waiting = self._doubt_ends if waiting is None else min(waiting, self._doubt_ends)
                await self._sleep(waiting)
            except StorageError as error:
                _log.warning("scheduling failed, trying again: %s", error)
                self._repaired = False
                self._doubt_ends = self._now() + _LATEST
                await asyncio.sleep(_BACK_OFF_S)

    async def _sleep(self, until: int | None) -> None:
        """Until then, or until something was committed."""
        waits: list[asyncio.Future[Any]] = []
        self._asleep = True
        try:
            if until is None:
                await self._bell.wait()
            else:
                sleep = self._clock.sleep_until(from_micros(until))
                waits = [asyncio.ensure_future(self._bell.wait()), asyncio.ensure_future(sleep)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._asleep = False
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _fire_due(self) -> int | None:
        """Fire what is due; when the next is. What cannot run here stands in nobody's way."""
        limit = _BATCH
        passed = self._passed = set()
        while True:
            now, fired = self._now(), False
            rows = await self._storage.query("due_schedules", now=_FAR, limit=limit)
            for row in rows:
                if row["id"] in passed or not self._code.can_run(row):
                    continue
                if row["next_run"] > now:
                    if fired:
                        break
                    return int(row["next_run"])
                fired = True
                if not await self._fire(row, now):
                    passed.add(row["id"])  # whoever has the slot rings when the schedule moves on
            if fired:
                continue
            if len(rows) < limit:
                return None
            limit *= 2

    async def _fire(self, row: dict[str, Any], now: int) -> bool:
        """Claim a slot and advance the schedule in one unit; whoever loses, another worker has fired it."""
        slot: int = row["next_run"]
        try:
            slots, following = self._slots(row, slot, now)
        except DefinitionError:
            _log.exception("task %s cannot go on here", row["id"])
            return False
        owned = {"next_run": slot, "task": row["task"], "paused": 0}
        if following is None:
            # It goes when it has run: a crash in between finds it again.
            advance = Row("schedules", "update", (row["id"],), {"next_run": None}, owned)
        else:
            advance = Row("schedules", "update", (row["id"],), {"next_run": following}, owned)
        claims = [
            Row("slots", "insert", (row["id"], one), {"worker": self._worker, "fired_at": now, "done": 0})
            for one in slots
        ]
        try:
            await self._write(advance, *claims)
        except RowConflictError:
            return False
        for one in slots:
            self._launch(row, one)
        return True

    def _slots(self, row: dict[str, Any], slot: int, now: int) -> tuple[Sequence[int], int | None]:
        """The slots to fire now, and the next run."""
        if row["kind"] == "once":
            return [slot], None
        spec = read_spec(row["spec"])
        missed = [slot]
        following = self._following(row["kind"], spec, slot)
        if spec["missed"] == "all":
            while following <= now and len(missed) < _BATCH:
                missed.append(following)
                following = self._following(row["kind"], spec, following)
            return missed, following
        if following <= now or now - slot > _GRACE:
            late = self._following(row["kind"], spec, now)
            return ([slot] if spec["missed"] == "once" else []), late
        return [slot], following

    def _following(self, kind: str, spec: dict[str, Any], after: int) -> int:
        if kind == "every":
            return next_interval(spec["start"], spec["interval"], after)
        return next_cron(spec["expression"], spec["tz"], after)

    async def _repair(self) -> None:
        """Slots that a worker claimed and did not finish: run again, under the same ids."""
        alive = {row["id"] for row in await self._storage.query("live_workers")} - {self._worker}
        for slot in await self._storage.query("open_slots"):
            key = (slot["schedule"], slot["slot"])
            if slot["worker"] in alive or key in self._open:
                continue
            row = await self._storage.get("schedules", (slot["schedule"],))
            owned = {"worker": slot["worker"], "done": 0}
            take = Row("slots", "update", key, {"worker": self._worker}, owned)
            if row is None:
                take = Row("slots", "delete", key, {}, owned)  # it was cancelled since
            elif not self._code.can_run(row):
                continue  # again when its code is registered
            try:
                await self._write(take)
            except RowConflictError:
                continue
            if row is not None:
                self._launch(row, slot["slot"])

    def _launch(self, row: dict[str, Any], slot: int) -> None:
        key = (row["id"], slot)
        self._open.add(key)
        run = asyncio.create_task(self._run(row, slot), name=f"ewe-task:{row['id']}")
        self._runs.add(run)

        def ended(run: asyncio.Task[bool]) -> None:
            self._runs.discard(run)
            self._open.discard(key)
            if row["id"] in self._passed:
                self._bell.ring()
            if not run.cancelled() and run.exception() is None and not run.result():
                asyncio.get_running_loop().call_later(_BACK_OFF_S, self.look_again)

        run.add_done_callback(ended)

    async def _run(self, row: dict[str, Any], slot: int) -> bool:
        """Do what the slot is for; whether it is closed then."""
        task, run_id = read_task(row["task"]), f"{row['id']}@{slot}"
        try:
            await self._code.run(task, row["id"], run_id, self._pool)
        except (StorageError, EngineStateError):
            _log.exception("task %s: its slot stays open and is run again soon", row["id"])
            return False
        except EventIdConflictError:
            _log.exception("task %s: the id %s was used for something else", row["id"], run_id)
        except Exception:  # noqa: BLE001 - what a user's function raises must not end the schedule
            _log.exception("task %s raised; its schedule goes on", row["id"])
        rows = [Row("slots", "delete", (row["id"], slot))]
        try:
            now = await self._storage.get("schedules", (row["id"],))
            if now is not None and now["next_run"] is None and now["task"] == row["task"]:
                rows.append(Row("schedules", "delete", (row["id"],), {}, {"next_run": None, "task": row["task"]}))
            try:
                await self._write(*rows)
            except RowConflictError:
                await self._write(rows[0])  # the task was scheduled anew meanwhile
        except StorageError:
            _log.exception("task %s: it ran, but that could not be written, so it may run again", row["id"])
            return False
        return True
