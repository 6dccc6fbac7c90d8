"""What an engine commits reaches the subscriptions of its bus, after the commit, in the order of commits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.bus.kit import ONCE, Moved, Noise, Ran, started, until

from event_workflow_engine import (
    EventStore,
    NewEvent,
    Saga,
    SagaStep,
    WorkflowEngine,
    current_event,
    current_saga,
    event,
)
from event_workflow_engine.errors import EngineStateError, OutsideSagaError
from event_workflow_engine.events import upcaster
from event_workflow_engine.history import SagaCompleted, StepSucceeded
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from event_workflow_engine.storage.port import Storage


async def test_committed_events_arrive_in_the_order_of_commits_and_published_ones_between(
    engine: WorkflowEngine,
) -> None:
    seen: list[tuple[int, int]] = []

    async def handle(event: Moved) -> None:
        recorded = current_event()
        assert recorded.data == event
        seen.append((recorded.position, event.to))

    engine.bus.subscribe(Moved, handle, key=lambda _: "one")
    await engine.bus.publish(Moved("nobody", -1))
    await asyncio.gather(*(engine.store.append(f"way-{to % 3}", Moved("ann", to)) for to in range(50)))
    await engine.bus.drain()
    stored = [entry for entry in seen if entry[1] >= 0]
    assert seen[0] == (0, -1), "published, not stored"
    assert [position for position, _ in stored] == list(range(1, 51))


async def test_events_of_a_stream_are_in_order_without_a_key(engine: WorkflowEngine) -> None:
    seen: dict[str, list[int]] = {}

    async def handle(event: Moved) -> None:
        await asyncio.sleep(0)
        seen.setdefault(event.who, []).append(event.to)

    engine.bus.subscribe(Moved, handle)
    for to in range(20):
        for who in ("ann", "bob", "cid"):
            await engine.store.append(f"way-{who}", Moved(who, to))
    await engine.bus.drain()
    assert seen == {who: list(range(20)) for who in ("ann", "bob", "cid")}


async def test_it_is_there_after_the_commit_and_only_if_there_was_one(engine: WorkflowEngine) -> None:
    positions: list[int] = []

    async def handle(event: Moved) -> None:
        stored = [one async for one in engine.store.read(current_event().stream)]
        assert current_event() in stored
        positions.append(current_event().position)

    engine.bus.subscribe(Moved, handle)
    await engine.store.append("way-1", Moved("ann", 1), expected_version=0)
    with pytest.raises(Exception, match="expected"):
        await engine.store.append("way-1", Moved("ann", 2), expected_version=0)
    await engine.bus.drain()
    assert positions == [1]


async def test_a_base_class_gets_what_derives_from_it_also_when_that_is_registered_later(
    engine: WorkflowEngine,
) -> None:
    seen: list[str] = []
    name = f"bus-test-crept-{type(engine.storage).__name__}"  # in no other run of this test

    async def handle(event: Moved) -> None:
        seen.append(type(event).__name__)

    engine.bus.subscribe(Moved, handle)
    await engine.store.append("way-1", [Moved("ann", 1), Ran("ann", 2)])
    await engine.store.append("way-1", NewEvent(name, {"who": "ann", "to": 0}))
    await engine.bus.drain()

    @event(name)
    @dataclass(frozen=True)
    class Crept(Moved):
        pass

    await engine.store.append("way-1", Crept("ann", 3))
    await engine.bus.drain()
    assert seen == ["Moved", "Ran", "Crept"]


async def test_the_engine_publishes_step_completions_and_saga_ends(engine: WorkflowEngine) -> None:
    steps: list[str] = []
    ends: list[str] = []

    async def act() -> int:
        return 7

    async def step(event: StepSucceeded) -> None:
        steps.append(event.step)

    async def end(_: SagaCompleted) -> None:
        ends.append(current_event().stream)

    engine.bus.subscribe(StepSucceeded, step)
    engine.bus.subscribe(SagaCompleted, end)
    saga = Saga("s", [SagaStep("a", act), SagaStep("b", act)], sequential=True)
    engine.register(saga)
    await engine.execute(saga, id="s-1")
    await engine.bus.drain()
    assert (steps, ends) == (["a", "b"], ["saga-s-1"])


async def test_what_a_step_publishes_tells_its_saga_and_its_handler_is_outside_of_it(engine: WorkflowEngine) -> None:
    seen: list[Any] = []

    async def handle(event: Moved) -> None:
        with pytest.raises(OutsideSagaError):
            current_saga()
        await engine.store.append("note-1", Noise("seen"))
        seen.append(current_event().metadata)

    async def act() -> None:
        await engine.bus.publish(Moved("ann", 1))

    engine.bus.subscribe(Moved, handle)
    saga = Saga("s", [SagaStep("a", act)])
    engine.register(saga)
    await engine.execute(saga, id="s-1")
    await engine.bus.drain()
    (metadata,) = seen
    assert metadata.saga_id == metadata.correlation_id == "s-1"
    (note,) = [one async for one in engine.store.read("note-1")]
    assert (note.metadata.correlation_id, note.metadata.saga_id) == ("s-1", None)


async def test_what_nobody_wants_is_not_even_decoded(engine: WorkflowEngine) -> None:
    decoded: list[dict[str, Any]] = []

    @event("bus-test-old", version=2)
    @dataclass(frozen=True)
    class Old:
        n: int

    @upcaster("bus-test-old", from_version=1)
    def to_two(payload: dict[str, Any]) -> dict[str, Any]:
        decoded.append(payload)
        return payload

    async def handle(_: object) -> None:
        pass

    engine.bus.subscribe(Moved, handle)
    engine.bus.subscribe(Moved, handle, durable="walks")
    await engine.store.append("old-1", NewEvent("bus-test-old", {"n": 1}, version=1))
    await engine.bus.drain()
    by_the_append = len(decoded)
    engine.bus.subscribe(Old, handle)
    engine.bus.subscribe(Old, handle)
    await engine.bus.drain()
    assert len(decoded) == by_the_append
    await engine.store.append("old-1", NewEvent("bus-test-old", {"n": 2}, version=1))
    await engine.bus.drain()
    assert len(decoded) == 2 * by_the_append + 1, "once for both handlers"


async def test_other_processes_commits_are_for_durable_subscriptions_only(tmp_path: Path) -> None:
    """Another storage on the same file stands for another process."""
    url = f"sqlite:///{tmp_path}/bus.db"
    here, durable = list[int](), list[int]()

    async def handle(event: Moved) -> None:
        here.append(event.to)

    async def handle_durably(event: Moved) -> None:
        durable.append(event.to)

    async with WorkflowEngine(url) as engine, open_storage(url) as elsewhere:
        engine.bus.subscribe(Moved, handle)
        engine.bus.subscribe(Moved, handle_durably, durable="walks")
        await EventStore(elsewhere).append("way-1", Moved("ann", 1))
        await engine.store.append("way-1", Moved("ann", 2))
        await engine.bus.drain()
    assert (here, durable) == ([2], [1, 2])


@pytest.mark.parametrize("durable", [None, "walks"])
async def test_a_handler_that_hangs_holds_up_its_own_partition_and_nothing_else(
    storage: Storage, durable: str | None
) -> None:
    """Far more events than its queue holds wait for it, in the log, while those behind them are handled."""
    store = EventStore(storage)
    bus = await started(store, partitions=4, queue_size=8)
    gate, stuck, others, elsewhere = asyncio.Event(), list[int](), list[int](), list[int]()

    async def handle(event: Moved) -> None:
        if event.who == "ann":
            await gate.wait()
            stuck.append(event.to)
        else:
            others.append(event.to)

    async def handle_elsewhere(event: Moved) -> None:
        elsewhere.append(event.to)

    slow = bus.subscribe(Moved, handle, key=lambda event: event.who, durable=durable)
    bus.subscribe(Moved, handle_elsewhere)
    for to in range(600):
        await store.append("way-ann", [Moved("ann", to), Noise()])
    for to in range(100):
        await store.append("way-eve", Moved("eve", to))
    waiting = asyncio.create_task(bus.drain())
    await until(lambda: len(others) == 100 and len(elsewhere) == 700)
    assert (stuck, others) == ([], list(range(100)))
    assert sum(len(lane.queue) for lane in slow.lanes._lanes) <= 8 + 1, "the rest is in the log, not in memory"
    published = asyncio.create_task(bus.publish(Moved("ann", 600)))
    gate.set()
    await waiting
    await published
    await bus.drain()
    assert stuck == list(range(600 if durable else 601))
    await bus.stop()


async def test_what_was_committed_right_before_the_stop_is_handled(storage: Storage) -> None:
    store, seen = EventStore(storage), list[int]()
    bus = await started(store)

    async def handle(event: Moved) -> None:
        seen.append(event.to)

    bus.subscribe(Moved, handle)
    await store.append("way-1", Moved("ann", 1))
    await bus.stop()
    assert seen == [1]
    await store.append("way-1", Moved("ann", 2))
    assert seen == [1]


async def test_what_waits_in_the_log_is_a_dead_letter_when_the_bus_stops(storage: Storage) -> None:
    store = EventStore(storage)
    bus = await started(store, partitions=1, queue_size=2)

    async def handle(_: Moved) -> None:
        await asyncio.Event().wait()

    bus.subscribe(Moved, handle)
    for to in range(10):
        await store.append("way-1", Moved("ann", to))
    await bus.stop(timeout=0)
    letters = await bus.dead_letters()
    assert sorted(letter.event.data.to for letter in letters) == list(range(10))


async def test_what_cannot_be_read_is_a_dead_letter_until_it_can_be(storage: Storage) -> None:
    @event("bus-test-turned", version=2)
    @dataclass(frozen=True)
    class Turned:
        degrees: int

    broken, seen = [False], list[int]()

    @upcaster("bus-test-turned", from_version=1)
    def to_two(payload: dict[str, Any]) -> dict[str, Any]:
        if broken[0]:
            raise ValueError("cannot")
        return {"degrees": payload["turn"] * 360}

    async def handle(event: Turned) -> None:
        seen.append(event.degrees)

    store = EventStore(storage)
    bus = await started(store)
    bus.subscribe(Turned, handle, retry=ONCE)
    unit_of = store.prepare(NewEvent("bus-test-turned", {"turn": 1}, version=1))[0]
    broken[0] = True
    await store.write(store.unit("turn-1", unit_of, -1))
    await store.append("turn-1", Turned(90))
    await bus.drain()
    (letter,) = await bus.dead_letters()
    assert seen == [90]
    assert letter.event.data == '{"turn":1}', "its text, as it cannot be read"
    assert "cannot be read" in letter.error
    broken[0] = False
    assert (await bus.dead_letters())[0].event.data == Turned(360)
    await bus.retry_dead(letter.id)
    await bus.drain()
    assert (seen, await bus.dead_letters()) == ([90, 360], [])
    await bus.stop()


async def test_a_started_bus_keeps_its_store(engine: WorkflowEngine) -> None:
    with pytest.raises(EngineStateError, match="was started"):
        engine.bus.attach(engine.store)


async def test_the_last_one_to_leave_takes_the_hook_along(storage: Storage) -> None:
    """Nobody who subscribes, nothing that runs at commits."""
    bus = await started(EventStore(storage))
    before = len(storage._listeners._hooks)  # type: ignore[attr-defined]

    async def handle(_: object) -> None:
        pass

    subscription = bus.subscribe("*", handle)
    assert len(storage._listeners._hooks) == before + 1  # type: ignore[attr-defined]
    subscription.cancel()
    assert len(storage._listeners._hooks) == before  # type: ignore[attr-defined]
    await bus.stop()
