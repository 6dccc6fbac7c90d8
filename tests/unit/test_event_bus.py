"""The event bus without a store: matching, background delivery, order by key, bounded queues, stopping."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass

import pytest

from event_workflow_engine import EventBus, RetryPolicy, current_event
from event_workflow_engine.errors import DefinitionError, EngineStateError
from event_workflow_engine.events import NewEvent


@dataclass(frozen=True)
class Moved:
    who: str
    to: int


@dataclass(frozen=True)
class Ran(Moved):
    pass


async def turns(count: int = 20) -> None:
    """Let everything that can run now run."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- matching and delivering -----------------------------------------------------------------------------------------


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
    await turns()
    assert done == []
    assert not draining.done()
    gate.set()
    await draining
    assert done == ["hello"]


async def test_drain_waits_for_what_was_published_before_it_and_no_longer() -> None:
    bus, gates, done = EventBus(partitions=1), {1: asyncio.Event(), 2: asyncio.Event()}, list[int]()

    async def handle(event: int) -> None:
        await gates[event].wait()
        done.append(event)

    bus.subscribe(int, handle)
    await bus.publish(1)
    draining = asyncio.create_task(bus.drain())
    await turns()
    await bus.publish(2)
    gates[1].set()
    await draining
    assert done == [1]
    gates[2].set()
    await bus.drain()


async def test_sync_handlers_run_in_threads_with_the_event_at_hand() -> None:
    bus, seen = EventBus(), list[tuple[bool, object]]()
    bus.subscribe(
        str, lambda event: seen.append((threading.current_thread() is threading.main_thread(), current_event().data))
    )
    await bus.publish("hello")
    await bus.drain()
    assert seen == [(False, "hello")]
    await bus.stop()


async def test_what_a_sync_callable_returns_is_awaited() -> None:
    """A lambda around an async function is the usual way to come to it."""
    bus, seen = EventBus(), list[tuple[str, object]]()

    async def handle(word: str, event: str) -> None:
        seen.append((word + event, current_event().data))

    bus.subscribe(str, lambda event: handle("oh ", event))
    await bus.publish("hello")
    await bus.drain()
    assert seen == [("oh hello", "hello")]
    await bus.stop()


async def test_a_new_event_is_published_by_its_name() -> None:
    bus, seen = EventBus(), list[tuple[str, str, object, str | None]]()

    async def handle(payload: dict[str, int]) -> None:
        event = current_event()
        seen.append((event.id, event.type, payload, event.metadata.actor))

    bus.subscribe(dict, handle)
    await bus.publish(NewEvent("moved", {"to": 1}, id="e-1", metadata={"actor": "ann"}))
    await bus.drain()
    assert seen == [("e-1", "moved", {"to": 1}, "ann")]


async def test_cancel_ends_a_subscription_and_what_it_was_handed_is_handled() -> None:
    bus, gate, seen = EventBus(), asyncio.Event(), list[str]()

    async def handle(event: str) -> None:
        await gate.wait()
        seen.append(event)

    subscription = bus.subscribe(str, handle)
    await bus.publish("one")
    subscription.cancel()
    subscription.cancel()
    await bus.publish("two")
    gate.set()
    await bus.drain()
    assert seen == ["one"]


def test_a_bus_goes_on_on_another_loop() -> None:
    bus, seen = EventBus(partitions=1, queue_size=1), list[int]()

    async def handle(event: int) -> None:
        await asyncio.sleep(0)
        seen.append(event)

    bus.subscribe(int, handle)

    async def main(first: int) -> None:
        await asyncio.gather(*(bus.publish(first + n) for n in range(3)))
        await bus.drain()
        await bus.stop()

    asyncio.run(main(1))
    asyncio.run(main(4))
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_wrong_arguments_are_refused() -> None:
    bus = EventBus()
    with pytest.raises(DefinitionError, match="a class"):
        bus.subscribe("Moved", print)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="start"):
        bus.subscribe(Moved, print, start="later")  # type: ignore[call-overload]
    with pytest.raises(EngineStateError, match="no store"):
        bus.subscribe(Moved, print, durable="walks")
    for arguments in ({"partitions": 0}, {"queue_size": 0}):
        with pytest.raises(DefinitionError, match="at least 1"):
            EventBus(**arguments)


