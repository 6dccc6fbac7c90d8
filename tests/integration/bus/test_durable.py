"""Durable subscriptions: what reaches them, over restarts too."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.integration.bus.kit import Faulty, Moved, Noise, Ran, collector, started

from event_workflow_engine import EngineConfig, EventStore, Saga, SagaStep, WorkflowEngine, current_event
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.history import StepSucceeded

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage


async def test_it_survives_restarts_and_gets_what_was_committed_meanwhile(storage: Storage) -> None:
    seen: list[int] = []
    handle, _ = collector(seen)
    store = EventStore(storage)
    for first in (0, 5, 10):
        await store.append("way-1", Moved("ann", first))
        async with WorkflowEngine(storage) as engine:
            engine.bus.subscribe(Moved, handle, durable="walks")
            for to in range(first + 1, first + 5):
                await engine.store.append("way-1", Moved("ann", to))
            await engine.bus.drain()
    assert seen == list(range(15))


async def test_subscribing_may_come_before_entering(storage: Storage) -> None:
    seen: list[int] = []
    handle, _ = collector(seen)
    engine = WorkflowEngine(storage)
    engine.bus.subscribe(Moved, handle, durable="walks")
    for to in range(2):
        async with engine:
            await engine.store.append("way-1", Moved("ann", to))
            await engine.bus.drain()
    assert seen == [0, 1]


async def test_it_does_not_get_what_is_only_published(engine: WorkflowEngine) -> None:
    seen: list[int] = []
    handle, _ = collector(seen)
    engine.bus.subscribe(Moved, handle, durable="walks")
    await engine.bus.publish(Moved("ann", 1))
    await engine.store.append("way-1", Moved("ann", 2))
    await engine.bus.drain()
    assert seen == [2]


async def test_base_classes_and_star(engine: WorkflowEngine) -> None:
    moved, every = list[int](), list[str]()
    handle, _ = collector(moved)

    async def handle_all(_: object) -> None:
        every.append(current_event().type)

    engine.bus.subscribe(Moved, handle, durable="walks")
    engine.bus.subscribe("*", handle_all, durable="all", key=lambda _: "one")
    await engine.store.append("way-1", [Moved("ann", 1), Noise(), Ran("ann", 2)])
    await engine.bus.drain()
    assert moved == [1, 2]
    assert every == ["bus-test-moved", "bus-test-noise", "bus-test-ran"]


async def test_facts_packed_in_one_record_arrive_one_by_one(engine: WorkflowEngine) -> None:
    steps: list[tuple[str, int]] = []

    async def act() -> int:
        return 7

    async def handle(event: StepSucceeded) -> None:
        steps.append((event.step, current_event().version))

    engine.bus.subscribe(StepSucceeded, handle, durable="steps")
    saga = Saga("s", [SagaStep("a", act), SagaStep("b", act), SagaStep("c", act, after=("a", "b"))])
    engine.register(saga)
    await engine.execute(saga, id="s-1")
    await engine.bus.drain()
    journal = {event.version: event.data async for event in engine.store.read("saga-s-1")}
    assert sorted(step for step, _ in steps) == ["a", "b", "c"]
    assert all(journal[version].step == step for step, version in steps)


async def test_a_new_one_begins_where_it_is_told(engine: WorkflowEngine) -> None:
    everything, news = list[int](), list[int]()
    await engine.store.append("way-1", Moved("ann", 1))
    engine.bus.subscribe(Moved, collector(everything)[0], durable="all")
    engine.bus.subscribe(Moved, collector(news)[0], durable="news", start="now")
    await engine.store.append("way-1", Moved("ann", 2))
    await engine.bus.drain()
    assert (everything, news) == ([1, 2], [2])


async def test_from_now_means_from_the_call_on_also_while_many_append(engine: WorkflowEngine) -> None:
    seen: list[int] = []
    appends = [asyncio.create_task(engine.store.append("way-1", Moved("bob", -1))) for _ in range(50)]
    await asyncio.gather(*appends)
    engine.bus.subscribe(Moved, collector(seen)[0], durable="news", start="now")
    await asyncio.gather(*(engine.store.append("way-1", Moved("ann", to)) for to in range(50)))
    await engine.bus.drain()
    assert seen == list(range(50))


async def test_from_now_means_from_the_call_on_also_where_the_feed_comes_late_to_it(storage: Storage) -> None:
    slow, gate, seen = Faulty(storage), asyncio.Event(), list[int]()
    slow.before_last_position = gate.wait
    bus, store = await started(EventStore(slow)), EventStore(storage)  # type: ignore[arg-type]
    await store.append("way-1", Moved("bob", -1))
    bus.subscribe(Moved, collector(seen)[0], durable="news", start="now")
    for to in range(3):
        await store.append("way-1", Moved("ann", to))
    gate.set()
    await bus.drain()
    await bus.stop()
    assert seen == [0, 1, 2]


async def test_one_that_has_a_checkpoint_goes_on_there_whatever_start_says(storage: Storage) -> None:
    seen: list[int] = []
    for start in ("beginning", "now"):
        async with WorkflowEngine(storage) as engine:
            engine.bus.subscribe(Moved, collector(seen)[0], durable="walks", start=start)  # type: ignore[call-overload]
            await engine.bus.drain()
        await EventStore(storage).append("way-1", Moved("ann", 1))
    async with WorkflowEngine(storage) as engine:
        engine.bus.subscribe(Moved, collector(seen)[0], durable="walks", start="now")
        await engine.bus.drain()
    assert seen == [1, 1]


async def test_cancelled_it_keeps_its_checkpoint_for_the_next(engine: WorkflowEngine) -> None:
    first, second = list[int](), list[int]()
    subscription = engine.bus.subscribe(Moved, collector(first)[0], durable="walks")
    await engine.store.append("way-1", Moved("ann", 1))
    await engine.bus.drain()
    subscription.cancel()
    await engine.store.append("way-1", Moved("ann", 2))
    engine.bus.subscribe(Moved, collector(second)[0], durable="walks")
    await engine.bus.drain()
    assert (first, second) == ([1], [2])


async def test_the_next_of_its_name_begins_when_the_cancelled_one_has_ended(engine: WorkflowEngine) -> None:
    begun, gate, first, second = asyncio.Event(), asyncio.Event(), list[int](), list[int]()

    async def handle(event: Moved) -> None:
        begun.set()
        await gate.wait()
        first.append(event.to)

    subscription = engine.bus.subscribe(Moved, handle, durable="walks")
    await engine.store.append("way-1", Moved("ann", 1))
    await begun.wait()
    subscription.cancel()
    engine.bus.subscribe(Moved, collector(second)[0], durable="walks")
    await engine.store.append("way-1", Moved("ann", 2))
    for _ in range(50):
        await engine.store.head("way-1")
    gate.set()
    await engine.bus.drain()
    assert (first, second) == ([1], [2])


async def test_wrong_ones_are_refused(engine: WorkflowEngine) -> None:
    @dataclass(frozen=True)
    class NoEvent:
        pass

    engine.bus.subscribe(Moved, print, durable="walks")
    with pytest.raises(DefinitionError, match="exists already"):
        engine.bus.subscribe(Moved, print, durable="walks")
    with pytest.raises(DefinitionError, match="not empty"):
        engine.bus.subscribe(Moved, print, durable="")
    with pytest.raises(DefinitionError, match=r"NoEvent.*decorate it"):
        engine.bus.subscribe(NoEvent, print, durable="none")


async def test_an_engine_without_a_worker_feeds_none(storage: Storage) -> None:
    async with WorkflowEngine(storage, config=EngineConfig(worker=False)) as engine:
        engine.bus.subscribe(Moved, print, durable="walks")
        await engine.store.append("way-1", Moved("ann", 1))
        await engine.bus.drain()
        assert await storage.get("checkpoints", ("subscription:walks",)) is None
