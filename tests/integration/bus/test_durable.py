"""Durable subscriptions: at least once, over restarts, behind a checkpoint, on one worker of many at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration.bus.kit import TWICE, Faulty, Moved, Noise, Ran, collector, position_of, started, until

from event_workflow_engine import EngineConfig, EventStore, RetryPolicy, Saga, SagaStep, WorkflowEngine, current_event
from event_workflow_engine._bus import durable
from event_workflow_engine._bus.durable import _Prefix
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.history import StepSucceeded
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine import EventBus
    from event_workflow_engine.storage.port import Storage


# -- what arrives ----------------------------------------------------------------------------------------------------


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


# -- the checkpoint --------------------------------------------------------------------------------------------------


async def crash(bus: EventBus) -> None:
    """What a kill leaves: nothing is saved, nobody is let go of."""
    for feed in bus._feeds.values():
        feed._owned = False
    await bus.stop(timeout=0)


async def test_it_never_passes_what_is_being_handled(storage: Storage) -> None:
    """One partition hangs, others go on; after a crash all from the one that hung on is handed out again."""
    store = EventStore(storage)
    gate, seen, enough = asyncio.Event(), list[int](), asyncio.Event()
    bus = await started(store, "w-1")

    async def handle(event: Moved) -> None:
        if event.to == 3:
            await gate.wait()
        seen.append(event.to)
        if len(seen) == 9:
            enough.set()

    bus.subscribe(Moved, handle, durable="walks", key=lambda event: str(event.to))
    for to in range(10):
        await store.append("way-1", Moved("ann", to))
    await enough.wait()
    assert sorted(seen) == [0, 1, 2, 4, 5, 6, 7, 8, 9]

    async def saved() -> bool:
        return await position_of(storage, "walks") == 3

    await until(saved)
    await crash(bus)
    assert await position_of(storage, "walks") == 3
    gate.set()
    again = await started(store, "w-2")
    again.subscribe(Moved, handle, durable="walks", key=lambda event: str(event.to))
    await again.drain()
    assert sorted(seen[9:]) == [3, 4, 5, 6, 7, 8, 9]
    await again.stop()
    assert await position_of(storage, "walks") == 10


async def test_it_is_written_a_few_times_and_not_for_each_event(storage: Storage) -> None:
    store, saves = EventStore(storage), 0

    def count(batch: Any) -> None:
        nonlocal saves
        saves += sum(row.table == "checkpoints" for unit, _ in batch for row in unit.rows)

    storage.add_commit_hook(count)
    seen: list[int] = []
    bus = await started(store)
    bus.subscribe(Moved, collector(seen)[0], durable="walks")
    begun = asyncio.get_running_loop().time()
    for to in range(500):
        await store.append("way-1", Moved("ann", to))
    await bus.drain()
    await bus.stop()
    took = asyncio.get_running_loop().time() - begun
    assert len(seen) == 500
    assert saves <= 5 + 10 * took, "the claim, the release, and some ten a second"
    assert await position_of(storage, "walks") == 500


async def test_commits_of_other_types_are_passed_without_a_write_for_each(storage: Storage) -> None:
    store, saves = EventStore(storage), 0

    def count(batch: Any) -> None:
        nonlocal saves
        saves += sum(row.table == "checkpoints" for unit, _ in batch for row in unit.rows)

    bus = await started(store)
    bus.subscribe(Moved, print, durable="walks")
    await bus.drain()
    storage.add_commit_hook(count)
    for _ in range(300):
        await store.append("noise-1", Noise())
        await bus.drain()
    assert saves == 0
    await bus.stop()
    assert await position_of(storage, "walks") == 300


async def test_what_the_stop_cuts_off_is_handed_out_again_and_no_dead_letter(storage: Storage) -> None:
    store, begun, seen = EventStore(storage), asyncio.Event(), list[int]()
    await store.append("way-1", [Moved("ann", 1), Moved("ann", 2)])
    bus = await started(store)

    async def hang(_: Moved) -> None:
        begun.set()
        await asyncio.Event().wait()

    bus.subscribe(Moved, hang, durable="walks")
    await begun.wait()
    await bus.stop(timeout=0)
    assert await bus.dead_letters() == []
    bus = await started(store)
    bus.subscribe(Moved, collector(seen)[0], durable="walks")
    await bus.drain()
    await bus.stop()
    assert seen == [1, 2]


async def test_what_waits_when_it_stops_is_handed_out_again(storage: Storage) -> None:
    """Only what a handler has begun is waited for."""
    store, begun, gate, seen = EventStore(storage), asyncio.Event(), asyncio.Event(), list[int]()
    await store.append("way-1", [Moved("ann", to) for to in range(50)])

    async def handle(event: Moved) -> None:
        begun.set()
        await gate.wait()
        seen.append(event.to)

    for _ in range(2):
        bus = await started(store)
        begun.clear()
        gate.clear()
        bus.subscribe(Moved, handle, durable="walks")
        await begun.wait()
        stopping = asyncio.create_task(bus.stop())
        await asyncio.sleep(0)
        gate.set()
        await stopping
    assert seen == [0, 1]
    assert await position_of(storage, "walks") == 2


async def test_what_fails_while_it_stops_is_handed_out_again_and_no_dead_letter(storage: Storage) -> None:
    """Its attempts are not used up."""
    store, failed, seen = EventStore(storage), asyncio.Event(), list[int]()
    await store.append("way-1", Moved("ann", 1))
    bus = await started(store)

    async def fail(_: Moved) -> None:
        failed.set()
        raise ValueError("no")

    bus.subscribe(Moved, fail, durable="walks", retry=RetryPolicy(attempts=5, delay=3600, max_delay=3600))
    await failed.wait()
    await bus.stop()
    assert await bus.dead_letters() == []
    bus = await started(store)
    bus.subscribe(Moved, collector(seen)[0], durable="walks")
    await bus.drain()
    await bus.stop()
    assert seen == [1]


async def test_not_many_are_handled_behind_one_that_hangs(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that not all of them are handled again after a crash."""
    monkeypatch.setattr(durable, "_WINDOW", 20)
    monkeypatch.setattr(durable, "_PAGE", 5)
    store, gate, seen = EventStore(storage), asyncio.Event(), list[int]()
    bus = await started(store)

    async def handle(event: Moved) -> None:
        if event.to == 3:
            await gate.wait()
        seen.append(event.to)

    bus.subscribe(Moved, handle, durable="walks", key=lambda event: "stuck" if event.to == 3 else "free")
    for to in range(100):
        await store.append("way-1", Moved("ann", to))
    await until(lambda: len(seen) >= 22)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(seen) <= 3 + 20 + 5
    gate.set()
    await bus.drain()
    assert sorted(seen) == list(range(100))
    await bus.stop()


