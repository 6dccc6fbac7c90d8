"""Following the log, on every backend."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store_cases import FACTS, Opened, Shut, data_of, numbered, put_facts

from event_workflow_engine import history as h
from event_workflow_engine.errors import (
    DefinitionError,
    EngineStateError,
    LogRewoundError,
)
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import NewEvent, RecordedEvent
from event_workflow_engine.storage import Storage, open_storage


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> EventStore:
    return EventStore(storage)


# -- following ---------------------------------------------------------------------------------------------------------


async def following(store: EventStore, count: int, **options: Any) -> list[RecordedEvent[Any]]:
    """The first `count` events that a follower sees."""
    seen: list[RecordedEvent[Any]] = []
    async with aclosing(store.follow(**options)) as events:
        async for each in events:
            seen.append(each)
            if len(seen) == count:
                break
    return seen


async def until_waiting() -> None:
    """Let everything that can run do so, until only a bell could wake it."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_follower_sees_what_is_and_what_comes(store: EventStore) -> None:
    await store.append("door-1", numbered(3))
    task = asyncio.create_task(following(store, 6, after=0))
    await store.append("door-1", numbered(2, "f"))
    await until_waiting()
    await store.append("door-2", Shut())
    events = await task
    assert [event.position for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.data for event in events] == [0, 1, 2, 0, 1, Shut()]


async def test_a_follower_from_the_end_sees_only_what_comes(store: EventStore) -> None:
    await store.append("door-1", numbered(3))
    events = store.follow()
    first = asyncio.ensure_future(anext(events))
    while not first.done():  # appended until it sees one: from when on it follows is its own affair
        await store.append("door-1", Shut())
        await asyncio.sleep(0)
    assert (await first).data == Shut()
    assert (await first).position > 3
    await events.aclose()


@pytest.mark.proves("no-gap")
async def test_followers_miss_and_repeat_nothing_under_concurrent_writers(store: EventStore) -> None:
    followers = [asyncio.create_task(following(store, 1200, after=0)) for _ in range(3)]
    async with asyncio.TaskGroup() as writers:
        for writer in range(20):

            async def write(writer: int = writer) -> None:
                for n in range(20):
                    await store.append(f"door-{writer}", numbered(3, f"{writer}-{n}"))

            writers.create_task(write())
    for events in await asyncio.gather(*followers):
        assert [event.position for event in events] == list(range(1, 1201))
        by_stream: dict[str, list[int]] = {}
        for each in events:
            by_stream.setdefault(each.stream, []).append(each.version)
        assert all(versions == list(range(1, 61)) for versions in by_stream.values())


async def test_a_follower_filters_and_goes_past_the_rest(store: EventStore) -> None:
    task = asyncio.create_task(following(store, 3, after=0, types=[Shut, h.StepSucceeded], categories=["door", "saga"]))
    await store.append("door-1", [Opened("a"), Shut()])
    await until_waiting()
    await store.append("gate-1", Shut())
    await put_facts(store, "saga-1", *FACTS[:2])
    await until_waiting()
    await store.append("door-1", Shut(hard=True))
    assert [event.data for event in await task] == [Shut(), h.StepSucceeded("a"), Shut(hard=True)]


async def test_a_follower_may_begin_inside_of_a_unit(store: EventStore) -> None:
    await put_facts(store, "saga-1", *FACTS)
    assert [event.position for event in await following(store, 4, after=2)] == [3, 4, 5, 6]


async def test_a_follower_sees_a_long_log_in_pages(store: EventStore) -> None:
    await store.append("door-1", numbered(2300))
    assert [event.data for event in await following(store, 2300, after=0)] == list(range(2300))


async def test_a_follower_ends_when_its_store_is_closed(storage: Storage, store_url: str) -> None:
    memory = storage.url == "memory://"
    reached = asyncio.Event()
    seen: list[Any] = []

    async def follow(store: EventStore) -> None:
        async for each in store.follow(after=0):
            seen.append(each.data)
            reached.set()

    async with open_storage(store_url) as other:
        await (EventStore(other) if memory else EventStore(storage)).append("door-1", Shut())
        task = asyncio.create_task(follow(EventStore(other)))
        await reached.wait()
    await task
    assert seen == [Shut()]