# -- order and room --------------------------------------------------------------------------------------------------


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


async def test_a_key_given_with_the_event_goes_before_the_subscriptions_own() -> None:
    bus, gate, log = EventBus(), asyncio.Event(), list[int]()

    async def handle(event: Moved) -> None:
        if not event.to:
            await gate.wait()
        log.append(event.to)

    bus.subscribe(Moved, handle, key=lambda event: f"{event.who}{event.to}")
    for to in range(5):
        await bus.publish(Moved("ann", to), key="the same")
    await turns()
    assert log == [], "they wait behind the first"
    gate.set()
    await bus.drain()
    assert log == [0, 1, 2, 3, 4]


async def test_as_many_sync_handlers_run_at_once_as_there_are_partitions() -> None:
    """None waits for another's thread; the barrier lets them through only together."""
    barrier = threading.Barrier(16)
    bus, seen = EventBus(partitions=16), list[int]()

    def handle(event: int) -> None:
        barrier.wait(timeout=20)
        seen.append(event)

    bus.subscribe(int, handle)
    for number in range(16):
        await bus.publish(number)
    await bus.drain()
    assert sorted(seen) == list(range(16))
    await bus.stop()


async def test_a_full_partition_makes_publish_wait_in_line() -> None:
    bus, gate, seen = EventBus(partitions=1, queue_size=2), asyncio.Event(), list[int]()

    async def handle(number: int) -> None:
        await gate.wait()
        seen.append(number)

    bus.subscribe(int, handle)
    for number in range(2):
        await bus.publish(number)
    waiting = [asyncio.create_task(bus.publish(number)) for number in range(2, 7)]
    await turns()
    assert not any(task.done() for task in waiting)
    waiting[1].cancel()
    gate.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    await bus.drain()
    assert seen == [0, 1, 2, 4, 5, 6], "in the order of publishing, without the one that was withdrawn"


async def test_a_full_subscription_keeps_the_event_from_no_other() -> None:
    bus, gate, seen = EventBus(partitions=1, queue_size=1), asyncio.Event(), list[int]()
    heard = asyncio.Event()

    async def stuck(_: int) -> None:
        await gate.wait()

    async def handle(number: int) -> None:
        seen.append(number)
        if number == 2:
            heard.set()

    bus.subscribe(int, stuck)
    bus.subscribe(int, handle)
    await bus.publish(1)
    second = asyncio.create_task(bus.publish(2))
    await heard.wait()
    assert not second.done()
    gate.set()
    await second
    await bus.drain()


async def test_what_a_handler_publishes_does_not_wait_for_that_handler() -> None:
    bus, seen = EventBus(partitions=1, queue_size=1), list[int]()

    async def handle(number: int) -> None:
        seen.append(number)
        if number < 10:
            await bus.publish(number + 10)
            await asyncio.create_task(bus.publish(number + 20))

    bus.subscribe(int, handle)
    await bus.publish(1)
    while len(seen) < 3:
        await bus.drain()
    assert seen == [1, 11, 21]


async def test_drain_in_a_handler_is_refused() -> None:
    bus = EventBus()
    bus.subscribe(str, lambda _: bus.drain(), retry=RetryPolicy(attempts=1))
    await bus.publish("hello")
    await bus.drain()
    (letter,) = await bus.dead_letters()
    assert letter.error.startswith("EngineStateError: drain()")
    await bus.stop()


FIRSTS = """
import asyncio
from event_workflow_engine import EventBus

async def main():
    bus, gate, begun = EventBus(partitions=4), asyncio.Event(), []

    async def handle(number):
        begun.append(number)
        await gate.wait()

    bus.subscribe(int, handle, key=lambda number: f"key-{number}")
    for number in range(40):
        await bus.publish(number)
    for _ in range(50):
        await asyncio.sleep(0)
    print(*sorted(begun))
    gate.set()
    await bus.drain()

asyncio.run(main())
"""


