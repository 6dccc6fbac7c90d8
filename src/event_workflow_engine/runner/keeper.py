"""Keeps the sagas that are in memory: starts them, claims those that are due, resumes, evicts, hands over."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.clock import seconds
from event_workflow_engine.errors import (
    DecodeError,
    EncodeError,
    EngineStateError,
    OwnershipLostError,
    RowConflictError,
    StorageError,
    VersionConflictError,
)
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import inbox_stream, saga_stream
from event_workflow_engine.locks import SagaLocks
from event_workflow_engine.runner.acting import Acting
from event_workflow_engine.runner.admission import Admission
from event_workflow_engine.runner.balance import Tolerance
from event_workflow_engine.runner.balancing import Balancer
from event_workflow_engine.runner.children import Children
from event_workflow_engine.runner.codeless import CodeWatch
from event_workflow_engine.runner.due import waits_in_memory
from event_workflow_engine.runner.ends import Ends, log_undone
from event_workflow_engine.runner.handover import frees, leave
from event_workflow_engine.runner.leaving import threads
from event_workflow_engine.runner.resume import resume
from event_workflow_engine.runner.run import SagaRun
from event_workflow_engine.runner.starting import new_saga, same_or_conflict, taken_key
from event_workflow_engine.runner.unwritten import Unwritten
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from event_workflow_engine.config import EngineConfig
    from event_workflow_engine.queues import Placement, Queues
    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.runner.starting import NewSaga
    from event_workflow_engine.saga import Saga, StepSpec
    from event_workflow_engine.storage.port import Record, WorkerRef, Written
    from event_workflow_engine.timers import Alarm
    from event_workflow_engine.waits import Wait

__all__ = ["SagaKeeper"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_MICROS: Final = 1_000_000
_BATCH: Final = 500
_BACK_OFF_S: Final = 0.5
_LOOKS_A_LEASE: Final = 4
"""How often a worker looks again for what a claim without an answer has brought it: on its way it can be late."""


class SagaKeeper:
    """The table of sagas in memory and everything that moves them in and out of it. The `Host` of their runs.

    Args:
        definitions: The sagas that can run here.
        config: The engine's.
        queues: Its queues.
        on_gone: Called when another worker is gone, with more than sagas maybe.
    """

    def __init__(
        self, definitions: Definitions, config: EngineConfig, queues: Queues, on_gone: Callable[[], None]
    ) -> None:
        self._definitions = definitions
        self._on_gone = on_gone
        self._config = config
        self._queues = queues
        self._kit: Kit | None = None
        self._runs: dict[str, SagaRun] = {}
        self._locks = SagaLocks()
        self._acting = Acting(self._locks)
        self.ends = Ends(definitions, self._runs)
        self.children = Children(definitions, self.ends, self.start_saga)
        self._tasks: set[asyncio.Task[None]] = set()
        self._claimer: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        self._due_alarm: Alarm | None = None
        self._code_came = False
        self._strays = False
        self._looks_left = 0
        self._lost: list[str] = []
        self._unwritten = Unwritten(self._freed)
        self._looking = False
        self._accepting = False
        self._removers: list[Callable[[], None]] = []
        self._admission: Admission
        self._balancer: Balancer | None = None
        self.tolerance = Tolerance()
        self.left_behind = False
        """Whether code of sagas was left running in threads: who leaves the engine was cancelled."""
        self._claiming = False

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def kit(self) -> Kit:
        """What the runs share.

        Raises:
            EngineStateError: The engine is not entered.
        """
        if self._kit is None:
            raise EngineStateError("the engine is not open: use it inside of `async with engine:`")
        return self._kit

    def start(self, kit: Kit) -> None:
        """Begin to accept, claim and resume."""
        self._kit = kit
        self.left_behind = False
        self._due = asyncio.Event()
        self._due.set()
        self._code_came = True
        self._accepting = True
        self.ends.start(kit)
        self._admission = Admission(kit, self._definitions, self._room, self._held, self._resume_rows)
        self._removers = [kit.storage.add_commit_hook(self._committed), kit.storage.add_bell(self._rung, own=False)]
        if self._config.worker:
            self._claimer = asyncio.create_task(self._claim_for_ever(), name="ewe-claims")
            self._balancer = Balancer(kit, self._runs, self.tolerance, self._admission.keeps)
            self._balancer.start()
            self.spawn(CodeWatch(kit, self._definitions).look_for_ever())

    async def stop(self) -> None:
        """Let running actions end, hand every saga over, and wait for code that cannot be cut off."""
        self._accepting = False
        try:
            await self._stop_claiming()
            for run in self._runs.values():
                run.draining = True
            timeout = seconds(self._config.shutdown_timeout)
            await leave(self._runs, self._acting, self._drop, self.children, timeout)
        finally:
            self.left_behind = any(threads(run) for run in (*self._runs.values(), *self._acting))
            for run in list(self._runs.values()):
                run.evict()
                self._drop(run)
            self._acting.give_up()
            for remove in self._removers:
                remove()
            self.ends.stop()
            self.children.stop()
            if self._due_alarm is not None:  # of this life's: the next life's would wait for one that never rings
                self._due_alarm.cancel()
                self._due_alarm = None
            self._unwritten.forget()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._kit = None

    async def _stop_claiming(self) -> None:
        balancer, self._balancer = self._balancer, None
        if balancer is not None:
            await balancer.stop()
        claimer, self._claimer = self._claimer, None
        if claimer is not None:
            claimer.cancel()
            await asyncio.gather(claimer, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """See `Host.spawn`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("internal task failed", exc_info=task.exception())

    # -- starting ----------------------------------------------------------------------------------------------------

    async def start_saga(
        self, saga: Saga[Any, Any], value: Any, saga_id: str, place: Placement | None = None
    ) -> tuple[str, bool]:
        """Accept a saga; durable when it returns. Its id, and whether it is new: the same id is the same saga.

        Raises:
            SagaConflictError: The id is another saga's, or this one's with another input.
            DuplicateSagaError: Its queue has another one with its key.
            EncodeError: The input is no JSON, or not of the saga's type.
        """
        kit = self.kit
        at = kit.now() if place is None else await self._queues.instant(place.queue)
        new = new_saga(kit.codec, saga, value, saga_id, at, place)
        while self._accepting:
            try:
                if place is None and self._config.worker and len(self._runs) < self._config.max_running:
                    await self._run_new(new)
                else:
                    await self._leave_waiting(new)
            except (RowConflictError, VersionConflictError) as error:
                if await same_or_conflict(kit.storage, new, error):
                    return saga_id, False
                other = await taken_key(kit.storage, new)
                if other is not None:
                    return other, False
            else:
                return saga_id, True
        raise EngineStateError("the engine is being left and takes no new sagas")

    async def _run_new(self, new: NewSaga) -> None:
        saga_id = new.id
        known = self._runs.get(saga_id)
        if known is not None:
            if known.accepted is not None and not known.accepted.done():
                await asyncio.wait((known.accepted,))
            raise RowConflictError("sagas", (saga_id,), "absent")
        await self._locks.acquire(saga_id)
        if saga_id in self._runs or not self._accepting:
            self._locks.release(saga_id)
            raise RowConflictError("sagas", (saga_id,), "absent")
        run = self._runs[saga_id] = SagaRun(self.kit, new.saga, self._definitions.dag(new.saga), saga_id, 1)
        accepted = run.accepted = self.kit.loop.create_future()
        run.accept(new.started, new.value, new.owned_rows(self.kit.worker.id))
        await accepted

    async def _leave_waiting(self, new: NewSaga) -> None:
        """No room, no worker here, or a queue: it waits in the store."""
        await self.kit.storage.write(new.waiting_unit())
        self._due.set()
        self.ends.left(new.id)
        self.ends.look()

    def child_step(self, saga: Saga[Any, Any], value: Any, saga_id: str | None, step: str) -> StepSpec:
        """See `Host.child_step`."""
        return self.children.step(saga, value, saga_id, step)

    # -- what runs tell ----------------------------------------------------------------------------------------------

    def run_ended(self, run: SagaRun) -> None:
        """See `Host.run_ended`."""
        log_undone(run)
        self._drop(run)
        self.ends.reached(run.saga_id, run)

    def run_parked(self, run: SagaRun) -> None:
        """See `Host.run_parked`."""
        self._drop(run)
        if run.journal.state is WorkflowState.NEEDS_INTERVENTION:
            stands = run.journal.intervention
            if stands is not None:
                _log.error("saga %s needs intervention: %s: %s", run.saga_id, stands.error_type, stands.message)
            self.ends.reached(run.saga_id, run)
        else:
            self.ends.left(run.saga_id)
        if run.parked_until is not None:
            self._wake_by(run.parked_until)

    def run_lost(self, run: SagaRun, error: BaseException) -> None:
        """See `Host.run_lost`: what was in memory is dropped; the store says what is true."""
        if self._balancer is not None:
            self._balancer.lost(run)
        accepted = run.accepted
        if accepted is not None and not accepted.done():
            self._drop(run)
            accepted.set_exception(error)
            if isinstance(error, StorageError) and not isinstance(error, (OwnershipLostError, RowConflictError)):
                self._doubt_what_is_owned()  # it may have been accepted, as this worker's
                self._due.set()
            return
        self._drop(run)
        self.ends.left(run.saga_id)  # it may have ended, or end elsewhere
        if isinstance(error, (StorageError, EncodeError)) and not isinstance(
            error, (OwnershipLostError, RowConflictError)
        ):
            self._unwritten.add(self.kit, run, error)
            return
        self.ends.look()
        self._lost.append(run.saga_id)
        if len(self._lost) == 1:  # a worker that is taken for dead loses all that it has: one line for them
            self.kit.loop.call_later(_BACK_OFF_S, self._log_lost, error)

    def _log_lost(self, error: BaseException) -> None:
        lost, self._lost = self._lost, []
        shown = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")  # noqa: PLR2004 - enough to recognise them by
        _log.warning("%d sagas (%s) are no longer this worker's: %s", len(lost), shown, error)

    def _freed(self) -> None:
        self.code_came()  # where it stood, what was not written may be that it stands no more
        self.ends.look()

    def _drop(self, run: SagaRun) -> None:
        if self._runs.pop(run.saga_id, None) is None:
            return
        full = len(self._runs) + 1 >= self._config.max_running
        self._acting.left(run)
        if full or run.journal.queue is not None:
            self._due.set()

    # -- being woken -------------------------------------------------------------------------------------------------

    def _committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        runs, me = self._runs, self.kit.worker.id
        if self._admission.moved_by(batch):
            self._due.set()
        for unit, _ in batch:
            if unit.worker is None and unit.appends:
                stream = unit.appends[0].stream
                if stream.startswith("inbox-"):
                    run = runs.get(stream[6:])
                    if run is not None and not run.parking:
                        run.wake()
                    else:  # it is not in memory, or was about to leave it and did so in the same batch
                        self._due.set()
                elif stream.startswith("saga-"):  # a new one that nobody owns
                    self._due.set()
            elif unit.worker is not None and unit.worker.id != me and frees(unit, me):
                self._due.set()  # by another engine in this process
        self.ends.look()

    def _rung(self) -> None:
        """Something was committed by another process, maybe for a saga of ours."""
        self.ends.look()
        self._due.set()
        if self._runs and not self._looking:
            self._looking = True
            self.spawn(self._wake_signalled())

    async def _wake_signalled(self) -> None:
        self._looking = False
        try:
            rows = await self.kit.storage.query("woken_sagas", worker=self.kit.worker.id)
        except StorageError as error:  # nobody may ring again for what was sent
            _log.warning("could not look for what was sent to sagas, trying again: %s", error)
            await asyncio.sleep(_BACK_OFF_S)
            if not self._looking:
                self._looking = True
                self.spawn(self._wake_signalled())
            return
        for row in rows:
            run = self._runs.get(row["id"])
            if run is not None:
                run.wake()

    def _wake_by(self, when: int) -> None:
        if self._due_alarm is None or self._due_alarm.callback is None or when < self._due_alarm.due:
            if self._due_alarm is not None:
                self._due_alarm.cancel()
            self._due_alarm = self.kit.alarms.at(when, self._due.set)

    @property
    def is_idle(self) -> bool:
        """Whether no code of a saga and no unit is under way, and nothing waits to be claimed.

        Who waits for a child is no code that is under way: the child may be.
        """
        busy = any(self.children.acting_on(run) for run in self._runs.values())
        return not self._due.is_set() and not self._claiming and not busy

    def waits_here(self, saga_id: str) -> list[Wait]:
        """What a saga in memory waits for, but for steps; empty where it is not in memory."""
        run = self._runs.get(saga_id)
        return [] if run is None or run.closed else waits_in_memory(run)

    def poke(self) -> None:
        """Sagas may have become free: claim what there is room for."""
        self._due.set()

    def offer(self) -> dict[str, Any]:
        """See `WorkerOwner.offer`."""
        return {"max_running": self._config.max_running, "runs": self._definitions.told()}

    def worker_came(self) -> None:
        """See `WorkerOwner.worker_came`."""
        if self._balancer is not None:
            self._balancer.worker_came()

    def worker_gone(self) -> None:
        """See `WorkerOwner.worker_gone`."""
        self._due.set()
        self._on_gone()

    def worker_reborn(self, ref: WorkerRef) -> None:
        """See `WorkerOwner.worker_reborn`: what is in memory is others' now, and nothing is recorded of it."""
        self._let_go()
        self.kit.worker = ref
        self._due.set()

    def worker_sure_again(self) -> None:
        """See `WorkerOwner.worker_sure_again`: sagas that were let go of meanwhile are still this worker's."""
        self._strays = True
        self._due.set()

    def _let_go(self) -> None:
        for run in list(self._runs.values()):
            run.lose(OwnershipLostError("this worker was taken for dead"))

    def code_came(self) -> None:
        """A saga was registered: those that wait for it can go on."""
        self._code_came = True
        self._due.set()

    async def _claim_for_ever(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._claiming = True
            try:
                if self._strays:
                    self._strays = False
                    await self._release_strays()
                if self.kit.is_sure():
                    await self._claim_due()
                await self._look_at_code()
            except StorageError as error:
                _log.warning("claiming sagas failed, trying again: %s", error)
                self._doubt_what_is_owned()  # a claim whose answer was lost may have been made
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
        kit = self.kit
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
                self._wake_by(kit.now() + int(_BACK_OFF_S * _MICROS))
            if strays:
                fences = msgspec.json.encode(strays).decode()
                await kit.storage.perform("release_sagas", worker=kit.worker.id, fences=fences, now=kit.now())
            if self._looks_left > 0:
                self._looks_left -= 1
                kit.loop.call_later(seconds(self._config.lease) / _LOOKS_A_LEASE, self._look_for_strays)
        except StorageError:
            self._strays = True
            raise

    def _doubt_what_is_owned(self) -> None:
        self._strays = True
        self._looks_left = _LOOKS_A_LEASE  # what was sent may be done yet

    def _look_for_strays(self) -> None:
        self._strays = True
        self._due.set()

    async def _claim_due(self) -> None:
        kit = self.kit
        await self._queues.settle()
        await self._admission.look()
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
        look_by = await self._admission.serve()
        if look_by is not None:
            self._wake_by(look_by)
        next_wake = await kit.storage.query("next_wake", sagas=self._definitions.names_json)
        if next_wake and next_wake[0]["wake_at"] is not None:
            self._wake_by(next_wake[0]["wake_at"])

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
            page = await self.kit.storage.query(
                "sagas_page", state=WorkflowState.NEEDS_INTERVENTION.value, saga=None, after=after, limit=_BATCH
            )
            for row in page:
                after = row["id"]
                if row["ended_at"] is None and self._definitions.find(row["saga"], row["saga_version"]) is not None:
                    claimed = await self.kit.storage.perform("claim_saga", worker=self.kit.worker.id, id=row["id"])
                    await self._resume_rows(claimed, retry_code=True)
                    if not claimed:  # somebody, maybe this worker, has just looked at it and is about to let go of it
                        self.kit.loop.call_later(_BACK_OFF_S, self.code_came)
            if len(page) < _BATCH:
                return

    async def _resume_rows(self, rows: Sequence[dict[str, Any]], *, retry_code: bool = False) -> None:
        if not rows:
            return
        if self._balancer is not None:
            self._balancer.claimed(rows)
        streams = [stream for row in rows for stream in (saga_stream(row["id"]), inbox_stream(row["id"]))]
        by_stream: defaultdict[str, list[Record]] = defaultdict(list)
        for record in await self.kit.storage.read_streams(streams):
            by_stream[record.stream].append(record)
        for row in rows:
            saga_id = row["id"]
            journal, inbox = by_stream[saga_stream(saga_id)], by_stream[inbox_stream(saga_id)]
            place = self._admission.place_of(journal)
            if place is not None and not retry_code and self._admission.is_full(place):
                await self._admission.give_back(row, place)
            elif self._locks.held(saga_id):
                # Code of its former life has not ended; the others do not wait for that.
                self.spawn(self._resume_when_free(row, journal, inbox, retry_code=retry_code))
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
        run = SagaRun(self.kit, saga, self._definitions.dag(saga), row["id"], row["fence"])
        self._runs[run.saga_id] = run
        try:
            resume(run, journal, inbox, row=row, retry_code=retry_code)
        except DecodeError as error:
            run.evict()
            self._drop(run)
            _log.error("saga %s needs intervention: %s", run.saga_id, error)
            self.spawn(self._set_aside(run))

    async def _set_aside(self, run: SagaRun) -> None:
        """Its journal cannot be read, so nothing can be appended to it; its row says that it stands."""
        kit, stands = self.kit, {"state": WorkflowState.NEEDS_INTERVENTION.value, "owner": "", "wake_at": None}
        row = Row("sagas", "update", (run.saga_id,), stands, {"owner": kit.worker.id, "fence": run.fence})
        await kit.storage.write(Unit(uuid7(), kit.now(), rows=(row,), worker=kit.worker))
