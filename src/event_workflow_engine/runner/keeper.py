"""Keeps the sagas that are in memory: starts them, has those claimed that are due, hears of them, hands them over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.clock import seconds
from event_workflow_engine.errors import (
    EncodeError,
    EngineStateError,
    OwnershipLostError,
    RowConflictError,
    StorageError,
    VersionConflictError,
)
from event_workflow_engine.locks import SagaLocks
from event_workflow_engine.runner.acting import Acting
from event_workflow_engine.runner.balance import Tolerance
from event_workflow_engine.runner.balancing import Balancer
from event_workflow_engine.runner.children import Children
from event_workflow_engine.runner.claiming import Claimer
from event_workflow_engine.runner.codeless import CodeWatch
from event_workflow_engine.runner.ends import Ends, log_undone
from event_workflow_engine.runner.glance import Glance
from event_workflow_engine.runner.handover import frees, leave
from event_workflow_engine.runner.leaving import threads
from event_workflow_engine.runner.run import SagaRun
from event_workflow_engine.runner.starting import new_saga, same_or_conflict, taken_key
from event_workflow_engine.runner.unwritten import Unwritten
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from event_workflow_engine.config import EngineConfig
    from event_workflow_engine.queues import Placement, Queues
    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.runner.starting import NewSaga
    from event_workflow_engine.saga import Saga, StepSpec
    from event_workflow_engine.storage.port import Rows, Unit, WorkerRef, Written

__all__ = ["SagaKeeper"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_BACK_OFF_S: Final = 0.5


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
        self._unwritten = Unwritten(self._freed)
        self.claims = Claimer(
            definitions, config, queues, self._runs, self._unwritten, self._locks, self._drop, self._claimed
        )
        self._lost: list[str] = []
        self._looking = False
        self._accepting = False
        self._removers: list[Callable[[], None]] = []
        self._balancer: Balancer | None = None
        self.tolerance = Tolerance()
        self.left_behind = False
        """Whether code of sagas was left running in threads: there was haste."""
        self.glance = Glance(self._runs, self.children, self.claims.is_busy)

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
        self._accepting = True
        self.ends.start(kit)
        self.claims.start(kit)
        self._removers = [kit.storage.add_commit_hook(self._committed), kit.storage.add_bell(self._rung, own=False)]
        if self._config.worker:
            self._balancer = Balancer(kit, self._runs, self.tolerance, self.claims.admission.keeps)
            self._balancer.start()
            self.spawn(CodeWatch(kit, self._definitions).look_for_ever())

    async def stop(self, haste: asyncio.Future[None]) -> None:
        """Let running actions end, hand every saga over, and wait for code that cannot be cut off.

        Args:
            haste: When this is done, nothing is waited for any more.
        """
        self._accepting = False
        try:
            balancer, self._balancer = self._balancer, None
            if balancer is not None:
                await balancer.stop()
            await self.claims.stop()
            for run in self._runs.values():
                run.draining = True
            timeout = seconds(self._config.shutdown_timeout)
            await leave(self._runs, self._acting, self._drop, self.children, timeout, haste)
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
            self._unwritten.forget()
            for task in list(self._tasks):
                task.cancel()
            try:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            finally:
                self._kit = None

    def cut_off(self) -> None:
        """Let nothing begin, and end what runs but for threads; `stop` hands it over."""
        self._accepting = False
        self.claims.cut_off()
        for run in self._runs.values():
            if not threads(run):
                run.evict()

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
        self.claims.look()
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
            self.claims.wake_by(run.parked_until)

    def run_lost(self, run: SagaRun, error: BaseException) -> None:
        """See `Host.run_lost`: what was in memory is dropped; the store says what is true."""
        if self._balancer is not None:
            self._balancer.lost(run)
        accepted = run.accepted
        if accepted is not None and not accepted.done():
            self._drop(run)
            accepted.set_exception(error)
            if isinstance(error, StorageError) and not isinstance(error, (OwnershipLostError, RowConflictError)):
                self.claims.doubt()  # it may have been accepted, as this worker's
                self.claims.look()
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
        self.claims.code_came()  # where it stood, what was not written may be that it stands no more
        self.ends.look()

    def _drop(self, run: SagaRun) -> None:
        if self._runs.pop(run.saga_id, None) is None:
            return
        full = len(self._runs) + 1 >= self._config.max_running
        self._acting.left(run)
        if full or run.journal.queue is not None:
            self.claims.look()

    # -- being woken -------------------------------------------------------------------------------------------------

    def _committed(self, batch: Sequence[tuple[Unit, Written]]) -> None:
        runs, me = self._runs, self.kit.worker.id
        if self.claims.admission.moved_by(batch):
            self.claims.look()
        for unit, _ in batch:
            if unit.worker is None and unit.appends:
                stream = unit.appends[0].stream
                if stream.startswith("inbox-"):
                    run = runs.get(stream[6:])
                    if run is not None and not run.parking:
                        run.wake()
                    else:  # it is not in memory, or was about to leave it and did so in the same batch
                        self.claims.look()
                elif stream.startswith("saga-"):  # a new one that nobody owns
                    self.claims.look()
            elif unit.worker is not None and unit.worker.id != me and frees(unit, me):
                self.claims.look()  # by another engine in this process
        self.ends.look()

    def _rung(self) -> None:
        """Something was committed by another process, maybe for a saga of ours."""
        self.ends.look()
        self.claims.look()
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

    def _claimed(self, rows: Rows) -> None:
        if self._balancer is not None:
            self._balancer.claimed(rows)

    def offer(self) -> dict[str, Any]:
        """See `WorkerOwner.offer`."""
        return {"max_running": self._config.max_running, "runs": self._definitions.told()}

    def worker_came(self) -> None:
        """See `WorkerOwner.worker_came`."""
        if self._balancer is not None:
            self._balancer.worker_came()

    def worker_gone(self) -> None:
        """See `WorkerOwner.worker_gone`."""
        self.claims.look()
        self._on_gone()

    def worker_reborn(self, ref: WorkerRef) -> None:
        """See `WorkerOwner.worker_reborn`: what is in memory is others' now, and nothing is recorded of it."""
        self._let_go()
        self.kit.worker = ref
        self.claims.look()

    def worker_sure_again(self) -> None:
        """See `WorkerOwner.worker_sure_again`: sagas that were let go of meanwhile are still this worker's."""
        self.claims.look_for_strays()

    def _let_go(self) -> None:
        for run in list(self._runs.values()):
            run.lose(OwnershipLostError("this worker was taken for dead"))
