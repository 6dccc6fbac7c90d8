"""Durable subscriptions and many workers: one feeds, and another when that one leaves or is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.integration.bus.kit import Moved, collector, position_of, started, until

from event_workflow_engine import EngineConfig, EventStore, WorkflowEngine
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.storage.port import Storage


async def test_one_worker_feeds_it_and_another_when_that_one_leaves(storage: Storage) -> None:
    seen: list[tuple[str, int]] = []
    both = asyncio.Event()

    def handler(name: str) -> Callable[[Moved], Awaitable[None]]:
        async def handle(event: Moved) -> None:
            seen.append((name, event.to))
            if len(seen) == 2:
                both.set()

        return handle

    async with WorkflowEngine(storage) as second:
        async with WorkflowEngine(storage) as first:
            first.bus.subscribe(Moved, handler("first"), durable="walks")
            await first.bus.drain()
            second.bus.subscribe(Moved, handler("second"), durable="walks")
            await first.store.append("way-1", Moved("ann", 1))
            await first.bus.drain()
            await second.bus.drain()
        await second.store.append("way-1", Moved("ann", 2))
        await both.wait()
    assert seen == [("first", 1), ("second", 2)]


async def test_many_workers_that_come_and_go_miss_nothing_and_keep_the_order(tmp_path: Any) -> None:
    """Each has a storage of its own on the file, as another process would; they leave in good order."""
    url = f"sqlite:///{tmp_path}/bus.db"
    seen: list[int] = []
    handle, enough = collector(seen, done=lambda: 199 in seen)

    async def worker(rounds: int) -> None:
        for _ in range(rounds):
            async with WorkflowEngine(url) as engine:
                engine.bus.subscribe(Moved, handle, durable="walks")
                await engine.bus.drain()

    async def appender(engine: WorkflowEngine) -> None:
        for to in range(200):
            await engine.store.append("way-1", Moved("ann", to))

    async with WorkflowEngine(url, config=EngineConfig(worker=False)) as engine:
        await asyncio.gather(appender(engine), *(worker(4) for _ in range(3)))
        async with WorkflowEngine(url) as last:
            last.bus.subscribe(Moved, handle, durable="walks")
            await last.bus.drain()
    assert enough.is_set()
    assert seen == list(range(200)), "in good order nothing is handed out twice"


async def test_a_worker_that_lost_it_notes_nothing_and_begins_nothing_more(storage: Storage) -> None:
    """It was declared dead while it was stopped, and another feeds on; when it comes back, the checkpoint is another's."""
    store, gate = EventStore(storage), asyncio.Event()
    first, second = list[int](), list[int]()

    async def handle(event: Moved) -> None:
        if event.to == 2:
            await gate.wait()
        first.append(event.to)

    bus = await started(store, "w-1")
    bus.subscribe(Moved, handle, durable="walks")
    await bus.drain()
    taken = Row("checkpoints", "update", ("subscription:walks",), {"owner": "w-2"}, {"owner": "w-1"})
    alive = Row("workers", "insert", ("w-2",), {"incarnation": 1, "alive": 1})
    await storage.write(Unit("taken", 1, rows=(taken, alive)))
    await store.append("way-1", [Moved("ann", to) for to in range(1, 6)])
    await until(lambda: first == [1] and not bus._feeds["walks"]._owned)
    gate.set()
    await bus.drain()
    assert first == [1, 2], "what it had begun"
    assert await position_of(storage, "walks") == 0
    other = await started(store, "w-2")
    other.subscribe(Moved, collector(second)[0], durable="walks")
    await other.drain()
    await bus.stop()
    await other.stop()
    assert second == [1, 2, 3, 4, 5], "at least once"
    row = await storage.get("checkpoints", ("subscription:walks",))
    assert row is not None
    assert (row["position"], row["owner"], row["events"]) == (5, "", 5)


async def test_a_checkpoint_without_an_owner_alive_is_taken_over(storage: Storage) -> None:
    """Its owner's row says that it is dead, or there is none."""
    store, seen = EventStore(storage), list[int]()
    await store.append("way-1", [Moved("ann", 1), Moved("ann", 2)])
    held = {"position": 1, "events": 1, "owner": "w-0"}
    rows = (
        Row("checkpoints", "insert", ("subscription:walks",), held),
        Row("workers", "insert", ("w-0",), {"incarnation": 1, "alive": 1}),
    )
    await storage.write(Unit("held", 1, rows=rows))
    bus = await started(store, "w-1")
    bus.subscribe(Moved, collector(seen)[0], durable="walks")
    await bus.drain()
    assert seen == [], "w-0 lives"
    await storage.perform("bury_worker", beat=None, id="w-0", incarnation=1, now=2)
    await until(lambda: bool(seen))
    await bus.drain()
    await bus.stop()
    assert seen == [2]


async def test_two_stores_do_not_mix(tmp_path: Any) -> None:
    seen: list[int] = []
    async with (
        open_storage("memory://") as one,
        open_storage(f"sqlite:///{tmp_path}/two.db") as two,
        WorkflowEngine(one) as first,
        WorkflowEngine(two) as second,
    ):
        first.bus.subscribe(Moved, collector(seen)[0], durable="walks")
        await second.store.append("way-1", Moved("ann", 1))
        await first.store.append("way-1", Moved("ann", 2))
        await first.bus.drain()
    assert seen == [2]
