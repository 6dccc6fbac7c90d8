"""One run of a plan: the processes, the client, the faults, and what became of it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
import sys
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.ids import ids_from
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.testing.simulation.client import Client
from event_workflow_engine.testing.simulation.codebase import CodeBase
from event_workflow_engine.testing.simulation.faults import Weather
from event_workflow_engine.testing.simulation.feeds import Feeds
from event_workflow_engine.testing.simulation.invariants import Invariants
from event_workflow_engine.testing.simulation.ledger import Ledger
from event_workflow_engine.testing.simulation.loop import WORLD, SimulatedLoop, StalledError
from event_workflow_engine.testing.simulation.mending import Mending
from event_workflow_engine.testing.simulation.places import Place
from event_workflow_engine.testing.simulation.plan import Deploy
from event_workflow_engine.testing.simulation.server import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine.testing.simulation.plan import Fault, Plan

__all__ = ["Report", "World", "run"]

_CALM: Final = Weather()
_ENDS_WITHIN_S: Final = 600.0
"""Behind the last fault."""
_SET_BACK_S: Final = 2 * 600.0
"""A clock that is set back makes a timer so much later, and a retry behind it, too."""

_EAGER: Final = 0.7
"""How many of the runs have sagas move between workers that live."""

_LOOK_S: Final = 1.0
_ROUNDS: Final = 10


class Report(msgspec.Struct, frozen=True):
    """What became of a run.

    Attributes:
        broken: The invariants that do not hold; empty: all do.
        digest: Of every turn and of the log: the same for the same plan.
        turns: How many callbacks ran.
        seconds: How much simulated time went by.
        crashes: How many processes were killed.
        met: How many of the plan's single errors happened.
    """

    broken: tuple[str, ...]
    digest: str
    turns: int
    seconds: float
    crashes: int
    met: int = 0


def run(plan: Plan) -> Report:
    """Run it. The same plan gives the same report, in every process."""
    chance = random.Random(f"run {plan.seed}")
    with _alone(chance):
        return _played(plan, chance)


def _played(plan: Plan, chance: random.Random) -> Report:
    loop = SimulatedLoop(chance)
    world = World(plan, loop, chance)
    try:
        loop.run_until_complete(world.play())
    except StalledError as error:
        world.invariants.breaks(f"the run stands still: {error}")
    finally:
        world.bury()
        loop.close()
    digest = hashlib.sha256(array("q", loop.trace).tobytes())
    for record in world.server.state.log:
        digest.update(repr(record).encode())
    met = sum(place.link.met for place in world.places)
    return Report(tuple(world.invariants.broken), digest.hexdigest(), loop.turns, loop.time(), world.crashes, met)


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
        _collect()
        gc.unfreeze()
        sys.unraisablehook = unraisable
        logging.disable(disabled)
        random.setstate(state)
        if collects:
            gc.enable()


def _collect() -> None:
    """Leave nothing of the run in memory."""
    idle = 0
    for _ in range(_ROUNDS):
        # What is closed may first try again: a round that finds nothing may have woken what the next one finds.
        idle = 0 if gc.collect() else idle + 1
        if idle == 2:
            return


def _ignored(_: Any) -> None:
    """Say nothing."""


class World:
    """Everything of one run.

    Args:
        plan: What is played.
        loop: In whose time.
        chance: Draws what the plan leaves open.
    """

    def __init__(self, plan: Plan, loop: SimulatedLoop, chance: random.Random) -> None:
        self.plan = plan
        self.loop = loop
        self.chance = chance
        self.server = SimulatedServer(loop)
        self.ledger = Ledger()
        self.feeds = Feeds(self.server.state)
        self.eager = random.Random(f"balance {plan.seed}").random() < _EAGER
        self.invariants = Invariants(plan, self.server, self.ledger, self.feeds)
        self.code = CodeBase(plan, self.ledger, self.invariants, self.feeds)
        self.places = [Place(self, n) for n in range(plan.workers)]
        self._client = Client(self)
        self._mending = Mending(self)
        self._asked: list[asyncio.Task[Any]] = []
        loop.set_exception_handler(self._unhandled)

    @property
    def crashes(self) -> int:
        """How many processes were killed."""
        return sum(place.crashes for place in self.places)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.invariants.breaks(f"unhandled: {context.get('message')}: {context.get('exception')!r}")

    # -- playing -------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Play the plan to its end."""
        for place in self.places:
            place.begin()
        asking = self._client.begin()
        strikes: list[Fault | Deploy] = [*self.plan.faults, *self.plan.deploys]
        for strike in sorted(strikes, key=lambda one: one.at):
            await asyncio.sleep(max(0.0, strike.at - self.loop.time()))
            if isinstance(strike, Deploy):
                self._deploy(strike)
            else:
                self._strike(strike)
        await self._calm(asking)
        await self._ended()
        for place in self.places:
            await place.stop()
        self.invariants.check_end(self._client.accepted, self._client.cancelled)
        if asking.done() and asking.exception() is not None:
            self.invariants.breaks(f"the client ended with {asking.exception()!r}")

    def _strike(self, fault: Fault) -> None:
        place = self.places[fault.worker]
        if fault.what == "kill":
            if place.kill():
                self.loop.call_later(fault.seconds, place.begin)
        elif fault.what == "stop":
            self._asked.append(asyncio.ensure_future(place.restart()))
        elif fault.what == "freeze":
            process = place.process
            process.freeze()
            self.loop.call_later(fault.seconds, self.loop.thaw, process)
        elif fault.what == "cut":
            place.link.cut_until = self.loop.time() + fault.seconds
        elif fault.what == "restart":
            self.server.restart(fault.seconds)
        else:
            place.clock.jump(fault.seconds)

    def _deploy(self, deploy: Deploy) -> None:
        place = self.places[deploy.worker]
        if deploy.how == "register":
            place.learn(deploy.codes)
            return
        place.codes = deploy.codes
        if deploy.how == "stop":
            self._asked.append(asyncio.ensure_future(place.restart(deploy.seconds)))
        elif place.kill():
            self.loop.call_later(deploy.seconds, place.begin)

    async def _calm(self, asking: asyncio.Task[None]) -> None:
        """All was asked and has gone wrong: from now on nothing else does, and the code becomes what is needed."""
        lasts = [one.seconds for one in self.plan.faults if one.what != "clock"]
        await asyncio.sleep(max((*lasts, *(one.seconds for one in self.plan.deploys)), default=0) + 1)
        for link in (self._client.link, *(place.link for place in self.places)):
            link.weather = _CALM
        await asyncio.wait([asking, *self._asked])
        await self._mending.begin()

    async def _ended(self) -> None:
        """Wait for the sagas' ends."""
        clocks = any(one.what == "clock" for one in self.plan.faults)
        within = _ENDS_WITHIN_S + (_SET_BACK_S if clocks else 0.0)
        until = self.loop.time() + within
        while missing := self._missing():
            if self.loop.time() > until:
                self.invariants.breaks(f"not all {missing} {within:g} s behind the last fault")
                return
            await asyncio.sleep(_LOOK_S)
            await self._mending.look()

    def _missing(self) -> str:
        if not all(map(self.invariants.ended, self.server.state.tables["sagas"].values())):
            return "sagas have ended"
        if not self.feeds.caught_up:
            return "events were handled"
        if not all(map(self._counts, self.places)):
            return "workers live as the store sees it"
        return self.invariants.slots.behind(max(place.clock.now() for place in self.places))

    def _counts(self, place: Place) -> bool:
        """Whether a process that runs sagas is alive in the store, too."""
        if place.process.dead:
            return True
        image = self.server.state.tables["workers"].get((place.storage.worker,))
        return image is not None and shape_of("workers").as_dict(image)["alive"] == 1

    # -- afterwards ----------------------------------------------------------------------------------------------

    def bury(self) -> None:
        """Let go of what was killed, without a word."""
        self.loop.set_exception_handler(lambda *_: None)
        sys.unraisablehook = _ignored  # what is left of it complains that it was never ended
        WORLD.clear()
