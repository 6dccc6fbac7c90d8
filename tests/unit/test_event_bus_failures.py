"""What becomes of events whose handlers fail: further attempts, dead letters, and their second chance."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from event_workflow_engine import EventBus, EventStore, RetryPolicy
from event_workflow_engine.errors import NotRegisteredError, SagaEvicted
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing import VirtualClock

ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, delay=0, jitter=0)


async def test_what_fails_is_tried_again_while_those_behind_it_wait() -> None:
    bus, calls = EventBus(partitions=1), list[int]()

    async def handle(number: int) -> None:
        calls.append(number)
        if len(calls) < 3:
            raise ValueError("not yet")

    bus.subscribe(int, handle, retry=RetryPolicy(attempts=3, delay=0))
    await bus.publish(1)
    await bus.publish(2)
    await bus.drain()
    assert calls == [1, 1, 1, 2]
    assert await bus.dead_letters() == []


async def test_the_policy_tells_when_to_try_again_and_how_often() -> None:
    """By the clock of the store: the default is five attempts, after half a second and then twice as long each time."""
    clock, calls = VirtualClock(), list[float]()
    begun = clock.now()
    async with open_storage("memory://") as storage:
        bus = EventBus()
        bus.attach(EventStore(storage, clock=clock))

        async def handle(_: int) -> None:
            calls.append((clock.now() - begun).total_seconds())
            raise ValueError("no")

        bus.subscribe(int, handle, retry=RetryPolicy(attempts=5, jitter=0))
        await bus.publish(1)
        await clock.advance(timedelta(seconds=60))
        await bus.drain()
        (letter,) = await bus.dead_letters()
        assert calls == [0, 0.5, 1.5, 3.5, 7.5]
        assert (letter.attempts, letter.parked_at - begun) == (5, timedelta(seconds=7.5))


async def test_five_attempts_are_the_default() -> None:
    clock, calls = VirtualClock(), list[int]()
    async with open_storage("memory://") as storage:
        bus = EventBus()
        bus.attach(EventStore(storage, clock=clock))

        async def handle(number: int) -> None:
            calls.append(number)
            raise ValueError("no")

        bus.subscribe(int, handle)
        await bus.publish(1)
        await clock.advance(timedelta(hours=1))
        await bus.drain()
    assert calls == [1] * 5


async def test_some_errors_are_never_tried_again() -> None:
    bus, calls = EventBus(), list[int]()

    async def handle(number: int) -> None:
        calls.append(number)
        raise KeyError(number)

    bus.subscribe(int, handle, retry=RetryPolicy(attempts=5, delay=0, never=(LookupError,)))
    await bus.publish(1)
    await bus.drain()
    assert calls == [1]
    (letter,) = await bus.dead_letters()
    assert (letter.attempts, letter.error, letter.event.data) == (1, "KeyError: 1", 1)


async def cancels_itself(_: int) -> None:
    raise asyncio.CancelledError


async def is_evicted(_: int) -> None:
    raise SagaEvicted


def stops(_: int) -> None:
    raise StopIteration


def exits(_: int) -> None:
    raise SystemExit


@pytest.mark.parametrize("handler", [cancels_itself, is_evicted, stops, exits])
async def test_whatever_a_handler_raises_ends_neither_its_partition_nor_its_event(handler: object) -> None:
    bus = EventBus(partitions=1)
    bus.subscribe(int, handler, retry=ONCE)  # type: ignore[arg-type]
    await bus.publish(1)
    await bus.publish(2)
    await bus.drain()
    assert [letter.event.data for letter in await bus.dead_letters()] == [1, 2]
    await bus.stop()


async def test_a_key_function_that_raises_concerns_no_publisher() -> None:
    bus, seen = EventBus(), list[str]()

    def key(event: str) -> str:
        raise ValueError(f"no key for {event}")

    async def handle(event: str) -> None:
        seen.append(event)

    bus.subscribe(str, handle, key=key, retry=ONCE)
    bus.subscribe(str, handle)
    await bus.publish("hello")
    await bus.drain()
    assert seen == ["hello"]
    (letter,) = await bus.dead_letters()
    assert letter.error == "ValueError: no key for hello"


async def test_keys_of_any_kind_choose_a_partition() -> None:
    bus, seen = EventBus(), list[object]()

    async def handle(event: object) -> None:
        seen.append(event)

    bus.subscribe("*", handle, key=lambda event: event)
    for event in (7, None, "\ud800", ("a", 1)):
        await bus.publish(event)
    await bus.drain()
    assert sorted(seen, key=repr) == sorted([7, None, "\ud800", ("a", 1)], key=repr)
    assert await bus.dead_letters() == []


async def test_a_dead_letter_is_one_until_its_retry_has_succeeded() -> None:
    bus, gate, broken, seen = EventBus(), asyncio.Event(), [True], list[str]()

    async def handle(event: str) -> None:
        if broken[0]:
            raise ValueError("no")
        await gate.wait()
        seen.append(event)

    bus.subscribe(str, handle, retry=TWICE)
    await bus.publish("x")
    await bus.drain()
    (letter,) = await bus.dead_letters()
    await bus.retry_dead(letter.id)
    await bus.drain()
    (again,) = await bus.dead_letters()
    assert (again.id, again.attempts) == (letter.id, 4), "it failed again: the same letter, with all its attempts"
    broken[0] = False
    await bus.retry_dead(letter.id)
    assert await bus.dead_letters() == [again], "a crash now must not lose it"
    gate.set()
    await bus.drain()
    assert (seen, await bus.dead_letters()) == (["x"], [])


async def test_a_dead_letter_comes_back_to_its_own_handler_among_namesakes() -> None:
    bus, good, broken = EventBus(), list[str](), list[str]()

    def handler(seen: list[str], failures: int) -> object:
        left = [failures]

        async def handle(event: str) -> None:
            if left[0]:
                left[0] -= 1
                raise ValueError("no")
            seen.append(event)

        return handle

    bus.subscribe(str, handler(good, 0), retry=ONCE)  # type: ignore[arg-type]
    bus.subscribe(str, handler(broken, 1), retry=ONCE)  # type: ignore[arg-type]
    await bus.publish("x")
    await bus.drain()
    (letter,) = await bus.dead_letters()
    await bus.retry_dead(letter.id)
    await bus.drain()
    assert (good, broken) == (["x"], ["x"])


async def test_a_dead_letter_can_be_dropped_and_unknown_ones_are_told() -> None:
    bus = EventBus()

    def handle(_: str) -> None:
        raise ValueError("no")

    subscription = bus.subscribe(str, handle, retry=ONCE)
    for _ in range(2):
        await bus.publish("x")
    await bus.drain()
    first, second = await bus.dead_letters()
    assert await bus.dead_letters(limit=1) == [first]
    await bus.drop_dead(first.id)
    await bus.drop_dead("unknown")
    assert await bus.dead_letters() == [second]
    with pytest.raises(NotRegisteredError, match="'unknown'"):
        await bus.retry_dead("unknown")
    subscription.cancel()
    with pytest.raises(NotRegisteredError, match="no handler here"):
        await bus.retry_dead(second.id)
    await bus.stop()
