"""The checkpoint of a durable subscription: what it passes, how often it is written, what it leaves to be done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration.bus.kit import TWICE, Faulty, Moved, Noise, collector, position_of, started, until

from event_workflow_engine import EventStore, RetryPolicy, WorkflowEngine
from event_workflow_engine._bus import durable
from event_workflow_engine._bus.durable import _Prefix
from event_workflow_engine.history import StepSucceeded
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    import pytest

    from event_workflow_engine import EventBus
    from event_workflow_engine.storage.port import Storage


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