async def test_a_poison_event_is_a_dead_letter_and_the_others_go_on(engine: WorkflowEngine) -> None:
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


async def test_a_record_that_cannot_be_taken_apart_is_a_dead_letter(storage: Storage) -> None:
    store = EventStore(storage)
    kinds = "step-started+step-succeeded"
    broken = NewRecord("broken", kinds, b"[{}, {}]", count=2)
    await storage.write(Unit("broken", 1, (Append("saga-x", (broken,)),)))
    bus, steps = await started(store), list[str]()

    async def handle(event: StepSucceeded) -> None:
        steps.append(event.step)

    good = NewRecord("good", "step-succeeded", b'[{"t":"step-succeeded","step":"a","result":1}]')
    await storage.write(Unit("good", 1, (Append("saga-x", (good,)),)))
    bus.subscribe(StepSucceeded, handle, durable="steps", retry=TWICE)
    await bus.drain()
    (letter,) = await bus.dead_letters()
    assert (steps, letter.event.id, letter.event.position) == (["a"], "broken", 2)
    await bus.stop()


async def test_a_checkpoint_may_stand_in_the_middle_of_a_record(storage: Storage) -> None:
    """A crash while the second of three facts was handled, which were written as one."""
    store, steps = EventStore(storage), list[str]()
    data = b",".join(b'{"t":"step-succeeded","step":"%c"}' % step for step in b"abc")
    facts = NewRecord("facts", "step-succeeded", b"[" + data + b"]", count=3)
    half = Row("checkpoints", "insert", ("subscription:steps",), {"position": 1, "events": 1, "owner": ""})
    await storage.write(Unit("facts", 1, (Append("saga-x", (facts,)),), (half,)))

    async def handle(event: StepSucceeded) -> None:
        steps.append(event.step)

    bus = await started(store)
    bus.subscribe(StepSucceeded, handle, durable="steps")
    await bus.drain()
    await bus.stop()
    assert steps == ["b", "c"]


async def test_a_failing_store_delays_it_and_no_more(storage: Storage) -> None:
    faulty, seen = Faulty(storage), list[int]()
    faulty.fails = lambda unit: any(row.table == "checkpoints" for row in unit.rows) and faulty.failures < 2
    handle, enough = collector(seen, done=lambda: 3 in seen)
    bus = await started(EventStore(faulty))  # type: ignore[arg-type]
    bus.subscribe(Moved, handle, durable="walks")
    await EventStore(storage).append("way-1", [Moved("ann", to) for to in range(4)])
    await enough.wait()
    await bus.drain()
    assert faulty.failures == 2
    assert seen == [0, 1, 2, 3]
    await bus.stop()


async def test_it_stops_where_the_log_was_rewound(storage: Storage) -> None:
    """A checkpoint behind the log's end: events were lost, and those that come now are not those that it knew."""
    store, seen = EventStore(storage), list[int]()
    await store.append("way-1", Moved("ann", 1))
    ahead = Row("checkpoints", "insert", ("subscription:walks",), {"position": 9, "events": 9, "owner": ""})
    await storage.write(Unit("ahead", 1, rows=(ahead,)))
    bus = await started(store)
    bus.subscribe(Moved, collector(seen)[0], durable="walks")
    await bus.drain()
    await store.append("way-1", Moved("ann", 2))
    await bus.drain()
    await bus.stop()
    assert seen == []
    assert await position_of(storage, "walks") == 9


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), st.data())
@settings(max_examples=60)
def test_the_prefix_is_all_that_is_handled_whatever_ends_first(gaps: list[int], data: st.DataObject) -> None:
    positions = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    prefix = _Prefix(0)
    ended: set[int] = set()
    for position in positions:
        prefix.begin(position)
        prefix.read = position
    for position in data.draw(st.permutations(positions)):
        prefix.end(position)
        ended.add(position)
        open_ones = [one for one in positions if one not in ended]
        assert prefix.position == (open_ones[0] - 1 if open_ones else positions[-1])
    assert (prefix.handled, len(prefix)) == (len(positions), 0)
