"""The places of worker processes: in each one at a time, and another when it was killed, or has other code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import StorageError
from event_workflow_engine.runner.balance import Tolerance
from event_workflow_engine.testing.simulation.clock import SimulatedClock
from event_workflow_engine.testing.simulation.faults import Link
from event_workflow_engine.testing.simulation.server import SimulatedStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.testing.simulation.loop import Process
    from event_workflow_engine.testing.simulation.plan import Code
    from event_workflow_engine.testing.simulation.world import World

__all__ = ["AGAIN_S", "LEASE_S", "Place"]

LEASE_S: Final = 15.0
EAGER: Final = Tolerance(least=1, slack=0, at_once=2, stays=0, quick=0.3, slow=0.5, takes=3, mute=5)
"""So that the few sagas of a run move, as soon as one worker has one more than another."""

AGAIN_S: Final = 0.5
"""After which whoever could not, tries again."""


class Place:
    """A place for worker processes.

    Args:
        world: Where it is.
        number: Of it.

    Attributes:
        codes: What the next process there has of each saga; the first version of those that are not named.
        mixed: Whether the process there has other code than that, too: what it had before it was given more.
        crashes: How many of its processes were killed.
    """

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._lives = 0
        self.codes: Mapping[str, Code] = {}
        self.mixed = False
        self.crashes = 0
        self.link = Link(world.plan.weather, world.chance)
        self.link.errors = {one.call: one.how for one in world.plan.errors if one.worker == number}
        self.clock = SimulatedClock(world.loop)
        self.process: Process
        self.storage: SimulatedStorage
        self._engine: WorkflowEngine
        self._leaves: asyncio.Event
        self._task: asyncio.Task[None]
        self._killed: asyncio.Future[None]

    def begin(self) -> None:
        """Start a process."""
        world = self._world
        self._lives += 1
        self.mixed = False
        self.process = world.loop.process(f"worker {self._number}.{self._lives}")
        self.storage = SimulatedStorage(world.server, self.process, self.link)
        self.process.holds.update(world.code.actions)
        self._engine = self._made(self.codes)
        self._leaves = asyncio.Event()
        self._task = self.process.start(self._live(self.codes))
        self._killed = world.loop.create_future()

    def _made(self, codes: Mapping[str, Code]) -> WorkflowEngine:
        engine = WorkflowEngine(self.storage, config=EngineConfig(lease=LEASE_S), clock=self.clock)
        self._world.code.register(engine, codes)
        if self._world.eager:
            engine.balance(EAGER)
        return engine

    async def _live(self, codes: Mapping[str, Code]) -> None:
        leaves, storage = self._leaves, self.storage
        while not leaves.is_set():
            try:
                async with storage, self._engine:
                    await leaves.wait()
            except StorageError:  # it could not begin; whoever watches over it starts it again
                await asyncio.sleep(AGAIN_S)
                self._engine = self._made(codes)

    def learn(self, codes: Mapping[str, Code]) -> None:
        """Register what is new in the process that runs there, and have the next one come with it."""
        self.codes, self.mixed = codes, True
        self._world.loop.later(0, self.process, self._world.code.add, self._engine, codes)

    def kill(self) -> bool:
        """End it as SIGKILL does; whether it was alive."""
        if self.process.dead:
            return False
        self.process.kill()
        self.storage.gone()
        self._killed.set_result(None)
        self.crashes += 1
        return True

    async def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        task, leaves = self._task, self._leaves
        leaves.set()
        await asyncio.wait([task, self._killed], return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled() and task.exception() is not None:
            self._world.invariants.breaks(f"{self.process} ended with {task.exception()!r}")

    async def restart(self, seconds: float = 0.0) -> None:
        """Stop it, and have another process there after a while."""
        process = self.process
        await self.stop()
        if seconds:
            await asyncio.sleep(seconds)
        if self.process is process and not process.dead:
            self.begin()
