"""Gives sagas to workers that have fewer: looks who has how many, and has those leave that can (decision 0010)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from event_workflow_engine.errors import StorageError
from event_workflow_engine.runner.balance import Load, Tolerance, moves
from event_workflow_engine.runner.leaving import is_wanted_elsewhere, leave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["Balancer"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_MICROS: Final = 1_000_000
_QUICK_ROUNDS: Final = 10
"""After a worker has come: it may register its sagas a little later, and what runs here leaves at the next chance."""


class _Given(NamedTuple):
    to: str
    fence: int
    at: float


class Balancer:
    """Looks now and then whether this worker holds more than its share, and says which sagas go where.

    A saga of which nothing runs is told to leave at once. Any other asks by itself, between two steps.

    Args:
        kit: The engine's parts; it is in it as `Kit.giving` while there is something to give.
        runs: The sagas in memory.
        tolerance: When to give.
        stays: Whether a saga must stay, for another reason.
    """

    def __init__(
        self, kit: Kit, runs: Mapping[str, SagaRun], tolerance: Tolerance, stays: Callable[[SagaRun], bool]
    ) -> None:
        self._kit = kit
        self._runs = runs
        self._tolerance = tolerance
        self._stays = stays
        self._lacks: dict[str, int] = {}
        self._can_run: dict[str, frozenset[tuple[str, int]]] = {}
        self._given: dict[str, _Given] = {}
        self._muted: dict[str, float] = {}
        self._came = asyncio.Event()
        self._quick_rounds = _QUICK_ROUNDS  # the others were there before, and this worker comes with what it starts
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._look_for_ever(), name="ewe-balance")

    async def stop(self) -> None:
        """Give nothing more."""
        self._give_nothing()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def worker_came(self) -> None:
        """Another worker has come: look at once."""
        self._quick_rounds = _QUICK_ROUNDS
        self._came.set()

    # -- what runs ask -----------------------------------------------------------------------------------------------

    @property
    def until(self) -> int:
        """Until when a saga that leaves now is for its receiver alone."""
        return self._kit.now() + int(self._tolerance.takes * _MICROS)

    def receiver(self, run: SagaRun) -> str:
        """Who may have a saga; ``""``: nobody."""
        if self._kit.loop.time() - run.since < self._tolerance.stays or self._stays(run):
            return ""
        saga = run.saga.name, run.saga.version
        return next((to for to in self._lacks if saga in self._can_run[to]), "")

    def take(self, run: SagaRun) -> str:
        """The same, and it leaves."""
        to = self.receiver(run)
        if to:
            self._given[run.saga_id] = _Given(to, run.fence, self._kit.loop.time())
            self._lacks[to] -= 1
            if not self._lacks[to]:
                del self._lacks[to]
            if not self._lacks:
                self._kit.giving = None
        return to

    def lost(self, run: SagaRun) -> None:
        """What was written of it last may not be in the store: whether it was given away is not known."""
        self._given.pop(run.saga_id, None)

    def claimed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Sagas have come: of those that were given away, nobody has had them meanwhile whose fence says so."""
        for row in rows if self._given else ():
            given = self._given.pop(row["id"], None)
            if given is not None and row["fence"] == given.fence + 1:
                if given.to not in self._muted:
                    _log.warning("worker %s did not take sagas that it was given; they go on here", given.to)
                self._muted[given.to] = self._kit.loop.time() + self._tolerance.mute
                self._lacks.pop(given.to, None)
                if not self._lacks:
                    self._kit.giving = None

    # -- rounds ------------------------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        while True:
            quick = self._lacks or self._quick_rounds > 0
            alarm = self._kit.loop.call_later(self._tolerance.quick if quick else self._tolerance.slow, self._came.set)
            try:
                await self._came.wait()
            finally:
                alarm.cancel()
            self._came.clear()
            self._quick_rounds = max(0, self._quick_rounds - 1)
            try:
                await self._round()
            except StorageError as error:
                self._give_nothing()
                _log.debug("could not look for workers that hold fewer sagas: %s", error)
            except Exception:  # noqa: BLE001 - no other look would come
                _log.exception("could not look for workers that hold fewer sagas")

    def _give_nothing(self) -> None:
        self._lacks = {}
        self._kit.giving = None

    async def _round(self) -> None:
        kit, now = self._kit, self._kit.loop.time()
        self._muted = {worker: until for worker, until in self._muted.items() if until > now}
        kept = now - self._tolerance.mute
        self._given = {saga: given for saga, given in self._given.items() if given.at > kept}
        if len(self._runs) < self._tolerance.least or not kit.is_sure():
            self._give_nothing()
            return
        me, mine = kit.worker.id, {(run.saga.name, run.saga.version) for run in self._runs.values()}
        loads: list[Load] = []
        able: dict[str, frozenset[tuple[str, int]]] = {}
        # Not on disk yet, or only just: counted as gone, so that no round gives what the one before it has given.
        going = Counter(given.to for saga, given in self._given.items() if saga in self._runs)
        for row in await kit.storage.query("worker_loads"):
            can_run = _definitions(row["runs"])
            if row["max_running"] and (row["id"] == me or (row["id"] not in self._muted and can_run & mine)):
                held = row["held"] + (-going.total() if row["id"] == me else going[row["id"]])
                loads.append(Load(row["id"], held, row["max_running"], row["given"]))
                able[row["id"]] = can_run
        self._can_run = able
        self._lacks = moves(me, loads, self._tolerance) if me in able else {}
        kit.giving = self if self._lacks else None
        if not self._lacks:
            return
        _log.info("of %d sagas here %d go to workers that hold fewer", len(self._runs), sum(self._lacks.values()))
        for run in list(self._runs.values()):
            if is_wanted_elsewhere(run):
                leave(run)


def _definitions(runs: str | None) -> frozenset[tuple[str, int]]:
    return frozenset(msgspec.json.decode(runs, type=list[tuple[str, int]])) if runs else frozenset()
