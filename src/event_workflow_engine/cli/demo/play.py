"""The demo's plot: start, kill at a point that is read from disk, start again, and look at how it ended."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.cli.demo.orders import ORDERS, Entry, Shop, World, fulfilment, sums
from event_workflow_engine.cli.output import event_as_plain
from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import SagaFailedError, WorkflowError
from event_workflow_engine.events import RecordedEvent
from event_workflow_engine.journal import saga_stream
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["DemoError", "Kill", "Outcome", "play"]

_SLOW: Final = 3600.0
_QUICK: Final = 0.2
_LOOK_EVERY_S: Final = 0.02
_PATIENCE_S: Final = 30.0

PROMISED: Final = {ORDERS[0].id: WorkflowState.COMPLETED, ORDERS[1].id: WorkflowState.COMPENSATED}
"""How the two orders end, whatever is killed."""


class DemoError(WorkflowError):
    """The demo did not show what it promises."""


@dataclass(frozen=True)
class Kill:
    """The kill.

    Attributes:
        pid: Of the worker.
        after_position: The log's last position when the worker was dead.
        at: Microseconds since 1970.
    """

    pid: int
    after_position: int
    at: int


@dataclass(frozen=True)
class Outcome:
    """All there is to show.

    Attributes:
        url: The store.
        states: How each order ended.
        events: What happened to both, in the order of the log.
        kill: The kill.
        second_pid: The worker that took over.
        ledger: The world's.
        seconds: How long it took.
    """

    url: str
    states: dict[str, str]
    events: list[RecordedEvent[Any]]
    kill: Kill
    second_pid: int
    ledger: list[Entry]
    seconds: float

    def faults(self) -> list[str]:
        """What is not as promised; empty when all is."""
        found = [
            f"{order} ended as {self.states.get(order)}, not as {state.value}"
            for order, state in PROMISED.items()
            if self.states.get(order) != state.value
        ]
        keys = [entry.key for entry in self.ledger]
        found += [f"the world saw {key} twice" for key in sorted({key for key in keys if keys.count(key) > 1})]
        for order in ORDERS:
            done = PROMISED[order.id] is WorkflowState.COMPLETED
            wanted = {"stock": -1, "cash": order.cents, "parcels": 1} if done else dict.fromkeys(_ACCOUNTS, 0)
            moved = sums(self.ledger, order.id)
            if moved != wanted:
                found.append(f"the ledger of {order.id} does not balance: {moved}, not {wanted}")
        return found

    def as_plain(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "url": self.url,
            "orders": [{"id": order.id, "state": self.states.get(order.id)} for order in ORDERS],
            "killed": asdict(self.kill),
            "second_worker": self.second_pid,
            "events": [event_as_plain(event) for event in self.events],
            "ledger": [asdict(entry) for entry in self.ledger],
            "balances": {order.id: sums(self.ledger, order.id) for order in ORDERS},
            "as_promised": not self.faults(),
            "seconds": round(self.seconds, 3),
        }


_ACCOUNTS: Final = ("stock", "cash", "parcels")


async def play(folder: Path, say: Callable[[str], None]) -> Outcome:
    """Play it in a folder of its own.

    Args:
        folder: An empty one; the store and the ledger are made in it.
        say: Told what happens, a line at a time.

    Raises:
        DemoError: It did not get to its end.
    """
    began = time.monotonic()
    url, world = f"sqlite:///{folder / 'demo.db'}", World(folder / "ledger.jsonl")
    try:
        async with asyncio.timeout(_PATIENCE_S), WorkflowEngine(url, config=EngineConfig(worker=False)) as engine:
            engine.register(fulfilment(Shop(world, _QUICK)))
            for order in ORDERS:
                await engine.start("fulfil-order", order, id=order.id)
                say(f"accepted {order.id}: {order.sku} to {order.to}")
            kill = await _first_life(engine, world, say)
            second, states = await _second_life(engine, world, say)
            events = [event for order in ORDERS for event in await engine.handle(order.id).history()]
    except TimeoutError:
        raise DemoError(f"it did not end within {_PATIENCE_S:g} s; its files are in {folder}") from None
    events.sort(key=lambda event: event.position)
    return Outcome(url, states, events, kill, second, world.entries(), time.monotonic() - began)


async def _first_life(engine: WorkflowEngine, world: World, say: Callable[[str], None]) -> Kill:
    """A worker whose carrier never answers, killed when both payments are recorded and a parcel is booked."""
    worker = await _spawn(engine.store.storage.url, world, _SLOW)
    try:
        say(f"worker {worker.pid} begins")
        await _until(worker, lambda: _in_the_middle(engine, world))
    finally:
        await _kill(worker)
    say(f"worker {worker.pid} killed: both orders paid, one parcel booked, none confirmed")
    return Kill(worker.pid, await engine.store.storage.last_position(), time.time_ns() // 1000)


async def _in_the_middle(engine: WorkflowEngine, world: World) -> bool:
    """Read from disk: both shipments have begun, so both payments are recorded; and the carrier has noted a parcel."""
    begun = 0
    for order in ORDERS:
        events = [event async for event in engine.store.read(saga_stream(order.id))]
        begun += any(event.type == "step-started" and event.data.step == "shipment" for event in events)
    return begun == len(ORDERS) and any(entry.account == "parcels" for entry in world.entries())


async def _second_life(engine: WorkflowEngine, world: World, say: Callable[[str], None]) -> tuple[int, dict[str, str]]:
    worker = await _spawn(engine.store.storage.url, world, _QUICK)
    try:
        say(f"worker {worker.pid} takes over")
        states: dict[str, str] = {}

        async def ended() -> bool:
            for order in ORDERS:
                row = await engine.store.storage.get("sagas", (order.id,))
                if row is not None and row["ended_at"] is not None:
                    states[order.id] = row["state"]
            return len(states) == len(ORDERS)

        await _until(worker, ended)
        for order in ORDERS:
            try:
                await engine.handle(order.id).result()
            except SagaFailedError as error:
                say(f"{order.id} ended: {error.status}")
            else:
                say(f"{order.id} ended: {WorkflowState.COMPLETED}")
        assert worker.stdin is not None
        worker.stdin.close()
        await worker.wait()
    finally:
        await _kill(worker)
    return worker.pid, states


async def _spawn(url: str, world: World, carrier_takes: float) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "event_workflow_engine.cli.demo.worker",
        url,
        str(world.path),
        str(carrier_takes),
        stdin=asyncio.subprocess.PIPE,
    )


async def _kill(worker: asyncio.subprocess.Process) -> None:
    if worker.returncode is None:
        worker.kill()
        await worker.wait()


async def _until(worker: asyncio.subprocess.Process, reached: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until it is so. The ledger is a plain file, so nobody rings."""
    while not await reached():
        if worker.returncode is not None:
            raise DemoError(f"the worker ended by itself, with exit code {worker.returncode}")
        await asyncio.sleep(_LOOK_EVERY_S)
