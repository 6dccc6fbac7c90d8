"""The event bus: background delivery, order by key, retries, dead letters, durable subscriptions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    EngineConfig,
    EventBus,
    RetryPolicy,
    Saga,
    SagaStep,
    WorkflowEngine,
    current_event,
    event,
)
from event_workflow_engine.errors import DefinitionError, NotRegisteredError
from event_workflow_engine.history import SagaCompleted, StepSucceeded
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage

TWICE = RetryPolicy(attempts=2, delay=0, jitter=0)


@event("bus-test-moved")
@dataclass(frozen=True)
class Moved:
    who: str
    to: int


@event("bus-test-ran")
@dataclass(frozen=True)
class Ran(Moved):
    pass


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Storage]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/bus.db"
    async with open_storage(url) as opened:
        yield opened


@pytest.fixture
async def engine(storage: Storage) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(storage) as entered:
        yield entered


async def test_matching_is_by_type_base_class_or_star() -> None:
    bus, seen = EventBus(), list[tuple[str, object]]()
    bus.subscribe(Ran, lambda event: seen.append(("ran", event)))
    bus.subscribe(Moved, lambda event: seen.append(("moved", event)))
    bus.subscribe("*", lambda event: seen.append(("all", event)))
    walked, ran = Moved("ann", 1), Ran("ann", 2)
    for published in (walked, ran, "anything"):
        await bus.publish(published)
    await bus.drain()
    expected = [("moved", walked), ("all", walked), ("ran", ran), ("moved", ran), ("all", ran), ("all", "anything")]
    assert sorted(seen, key=repr) == sorted(expected, key=repr)
    await bus.stop()


async def test_publish_does_not_wait_for_handlers_and_drain_does() -> None:
    bus, gate, done = EventBus(), asyncio.Event(), list[str]()

    async def handle(event: str) -> None:
        await gate.wait()
        done.append(event)

    bus.subscribe(str, handle)
    await bus.publish("hello")
    draining = asyncio.create_task(bus.drain())
    await asyncio.sleep(0)
    assert done == []
    assert not draining.done()
    gate.set()
    await draining
    assert done == ["hello"]


async def test_events_of_a_key_are_in_order_and_keys_side_by_side() -> None:
    bus, gates, log = EventBus(), {"ann": asyncio.Event(), "bob": asyncio.Event()}, list[Moved]()
    enough = asyncio.Event()

    async def handle(event: Moved) -> None:
        await gates[event.who].wait()
        log.append(event)
        if len(log) == 3:
            enough.set()

    bus.subscribe(Moved, handle, key=lambda event: event.who)
    for to in range(3):
        for who in gates:
            await bus.publish(Moved(who, to))
    gates["bob"].set()
    await enough.wait()
    assert log == [Moved("bob", to) for to in range(3)], "ann's blocked partition blocks no other"
    gates["ann"].set()
    await bus.drain()
    assert log[3:] == [Moved("ann", to) for to in range(3)]


async def test_a_full_partition_makes_publish_wait() -> None:
    bus, gate = EventBus(partitions=1, queue_size=2), asyncio.Event()

    async def handle(_: int) -> None:
        await gate.wait()

    bus.subscribe(int, handle)
    for number in range(2):
        await bus.publish(number)
    third = asyncio.create_task(bus.publish(3))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not third.done()
    gate.set()
    await third
    await bus.drain()


def test_the_partition_of_a_key_is_the_same_in_every_process() -> None:
    program = "import zlib; print(zlib.crc32(b'o-1') % 16)"
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


async def test_what_fails_is_tried_again_and_then_a_dead_letter(engine: WorkflowEngine) -> None:
    calls, broken = 0, True

    async def handle(event: Moved) -> None:
        nonlocal calls
        calls += 1
        if broken:
            raise ValueError(f"no {event.who}")

    engine.bus.subscribe(Moved, handle, retry=TWICE)
    await engine.bus.publish(Moved("ann", 1))
    await engine.bus.drain()
    (letter,) = await engine.bus.dead_letters()
    assert (calls, letter.attempts, letter.error) == (2, 2, "ValueError: no ann")
    assert letter.event.data == Moved("ann", 1)
    broken = False
    await engine.bus.retry_dead(letter.id)
    await engine.bus.drain()
    assert calls == 3
    assert await engine.bus.dead_letters() == []


async def test_a_dead_letter_can_be_dropped_and_unknown_ones_are_told() -> None:
    bus = EventBus()

    def handle(_: str) -> None:
        raise ValueError("no")

    subscription = bus.subscribe(str, handle, retry=RetryPolicy(attempts=1))
    for _ in range(2):
        await bus.publish("x")
    await bus.drain()
    first, second = await bus.dead_letters()
    await bus.drop_dead(first.id)
    assert [letter.id for letter in await bus.dead_letters()] == [second.id]
    with pytest.raises(NotRegisteredError):
        await bus.retry_dead("nothing")
    subscription.cancel()
    with pytest.raises(NotRegisteredError, match="no handler here"):
        await bus.retry_dead(second.id)
    await bus.stop()


async def test_sync_handlers_run_in_threads_with_the_event_at_hand() -> None:
    bus, seen = EventBus(), list[tuple[bool, object]]()
    bus.subscribe(
        str, lambda event: seen.append((threading.current_thread() is threading.main_thread(), current_event().data))
    )
    await bus.publish("hello")
    await bus.drain()
    assert seen == [(False, "hello")]
    await bus.stop()


async def test_committed_events_reach_subscriptions_in_the_order_of_commits(engine: WorkflowEngine) -> None:
    seen: list[tuple[int, int]] = []

    async def handle(event: Moved) -> None:
        seen.append((current_event().position, event.to))

    engine.bus.subscribe(Moved, handle)
    await engine.bus.publish(Moved("nobody", -1))
    for to in range(20):
        await engine.store.append("way-1", Moved("ann", to))
    await engine.bus.drain()
    stored = [entry for entry in seen if entry[1] >= 0]
    assert stored == sorted(stored)
    assert [to for _, to in stored] == list(range(20))


async def test_the_engine_publishes_step_completions_and_saga_ends(engine: WorkflowEngine) -> None:
    steps: list[str] = []
    ends: list[str] = []

    async def act() -> int:
        return 7

    engine.bus.subscribe(StepSucceeded, lambda event: steps.append(event.step))
    engine.bus.subscribe(SagaCompleted, lambda _: ends.append(current_event().stream))
    saga = Saga("s", [SagaStep("a", act), SagaStep("b", act)], sequential=True)
    engine.register(saga)
    await engine.execute(saga, id="s-1")
    await engine.bus.drain()
    assert (steps, ends) == (["a", "b"], ["saga-s-1"])


async def test_a_durable_subscription_survives_restarts(storage: Storage) -> None:
    seen: list[int] = []

    async def handle(event: Moved) -> None:
        seen.append(event.to)

    for first in (0, 5):
        async with WorkflowEngine(storage) as engine:
            if first:
                await engine.store.append("way-1", Moved("ann", first))
            engine.bus.subscribe(Moved, handle, durable="walks")
            for to in range(first + 1, first + 5):
                await engine.store.append("way-1", Moved("ann", to))
            await engine.bus.drain()
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 9]


async def test_a_new_durable_subscription_begins_where_it_is_told(engine: WorkflowEngine) -> None:
    everything, news = list[int](), list[int]()
    await engine.store.append("way-1", Moved("ann", 1))
    engine.bus.subscribe(Moved, lambda event: everything.append(event.to), durable="all")
    engine.bus.subscribe(Moved, lambda event: news.append(event.to), durable="news", start="now")
    await engine.bus.drain()
    await engine.store.append("way-1", Moved("ann", 2))
    await engine.bus.drain()
    assert (everything, news) == ([1, 2], [2])


async def test_a_durable_subscription_is_fed_by_one_worker_and_moves_when_it_leaves(storage: Storage) -> None:
    seen: list[tuple[str, int]] = []
    both = asyncio.Event()

    def handler(name: str) -> Any:
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
        await second.store.append("way-1", Moved("ann", 2))
        await both.wait()
    assert seen == [("first", 1), ("second", 2)]


async def test_a_poison_event_does_not_stop_a_durable_subscription(engine: WorkflowEngine) -> None:
    seen: list[int] = []

    async def handle(event: Moved) -> None:
        if event.to == 2:
            raise ValueError("poison")
        seen.append(event.to)

    engine.bus.subscribe(Moved, handle, durable="walks", retry=TWICE)
    for to in range(1, 4):
        await engine.store.append("way-1", Moved("ann", to))
    await engine.bus.drain()
    assert seen == [1, 3]
    assert [letter.event.data.to for letter in await engine.bus.dead_letters()] == [2]


async def test_cancel_ends_a_subscription() -> None:
    bus, seen = EventBus(), list[str]()
    subscription = bus.subscribe(str, seen.append)
    await bus.publish("one")
    await bus.drain()
    subscription.cancel()
    await bus.publish("two")
    await bus.drain()
    assert seen == ["one"]
    await bus.stop()


async def test_wrong_subscriptions_are_refused(engine: WorkflowEngine) -> None:
    engine.bus.subscribe(Moved, print, durable="walks")
    with pytest.raises(DefinitionError, match="exists already"):
        engine.bus.subscribe(Moved, print, durable="walks")
    with pytest.raises(DefinitionError, match="a class"):
        engine.bus.subscribe("Moved", print)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError):
        EventBus(partitions=0)


async def test_an_engine_without_a_worker_feeds_no_durable_subscription(storage: Storage) -> None:
    async with WorkflowEngine(storage, config=EngineConfig(worker=False)) as engine:
        engine.bus.subscribe(Moved, print, durable="walks")
        await engine.store.append("way-1", Moved("ann", 1))
        await engine.bus.drain()
        assert await storage.get("checkpoints", ("subscription:walks",)) is None