def test_the_partition_of_a_key_is_the_same_in_every_process() -> None:
    """Told by which events are the first of their partitions."""
    firsts = {
        subprocess.run([sys.executable, "-c", FIRSTS], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        .stdout.decode()
        .strip()
        for seed in ("1", "2")
    }
    assert len(firsts) == 1
    assert len(firsts.pop().split()) == 4


# -- contexts --------------------------------------------------------------------------------------------------------

REQUEST: ContextVar[str] = ContextVar("request", default="none")


async def test_a_handler_sees_its_publishers_context_and_what_it_sets_stays_its_own() -> None:
    bus, seen = EventBus(partitions=1), list[tuple[int, str, int]]()

    async def deeper() -> int:
        return int(current_event().data)

    async def handle(number: int) -> None:
        before = REQUEST.get()
        REQUEST.set("spoiled")
        seen.append((number, before, await asyncio.create_task(deeper())))

    def handle_in_a_thread(number: int) -> None:
        before = REQUEST.get()
        REQUEST.set("spoiled")
        seen.append((number, before, current_event().data))

    bus.subscribe(int, handle)
    bus.subscribe(int, handle_in_a_thread)

    async def publisher(number: int) -> None:
        REQUEST.set(f"request-{number}")
        await bus.publish(number)

    await asyncio.gather(*(publisher(number) for number in range(5)))
    await bus.publish(5)
    await bus.drain()
    expected = [(number, f"request-{number}" if number < 5 else "none", number) for number in range(6)]
    assert sorted(seen) == sorted(expected * 2)
    assert REQUEST.get() == "none"
    await bus.stop()


async def test_what_a_handler_publishes_tells_what_caused_it() -> None:
    bus, events = EventBus(), list[object]()

    async def handle(number: int) -> None:
        events.append(current_event())
        if not number:
            await bus.publish(1)

    bus.subscribe(int, handle)
    await bus.publish(0)
    while len(events) < 2:
        await bus.drain()
    first, second = events
    assert second.metadata.causation_id == second.metadata.correlation_id == first.id  # type: ignore[attr-defined]


# -- stopping --------------------------------------------------------------------------------------------------------


async def test_stop_lets_what_is_queued_be_handled() -> None:
    bus, seen = EventBus(partitions=1), list[int]()

    async def handle(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)
        if number == 1:
            await bus.publish("and this")

    async def handle_text(text: str) -> None:
        seen.append(len(text))

    bus.subscribe(int, handle)
    bus.subscribe(str, handle_text)
    for number in range(3):
        await bus.publish(number)
    await bus.stop()
    assert seen in ([0, 1, 2, 8], [0, 1, 8, 2])


async def test_what_the_stop_cuts_off_is_a_dead_letter() -> None:
    bus, cancelled = EventBus(partitions=1, queue_size=2), list[int]()

    async def handle(number: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    bus.subscribe(int, handle)
    for number in range(2):
        await bus.publish(number)
    waits = asyncio.create_task(bus.publish(2))
    await turns()
    await bus.stop(timeout=0)
    await waits
    assert cancelled == [0]
    letters = await bus.dead_letters()
    assert [letter.event.data for letter in letters] == [0, 1, 2]
    assert all("was stopped before" in letter.error for letter in letters)


async def test_stop_begins_no_further_attempt() -> None:
    """A handler that fails would otherwise hold up the end by its pauses, an hour each."""
    bus, calls, failed = EventBus(), list[int](), asyncio.Event()

    async def handle(number: int) -> None:
        calls.append(number)
        failed.set()
        raise ValueError("no")

    bus.subscribe(int, handle, retry=RetryPolicy(attempts=5, delay=3600, max_delay=3600))
    await bus.publish(1)
    await failed.wait()
    await turns()
    await bus.stop()
    (letter,) = await bus.dead_letters()
    assert (calls, letter.error, letter.attempts) == ([1], "ValueError: no", 1)
