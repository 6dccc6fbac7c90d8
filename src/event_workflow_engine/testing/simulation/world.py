"""One run of a plan: the processes, the client, the faults, and what became of it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import EngineStateError, SagaEndedError, StorageError
from event_workflow_engine.events import NewEvent
from event_workflow_engine.ids import ids_from
from event_workflow_engine.queues import Queue
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.testing.simulation.clock import SimulatedClock
from event_workflow_engine.testing.simulation.faults import Link, Weather
from event_workflow_engine.testing.simulation.feeds import Feeds, Thing
from event_workflow_engine.testing.simulation.invariants import Invariants
from event_workflow_engine.testing.simulation.ledger import Ledger
from event_workflow_engine.testing.simulation.loop import WORLD, SimulatedLoop, StalledError
from event_workflow_engine.testing.simulation.programs import GO, actions_of, program_of
from event_workflow_engine.testing.simulation.server import SimulatedServer, SimulatedStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from event_workflow_engine.saga import Saga
    from event_workflow_engine.testing.simulation.loop import Process
    from event_workflow_engine.testing.simulation.plan import Fault, Plan, Request

__all__ = ["Report", "run"]

LEASE_S: Final = 15.0
QUEUE: Final = "turns"
_CALM: Final = Weather()
_ENDS_WITHIN_S: Final = 2 * 600.0 + 600.0
"""Behind the last fault. A clock that is set back makes a timer so much later, and a retry behind it, too."""

_LOOK_S: Final = 1.0
_AGAIN_S: Final = 0.5
_PAUSES_S: Final = 6.0
_ROUNDS: Final = 3


class Report(msgspec.Struct, frozen=True):
    """What became of a run.

    Attributes:
        broken: The invariants that do not hold; empty: all do.
        digest: Of every turn and of the log: the same for the same plan.
        turns: How many callbacks ran.
        seconds: How much simulated time went by.
        crashes: How many processes were killed.
    """

    broken: tuple[str, ...]
    digest: str
    turns: int
    seconds: float
    crashes: int


def run(plan: Plan) -> Report:
    """Run it. The same plan gives the same report, in every process."""
    chance = random.Random(f"run {plan.seed}")
    with _alone(chance):
        return _played(plan, chance)


def _played(plan: Plan, chance: random.Random) -> Report:
    loop = SimulatedLoop(chance)
    world = _World(plan, loop, chance)
    try:
        loop.run_until_complete(world.play())
    except StalledError as error:
        world.invariants.breaks(f"the run stands still: {error}")
    finally:
        world.bury()
        loop.close()
    digest = hashlib.sha256(str(loop.digest).encode())
    for record in world.server.state.log:
        digest.update(repr(record).encode())
    return Report(tuple(world.invariants.broken), digest.hexdigest(), loop.turns, loop.time(), world.crashes)


@contextmanager
def _alone(chance: random.Random) -> Iterator[None]:
    """Have whatever else is random or noisy in this process follow the seed, or be still."""
    state, number = random.getstate(), iter(range(1 << 62))
    collects, unraisable, disabled = gc.isenabled(), sys.unraisablehook, logging.root.manager.disable
    random.seed(chance.random())
    logging.disable(logging.CRITICAL)
    gc.disable()
    gc.freeze()
    try:
        with ids_from(lambda: f"{next(number):012x}"):
            yield
    finally:
        sys.unraisablehook = _ignored  # what is left of killed processes complains that it was never ended
        for _ in range(_ROUNDS):  # what is closed may first try again
            gc.collect()
        gc.unfreeze()
        sys.unraisablehook = unraisable
        logging.disable(disabled)
        random.setstate(state)
        if collects:
            gc.enable()


def _ignored(_: Any) -> None:
    """Say nothing."""


class _Worker:
    """A place for worker processes: one at a time, and another when it was killed or stopped."""

    def __init__(self, world: _World, number: int) -> None:
        self._world = world
        self._number = number
        self._lives = 0
        self.link = Link(world.plan.weather, world.chance)
        self.clock = SimulatedClock(world.loop)
        self.process: Process
        self.storage: SimulatedStorage
        self._leaves: asyncio.Event
        self._task: asyncio.Task[None]
        self._killed: asyncio.Future[None]

    def begin(self) -> None:
        """Start a process."""
        world = self._world
        self._lives += 1
        self.process = world.loop.process(f"worker {self._number}.{self._lives}")
        self.storage = SimulatedStorage(world.server, self.process, self.link)
        self.process.holds.update(world.holds)
        self._leaves = asyncio.Event()
        self._task = self.process.start(self._live())
        self._killed = world.loop.create_future()

    async def _live(self) -> None:
        leaves, storage = self._leaves, self.storage
        while not leaves.is_set():
            engine = WorkflowEngine(storage, config=EngineConfig(lease=LEASE_S), clock=self.clock)
            self._world.register(engine)
            try:
                async with storage, engine:
                    await leaves.wait()
            except StorageError:  # it could not begin; whoever watches over it starts it again
                await asyncio.sleep(_AGAIN_S)

    def kill(self) -> None:
        """End it as SIGKILL does."""
        if self.process.dead:
            return
        self.process.kill()
        self.storage.gone()
        self._killed.set_result(None)
        self._world.crashes += 1

    async def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        task, leaves = self._task, self._leaves
        leaves.set()
        await asyncio.wait([task, self._killed], return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled() and task.exception() is not None:
            self._world.invariants.breaks(f"{self.process} ended with {task.exception()!r}")


class _World:
    """Everything of one run."""

    def __init__(self, plan: Plan, loop: SimulatedLoop, chance: random.Random) -> None:
        self.plan = plan
        self.loop = loop
        self.chance = chance
        self.server = SimulatedServer(loop)
        self.ledger = Ledger()
        self.feeds = Feeds(self.server.state)
        self.feeding = any(one.what == "append" for one in plan.requests)
        self.queue = Queue(QUEUE, limit=1)
        self.invariants = Invariants(plan, self.server, self.ledger, self.feeds)
        actions = {one.id: actions_of(one, self.ledger, self.invariants) for one in plan.sagas}
        self.holds = {(saga, one.plan.name): one for saga, of_saga in actions.items() for one in of_saga}
        self.sagas: dict[str, Saga[Any, Any]] = {one.id: program_of(one, actions[one.id]) for one in plan.sagas}
        self.workers = [_Worker(self, n) for n in range(plan.workers)]
        self.crashes = 0
        self._link = Link(plan.weather, chance)
        self._accepted: set[str] = set()
        self._cancelled: set[str] = set()
        self._asked: list[asyncio.Task[Any]] = []
        loop.set_exception_handler(self._unhandled)

    def register(self, engine: WorkflowEngine) -> None:
        """Register what the plan needs."""
        engine.register(*self.sagas.values())
        if any(one.queued for one in self.plan.sagas):
            engine.queues.register(self.queue)
        if self.feeding:
            self.feeds.register(engine)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.invariants.breaks(f"unhandled: {context.get('message')}: {context.get('exception')!r}")

    # -- playing -------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Play the plan to its end."""
        for worker in self.workers:
            worker.begin()
        client = self.loop.process("client")
        asking = client.start(self._ask_all(client))
        for fault in self.plan.faults:
            await self._until(fault.at)
            await self._strike(fault)
        await self._calm(asking)
        await self._ended()
        for worker in self.workers:
            await worker.stop()
        self.invariants.check_end(self._accepted, self._cancelled)
        if asking.done() and asking.exception() is not None:
            self.invariants.breaks(f"the client ended with {asking.exception()!r}")

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self.loop.time()))

    async def _strike(self, fault: Fault) -> None:
        worker = self.workers[fault.worker]
        if fault.what == "kill":
            if not worker.process.dead:
                worker.kill()
                self.loop.call_later(fault.seconds, worker.begin)
        elif fault.what == "stop":
            self._asked.append(asyncio.ensure_future(self._restart(worker)))
        elif fault.what == "freeze":
            process = worker.process
            process.freeze()
            self.loop.call_later(fault.seconds, process.thaw)
        elif fault.what == "cut":
            worker.link.cut_until = self.loop.time() + fault.seconds
        else:
            worker.clock.jump(fault.seconds)

    async def _restart(self, worker: _Worker) -> None:
        process = worker.process
        await worker.stop()
        if worker.process is process and not process.dead:
            worker.begin()

    async def _calm(self, asking: asyncio.Task[None]) -> None:
        """All was asked and has gone wrong: from now on nothing else does."""
        await asyncio.sleep(max((one.seconds for one in self.plan.faults if one.what != "clock"), default=0) + 1)
        for link in (self._link, *(worker.link for worker in self.workers)):
            link.weather = _CALM
        await asyncio.wait([asking, *self._asked])

    async def _ended(self) -> None:
        """Wait for the sagas' ends."""
        until = self.loop.time() + _ENDS_WITHIN_S
        ended_at = shape_of("sagas")
        sagas = self.server.state.tables["sagas"]
        while True:
            late = [image for image in sagas.values() if ended_at.as_dict(image)["ended_at"] is None]
            missing = ("sagas have ended" if late else "") or ("" if self.feeds.caught_up else "events were handled")
            missing = missing or ("" if all(map(self._counts, self.workers)) else "workers live as the store sees it")
            if not missing:
                return
            if self.loop.time() > until:
                self.invariants.breaks(f"not all {missing} {_ENDS_WITHIN_S:g} s behind the last fault")
                return
            await asyncio.sleep(_LOOK_S)

    def _counts(self, worker: _Worker) -> bool:
        """Whether a process that runs sagas is alive in the store, too."""
        if worker.process.dead:
            return True
        image = self.server.state.tables["workers"].get((worker.storage.worker,))
        return image is not None and shape_of("workers").as_dict(image)["alive"] == 1

    # -- asking --------------------------------------------------------------------------------------------------

    async def _ask_all(self, process: Process) -> None:
        storage = SimulatedStorage(self.server, process, self._link)
        while True:
            engine = WorkflowEngine(storage, config=EngineConfig(worker=False), clock=SimulatedClock(self.loop))
            self.register(engine)
            try:
                async with storage, engine:
                    async with asyncio.TaskGroup() as asking:
                        for n, request in enumerate(self.plan.requests):
                            asking.create_task(self._ask(engine, request, n))
                    return
            except StorageError:
                await asyncio.sleep(_AGAIN_S)

    async def _ask(self, engine: WorkflowEngine, request: Request, number: int) -> None:
        await self._until(request.at)
        if request.what == "start":
            queued = any(one.queued and one.id == request.saga for one in self.plan.sagas)
            turn: dict[str, Any] = {"queue": self.queue} if queued else {}
            await self._insist(lambda: engine.start(self.sagas[request.saga], id=request.saga, **turn))
            self._accepted.add(request.saga)
            return
        if request.what == "append":
            thing = NewEvent("simulated-thing", Thing(request.saga, number), id=f"thing-{number}")
            await self._insist(lambda: engine.store.append(request.saga, thing))
            return
        handle = engine.handle(request.saga)
        while not self.server.state.tables["sagas"].get((request.saga,)):  # noqa: ASYNC110 - it is started elsewhere
            await asyncio.sleep(_LOOK_S)
        if request.what == "signal":
            await self._insist(lambda: handle.signal(GO, number, id=f"signal-{number}"))
        elif request.what == "cancel":
            self._cancelled.add(request.saga)
            await self._insist(handle.cancel)
        else:
            await self._insist(handle.pause)
            await asyncio.sleep(_PAUSES_S)
            await self._insist(handle.resume)
            await asyncio.sleep(_PAUSES_S)  # by then a pause whose answer was lost has been made, too
            await self._insist(handle.resume)

    async def _insist(self, ask: Callable[[], Any]) -> None:
        while True:
            try:
                await ask()
            except (EngineStateError, SagaEndedError):
                return
            except StorageError:
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    # -- afterwards ----------------------------------------------------------------------------------------------

    def bury(self) -> None:
        """Let go of what was killed, without a word."""
        self.loop.set_exception_handler(lambda *_: None)
        WORLD.ready.clear()