async def test_a_store_that_is_not_open_cannot_be_followed() -> None:
    store = EventStore(open_storage("memory://"))
    with pytest.raises(EngineStateError, match="not open"):
        await anext(store.follow())
    with pytest.raises(EngineStateError, match="not open"):
        await store.append("door-1", Shut())


async def test_a_follower_that_is_cancelled_leaves_no_bell(store: EventStore) -> None:
    task = asyncio.create_task(data_of(store.follow(after=0)))
    await until_waiting()
    await store.append("door-1", Shut())
    await until_waiting()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not store.storage._listeners.has_bells  # type: ignore[attr-defined]


@pytest.mark.parametrize("after", [-1, "begin", None, 1.5], ids=repr)
async def test_a_bad_start_is_refused(store: EventStore, after: Any) -> None:
    with pytest.raises(DefinitionError, match="after="):
        store.follow(after=after)


async def test_a_log_that_is_shorter_than_what_was_read_is_not_followed(store: EventStore) -> None:
    await store.append("door-1", numbered(3))
    with pytest.raises(LogRewoundError, match="up to position 5, but the log now ends at position 3") as caught:
        await anext(store.follow(after=5))
    assert (caught.value.position, caught.value.end) == (5, 3)


async def test_a_log_that_is_rewound_while_it_is_followed_stops_the_follower() -> None:
    async with open_storage("memory://") as storage:
        store = EventStore(storage)
        await store.append("door-1", numbered(3))
        events = store.follow(after=0)
        assert [(await anext(events)).data for _ in range(3)] == [0, 1, 2]
        rewind(storage, 1)
        following = asyncio.ensure_future(anext(events))
        await until_waiting()
        storage._listeners.ring()  # type: ignore[attr-defined]
        with pytest.raises(LogRewoundError):
            await following


def rewind(storage: Storage, records: int) -> None:
    """As a restored backup or a lost failover would."""
    del storage.state.log[records:]  # type: ignore[attr-defined]


@pytest.mark.parametrize("grown", [2, 3, 7])
@pytest.mark.parametrize("types", [(), ("store-numbered",), (Shut,)], ids=["all", "numbered", "shut"])
async def test_a_log_that_has_grown_again_over_what_was_read_stops_the_follower(grown: int, types: Any) -> None:
    """Its positions are those of other events now: to go on from the last one would pass over them in silence."""
    async with open_storage("memory://") as storage:
        store = EventStore(storage)
        await store.append("door-1", numbered(1, "kept"))
        seen: set[int] = set()

        async def follow() -> None:
            async for event in store.follow(after=0, types=types):
                seen.add(event.position)

        task = asyncio.create_task(follow())
        await until_waiting()
        await store.append("door-2", [*numbered(1, "lost"), Shut()])
        await until_waiting()
        rewind(storage, 1)
        await store.append("door-3", [*numbered(grown - 1, "new"), Shut()])
        with pytest.raises(LogRewoundError, match=r"had read .* up to position 3") as caught:
            await task
        assert (caught.value.position, caught.value.end) == (3, 1 + grown)
        assert max(seen) <= 3, "nothing of the other history was shown"
        assert pickle.loads(pickle.dumps(caught.value)).end == 1 + grown


async def test_events_of_another_process_are_followed(tmp_path: Path) -> None:
    """Two storages on one file share nothing but the file, as two processes would."""
    url = f"sqlite:///{tmp_path}/log.db"
    async with open_storage(url) as ours, open_storage(url) as theirs:
        store, other = EventStore(ours), EventStore(theirs)
        task = asyncio.create_task(following(store, 60, after=0))
        for n in range(20):
            await other.append("door-1", numbered(2, f"o{n}"))
            await store.append("door-1", NewEvent("a", "ours"))
        events = await task
        assert [event.position for event in events] == list(range(1, 61))
        assert [event.version for event in events] == list(range(1, 61))
        assert await data_of(other.read("door-1")) == [event.data for event in events]
