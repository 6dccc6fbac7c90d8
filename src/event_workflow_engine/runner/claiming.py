"""Brings sagas into memory that are this worker's to run: claims those that are due, and resumes them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.clock import seconds
from event_workflow_engine.errors import DecodeError, StorageError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import inbox_stream, saga_stream
from event_workflow_engine.runner.admission import Admission
from event_workflow_engine.runner.resume import resume
from event_workflow_engine.runner.run import SagaRun
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from event_workflow_engine.config import EngineConfig
    from event_workflow_engine.locks import SagaLocks
    from event_workflow_engine.queues import Queues
    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.storage.port import Record, Rows
    from event_workflow_engine.timers import Alarm

__all__ = ["Claimer"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_MICROS: Final = 1_000_000
_BATCH: Final = 500
_BACK_OFF_S: Final = 0.5
_LOOKS_A_LEASE: Final = 4
"""How often a worker looks again for what a claim without an answer has brought it: on its way it can be late."""


class Claimer:
    """Claims sagas for one worker, while there is room.

    Args:
        definitions: The sagas that can run here.
        config: The engine's.
        queues: Its queues.
        runs: The sagas in memory: those that are claimed get there.
        unwritten: Those that left it, and are this worker's for a moment yet.
        locks: One for each saga in memory.
        drop: Takes one out of memory.
        claimed: Called with the rows that were claimed.

    Attributes:
        admission: Lets sagas of queues begin.
    """

    def __init__(
        self,
        definitions: Definitions,
        config: EngineConfig,
        queues: Queues,
        runs: dict[str, SagaRun],
        unwritten: Iterable[str],
        locks: SagaLocks,
        drop: Callable[[SagaRun], None],
        claimed: Callable[[Rows], None],
    ) -> None:
        self._definitions = definitions
        self._config = config
        self._queues = queues
        self._runs = runs
        self._unwritten = unwritten
        self._locks = locks
        self._drop = drop
        self._claimed = claimed
        self._kit: Kit
        self.admission: Admission
        self._task: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        self._alarm: Alarm | None = None
        self._code_came = False
        self._strays = False
        self._looks_left = 0
        self._claiming = False

    def start(self, kit: Kit) -> None:
        """The engine was entered. Where it is a worker, begin to claim."""
        self._kit = kit
        self.admission = Admission(kit, self._definitions, self._room, self._held, self._resume_rows)
        self._due = asyncio.Event()
        self._due.set()
        self._alarm = None  # the last life's never rings
        self._code_came = True
        if self._config.worker:
            self._task = asyncio.create_task(self._claim_for_ever(), name="ewe-claims")

    async def stop(self) -> None:
        """Claim no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def cut_off(self) -> None:
        """Claim no more, from this moment on; `stop` waits for that."""
        if self._task is not None:
            self._task.cancel()

    # -- being woken -------------------------------------------------------------------------------------------------

    def is_busy(self) -> bool:
        """Whether it claims, or is about to."""
        return self._claiming or self._due.is_set()

    def look(self) -> None:
        """Sagas may have become free: claim what there is room for."""
        self._due.set()

    def code_came(self) -> None:
        """A saga was registered: those that wait for it can go on."""
        self._code_came = True
        self._due.set()

    def wake_by(self, when: int) -> None:
        """Look at that time (microseconds since 1970), or before it."""
        if self._alarm is None or self._alarm.callback is None or when < self._alarm.due:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._kit.alarms.at(when, self._due.set)

    def doubt(self) -> None:
        """A claim, or a start, had no answer: what it was for may be this worker's."""
        self._strays = True
        self._looks_left = _LOOKS_A_LEASE  # what was sent may be done yet

    def look_for_strays(self) -> None:
        """Look for sagas that are this worker's and not in its memory."""
        self._strays = True
        self._due.set()

    # -- claiming ----------------------------------------------------------------------------------------------------

    async def _claim_for_ever(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._claiming = True
            try:
                if self._strays:
                    self._strays = False
                    await self._release_strays()
                if self._kit.is_sure():
                    await self._claim_due()
                await self._look_at_code()
            except StorageError as error:
                _log.warning("claiming sagas failed, trying again: %s", error)
                self.doubt()  # a claim whose answer was lost may have been made
                await asyncio.sleep(_BACK_OFF_S)
                self._due.set()
            except Exception:  # noqa: BLE001 - nothing else would claim sagas if this task ended
                _log.exception("claiming sagas failed, trying again")
                await asyncio.sleep(_BACK_OFF_S)
                self._due.set()
            finally:
                self._claiming = False

    async def _release_strays(self) -> None:
        """Sagas that are this worker's by their rows but not in its memory go to whoever claims them next."""
        kit = self._kit
        try:
            # In its turn among all that is written, so behind the end of a claim whose answer was lost.
            await kit.storage.perform("release_sagas", worker=kit.worker.id, fences="{}", now=kit.now())
            rows = await kit.storage.query("owned_sagas", worker=kit.worker.id)
            known = {*self._runs, *self._unwritten}
            strays = {row["id"]: row["fence"] for row in rows if row["id"] not in known}
            ending = [one for one in strays if self._locks.held(one)]
            if ending:  # their code has not ended, and nobody shall run them beside it
                strays = {one: fence for one, fence in strays.items() if one not in ending}
                self._strays = True
                self.wake_by(kit.now() + int(_BACK_OFF_S * _MICROS))
            if strays:
                fences = msgspec.json.encode(strays).decode()
                await kit.storage.perform("release_sagas", worker=kit.worker.id, fences=fences, now=kit.now())
            if self._looks_left > 0:
                self._looks_left -= 1
                kit.loop.call_later(seconds(self._config.lease) / _LOOKS_A_LEASE, self.look_for_strays)
        except StorageError:
            self._strays = True
            raise

    async def _claim_due(self) -> None:
        kit = self._kit
        await self._queues.settle()
        await self.admission.look()
        while len(self._definitions):
            room = min(self._room(), _BATCH)
            if room <= 0:
                return
            rows = await kit.storage.perform(
                "claim_sagas", worker=kit.worker.id, now=kit.now(), limit=room, sagas=self._definitions.names_json
            )
            await self._resume_rows(rows)
            if len(rows) < room:
                break
        look_by = await self.admission.serve()
        if look_by is not None:
            self.wake_by(look_by)
        next_wake = await kit.storage.query("next_wake", sagas=self._definitions.names_json)
        if next_wake and next_wake[0]["wake_at"] is not None:
            self.wake_by(next_wake[0]["wake_at"])

    def _room(self) -> int:
        return self._config.max_running - len(self._runs)

    def _held(self, queue: str) -> int:
        places = [run.journal.queue for run in self._runs.values()]
        return sum(place is not None and place.queue == queue for place in places)

    async def _look_at_code(self) -> None:
        if not self._code_came:
            return
        self._code_came = False
        try:
            await self._retry_standing()
        except BaseException:
            self._code_came = True  # nobody says it again
            raise

    async def _retry_standing(self) -> None:
        """Sagas that stand because of their code may match what is registered now (rule 11)."""
        after = ""
        while True:
            page = await self._kit.storage.query(
                "sagas_page", state=WorkflowState.NEEDS_INTERVENTION.value, saga=None, after=after, limit=_BATCH
            )
            for row in page:
                after = row["id"]
                if row["ended_at"] is None and self._definitions.find(row["saga"], row["saga_version"]) is not None:
                    claimed = await self._kit.storage.perform("claim_saga", worker=self._kit.worker.id, id=row["id"])
                    await self._resume_rows(claimed, retry_code=True)
                    if not claimed:  # somebody, maybe this worker, has just looked at it and is about to let go of it
                        self._kit.loop.call_later(_BACK_OFF_S, self.code_came)
            if len(page) < _BATCH:
                return

    async def _resume_rows(self, rows: Rows, *, retry_code: bool = False) -> None:
        if not rows:
            return
        self._claimed(rows)
        streams = [stream for row in rows for stream in (saga_stream(row["id"]), inbox_stream(row["id"]))]
        by_stream: defaultdict[str, list[Record]] = defaultdict(list)
        for record in await self._kit.storage.read_streams(streams):
            by_stream[record.stream].append(record)
        for row in rows:
            saga_id = row["id"]
            journal, inbox = by_stream[saga_stream(saga_id)], by_stream[inbox_stream(saga_id)]
            place = self.admission.place_of(journal)
            if place is not None and not retry_code and self.admission.is_full(place):
                await self.admission.give_back(row, place)
            elif self._locks.held(saga_id):
                # Code of its former life has not ended; the others do not wait for that.
                self._kit.host.spawn(self._resume_when_free(row, journal, inbox, retry_code=retry_code))
            else:
                await self._locks.acquire(saga_id)
                self._resume_one(row, journal, inbox, retry_code=retry_code)

    async def _resume_when_free(
        self, row: dict[str, Any], journal: Sequence[Record], inbox: Sequence[Record], *, retry_code: bool
    ) -> None:
        await self._locks.acquire(row["id"])
        self._resume_one(row, journal, inbox, retry_code=retry_code)

    def _resume_one(
        self, row: dict[str, Any], journal: Sequence[Record], inbox: Sequence[Record], *, retry_code: bool
    ) -> None:
        saga = self._definitions.find(row["saga"], row["saga_version"])
        assert saga is not None, "only registered sagas are claimed"
        run = SagaRun(self._kit, saga, self._definitions.dag(saga), row["id"], row["fence"])
        self._runs[run.saga_id] = run
        try:
            resume(run, journal, inbox, row=row, retry_code=retry_code)
        except DecodeError as error:
            run.evict()
            self._drop(run)
            _log.error("saga %s needs intervention: %s", run.saga_id, error)
            self._kit.host.spawn(self._set_aside(run))

    async def _set_aside(self, run: SagaRun) -> None:
        """Its journal cannot be read, so nothing can be appended to it; its row says that it stands."""
        kit, stands = self._kit, {"state": WorkflowState.NEEDS_INTERVENTION.value, "owner": "", "wake_at": None}
        row = Row("sagas", "update", (run.saga_id,), stands, {"owner": kit.worker.id, "fence": run.fence})
        await kit.storage.write(Unit(uuid7(), kit.now(), rows=(row,), worker=kit.worker))
