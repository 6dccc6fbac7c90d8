"""Dead letters in the store: they survive the process, with all that is needed to try once more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.bus.kit import ONCE, TWICE, Faulty, Moved, started

from event_workflow_engine import EventStore, RetryPolicy, WorkflowEngine, current_event
from event_workflow_engine._bus.carried import Published
from event_workflow_engine._bus.dead_letters import DeadLetters
from event_workflow_engine.errors import NotRegisteredError
from event_workflow_engine.events import NO_METADATA, RecordedEvent
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage


@dataclass(frozen=True)
class Unregistered:
    number: int


async def test_they_survive_a_restart_and_are_handled_there(storage: Storage) -> None:
    broken, seen = [True], list[tuple[Any, int, str | None]]()

    async def handle(event: object) -> None:
        if broken[0]:
            raise ValueError(f"no {event}")
        recorded = current_event()
        seen.append((event, recorded.position, recorded.metadata.actor))

    async with WorkflowEngine(storage) as engine:
        engine.bus.subscribe(Moved, handle, retry=TWICE)
        engine.bus.subscribe(Unregistered, handle, retry=ONCE)
        await engine.store.append("way-1", Moved("ann", 1), metadata={"actor": "joe"})
        await engine.bus.publish(Moved("bob", 2))
        await engine.bus.publish(Unregistered(3))
        await engine.bus.drain()
        before = {letter.id: letter.attempts for letter in await engine.bus.dead_letters()}
        assert sorted(before.values()) == [1, 2, 2]

    broken[0] = False
    async with WorkflowEngine(storage) as engine:
        letters = await engine.bus.dead_letters()
        assert {letter.id: letter.attempts for letter in letters} == before
        data = [letter.event.data for letter in letters]
        assert all(one in data for one in (Moved("ann", 1), Moved("bob", 2)))
        assert {"number": 3} in data, "plain, as its class is registered nowhere"
        with pytest.raises(NotRegisteredError, match="no handler here"):
            await engine.bus.retry_dead(letters[0].id)
        engine.bus.subscribe(Moved, handle)
        engine.bus.subscribe(Unregistered, handle)
        for letter in letters:
            await engine.bus.retry_dead(letter.id)
        await engine.bus.drain()
        assert await engine.bus.dead_letters() == []
    assert sorted(seen, key=repr) == sorted(
        [(Moved("ann", 1), 1, "joe"), (Moved("bob", 2), 0, None), (Unregistered(3), 0, None)], key=repr
    )


async def test_what_is_no_json_is_kept_as_its_text(storage: Storage) -> None:
    bus = await started(EventStore(storage))

    def handle(_: object) -> None:
        raise ValueError("no")

    bus.subscribe(complex, handle, retry=ONCE)
    await bus.publish(1j)
    await bus.drain()
    (letter,) = await bus.dead_letters()
    assert (letter.event.data, letter.event.type) == ('"1j"', "complex")
    await bus.retry_dead(letter.id)
    await bus.drain()
    (letter,) = await bus.dead_letters()
    assert "was kept as text only" in letter.error
    await bus.drop_dead(letter.id)
    assert await bus.dead_letters() == []
    await bus.stop()


async def test_an_error_whose_text_cannot_be_stored_is_kept_as_well_as_can_be(storage: Storage) -> None:
    letters = DeadLetters()
    letters.attach(EventStore(storage))
    event = RecordedEvent("e-1", "moved", {}, "", 0, 0, datetime.now(UTC), NO_METADATA)
    await letters.add("s", Published(event), ValueError("no \ud800"), 1)
    (letter,) = await letters.listed(10)
    assert (letter.id, letter.error, letter.event) == ("e-1@s", "ValueError: no \\ud800", event)


async def test_an_event_is_not_dropped_because_the_store_cannot_keep_its_letter(storage: Storage) -> None:
    faulty = Faulty(storage)
    faulty.fails = lambda unit: any(row.table == "dead_letters" for row in unit.rows) and faulty.failures < 3
    bus = await started(EventStore(faulty))  # type: ignore[arg-type]

    async def handle(_: object) -> None:
        raise ValueError("no")

    bus.subscribe(Moved, handle, retry=RetryPolicy(attempts=1, delay=0))
    await bus.publish(Moved("ann", 1))
    await bus.drain()
    assert faulty.failures == 3
    assert [letter.event.data for letter in await bus.dead_letters()] == [Moved("ann", 1)]
    await bus.stop()


async def test_the_same_event_twice_is_one_letter(storage: Storage) -> None:
    """A durable subscription may be handed an event again; it fails again, and there is still one letter."""
    store = EventStore(storage)
    await store.append("way-1", Moved("ann", 1))
    calls = 0

    async def handle(_: object) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("no")

    for _ in range(2):
        bus = await started(store)
        bus.subscribe(Moved, handle, durable="walks", retry=ONCE)
        await bus.drain()
        await bus.stop()
        row = await storage.get("checkpoints", ("subscription:walks",))
        assert row is not None
        back = Row("checkpoints", "update", ("subscription:walks",), {"position": 0})
        await storage.write(Unit(f"back-{calls}", 1, rows=(back,)))
    assert calls == 2
    assert len(await bus.dead_letters()) == 1


async def test_a_retry_while_handlers_are_busy_waits_its_turn(storage: Storage) -> None:
    bus, gate, seen = await started(EventStore(storage), partitions=1), asyncio.Event(), list[int]()
    broken = [True]

    async def handle(event: Moved) -> None:
        if broken[0]:
            raise ValueError("no")
        await gate.wait()
        seen.append(event.to)

    bus.subscribe(Moved, handle, retry=ONCE)
    await bus.publish(Moved("ann", 1))
    await bus.drain()
    broken[0] = False
    await bus.publish(Moved("ann", 2))
    (letter,) = await bus.dead_letters()
    await bus.retry_dead(letter.id)
    gate.set()
    await bus.drain()
    assert seen == [2, 1]
    await bus.stop()
