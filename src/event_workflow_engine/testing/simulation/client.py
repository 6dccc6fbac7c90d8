"""Who asks: one process that runs no sagas, and asks again until it was understood."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import EngineStateError, SagaEndedError, StorageError
from event_workflow_engine.events import NewEvent
from event_workflow_engine.tasks import Task
from event_workflow_engine.testing.simulation.clock import SimulatedClock
from event_workflow_engine.testing.simulation.faults import Link
from event_workflow_engine.testing.simulation.feeds import Thing
from event_workflow_engine.testing.simulation.places import AGAIN_S
from event_workflow_engine.testing.simulation.programs import GO
from event_workflow_engine.testing.simulation.server import SimulatedStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.testing.simulation.plan import Code, Request
    from event_workflow_engine.testing.simulation.world import World

__all__ = ["Client"]

_LOOK_S: Final = 1.0
_PAUSES_S: Final = 6.0


class Client:
    """Makes the requests of a plan.

    Args:
        world: Where it is.

    Attributes:
        link: Its way to the server.
        accepted: The sagas that it was promised, each with the versions that were its newest when it asked.
        cancelled: The sagas that it cancelled.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._plan = world.plan
        self.link = Link(world.plan.weather, world.chance)
        self.accepted: dict[str, set[int]] = {}
        self.cancelled: set[str] = set()
        self._asked: defaultdict[str, set[int]] = defaultdict(set)
        self._upgraded: dict[str, Code] = {}
        self._queued = {one.id for one in world.plan.sagas if one.queued}
        self._schedules = {one.id: one for one in world.plan.schedules}

    def begin(self) -> asyncio.Task[None]:
        """Start its process."""
        process = self._world.loop.process("client")
        storage = SimulatedStorage(self._world.server, process, self.link)
        return process.start(self._ask_all(storage))

    async def _ask_all(self, storage: SimulatedStorage) -> None:
        while True:
            clock = SimulatedClock(self._world.loop)
            engine = WorkflowEngine(storage, config=EngineConfig(worker=False), clock=clock)
            self._world.code.register(engine, self._upgraded)
            try:
                async with storage, engine:
                    async with asyncio.TaskGroup() as asking:
                        for n, request in enumerate(self._plan.requests):
                            asking.create_task(self._ask(engine, request, n))
                    return
            except StorageError:
                await asyncio.sleep(AGAIN_S)

    async def _ask(self, engine: WorkflowEngine, request: Request, number: int) -> None:
        await asyncio.sleep(max(0.0, request.at - self._world.loop.time()))
        if request.what == "start":
            await self._insist(lambda: self._start(engine, request.saga))
            self.accepted[request.saga] = self._asked[request.saga]
        elif request.what == "append":
            thing = NewEvent("simulated-thing", Thing(request.saga, number), id=f"thing-{number}")
            await self._insist(lambda: engine.store.append(request.saga, thing))
        elif request.what == "upgrade":
            self._upgraded[request.saga] = "both"
            self._world.code.add(engine, self._upgraded)
        elif request.what == "schedule":
            await self._insist(lambda: self._schedule(engine, request.saga))
        elif request.what == "unschedule":
            await self._insist(lambda: engine.scheduler.cancel(request.saga))
        else:
            await self._tell(engine, request, number)

    async def _tell(self, engine: WorkflowEngine, request: Request, number: int) -> None:
        """Ask something of a saga that there is."""
        handle = engine.handle(request.saga)
        while not self._world.server.state.tables["sagas"].get((request.saga,)):  # noqa: ASYNC110 - it is started elsewhere
            await asyncio.sleep(_LOOK_S)
        if request.what == "signal":
            await self._insist(lambda: handle.signal(GO, number, id=f"signal-{number}"))
        elif request.what == "cancel":
            self.cancelled.add(request.saga)
            await self._insist(handle.cancel)
        else:
            await self._insist(handle.pause)
            await asyncio.sleep(_PAUSES_S)
            await self._insist(handle.resume)
            await asyncio.sleep(_PAUSES_S)  # by then a pause whose answer was lost has been made, too
            await self._insist(handle.resume)

    async def _start(self, engine: WorkflowEngine, saga: str) -> None:
        turn: dict[str, Any] = {"queue": self._world.code.queue} if saga in self._queued else {}
        self._asked[saga].add(2 if saga in self._upgraded else 1)
        await engine.start(saga, id=saga, **turn)

    async def _schedule(self, engine: WorkflowEngine, task: str) -> None:
        plan = self._schedules[task]
        what: Any = self._world.code.calls[task] if plan.saga is None else Task.saga(plan.saga)
        if plan.kind == "every":
            await engine.scheduler.every(plan.every, what, missed=plan.missed, id=task)
        elif plan.kind == "cron":
            await engine.scheduler.cron(f"*/{plan.every} * * * *", what, missed=plan.missed, id=task)
        else:
            await engine.scheduler.schedule(what, delay=plan.every, id=task)

    async def _insist(self, ask: Callable[[], Any]) -> None:
        while True:
            try:
                await ask()
            except (EngineStateError, SagaEndedError):
                return
            except StorageError:
                await asyncio.sleep(AGAIN_S)
            else:
                return
