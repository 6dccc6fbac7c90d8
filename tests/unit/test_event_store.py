"""The event store, on every backend: appending and reading."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store_cases import FACTS, Happened, Opened, Shut, data_of, everything, numbered, put_facts

from event_workflow_engine import history as h
from event_workflow_engine.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    EventIdConflictError,
    NotRegisteredError,
    VersionConflictError,
)
from event_workflow_engine.event_store import Appended, EventStore
from event_workflow_engine.events import NewEvent
from event_workflow_engine.storage import Storage, open_storage
from event_workflow_engine.storage.port import Append, NewRecord, Unit


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> EventStore:
    return EventStore(storage)


# -- appending ---------------------------------------------------------------------------------------------------------


async def test_what_was_appended_is_read(store: EventStore) -> None:
    before = datetime.now(UTC)
    first = await store.append("door-1", [Opened("ann"), NewEvent("store-painted", {"colour": "red"})])
    second = await store.append("door-1", Shut(hard=True))
    assert first == Appended(2, (1, 2))
    assert second == Appended(3, (3,))
    events = await everything(store.read("door-1"))
    assert [event.data for event in events] == [Opened("ann"), {"colour": "red"}, Shut(hard=True)]
    assert [event.type for event in events] == ["store-opened", "store-painted", "store-shut"]
    assert [(event.version, event.position, event.stream) for event in events] == [(n, n, "door-1") for n in (1, 2, 3)]
    assert all(before - timedelta(seconds=1) <= event.recorded_at <= datetime.now(UTC) for event in events)
    assert len({event.id for event in events}) == 3
    assert [event.id for event in events] == sorted(event.id for event in events)
    assert await store.head("door-1") == 3
    assert await store.head("door-2") == 0


async def test_a_tuple_is_a_sequence_too(store: EventStore) -> None:
    assert (await store.append("door-1", (Opened("a"), Shut()))).version == 2


@pytest.mark.parametrize(
    ("there", "expected", "fits"),
    [
        (0, 0, True),
        (0, "no_stream", True),
        (0, "any", True),
        (0, "stream_exists", False),
        (0, 1, False),
        (2, 2, True),
        (2, "stream_exists", True),
        (2, "any", True),
        (2, 0, False),
        (2, "no_stream", False),
        (2, 1, False),
        (2, 3, False),
    ],
)
async def test_the_expected_version_decides(store: EventStore, there: int, expected: Any, fits: bool) -> None:
    for _ in range(there):
        await store.append("door-1", Shut())
    if fits:
        assert (await store.append("door-1", Shut(), expected_version=expected)).version == there + 1
        return
    with pytest.raises(VersionConflictError) as error:
        await store.append("door-1", Shut(), expected_version=expected)
    assert (error.value.stream, error.value.actual) == ("door-1", there)
    assert error.value.expected == ("no_stream" if expected == 0 else expected)
    assert await store.head("door-1") == there


@pytest.mark.parametrize("expected", [-1, 1.0, True, "some", None], ids=repr)
async def test_a_bad_expectation_is_refused(store: EventStore, expected: Any) -> None:
    with pytest.raises(DefinitionError, match="expected_version"):
        await store.append("door-1", Shut(), expected_version=expected)


@pytest.mark.parametrize("stream", ["", "x" * 401, "a\nb", "a\x00", "a\x85", "\ud800", None, 7, b"a"], ids=repr)
async def test_a_bad_stream_name_is_refused(store: EventStore, stream: Any) -> None:
    with pytest.raises(DefinitionError, match="stream name"):
        await store.append(stream, Shut())
    with pytest.raises(DefinitionError, match="stream name"):
        store.read(stream)
    with pytest.raises(DefinitionError, match="stream name"):
        await store.head(stream)


@pytest.mark.parametrize("stream", ["x" * 400, "ü-\u200d-日本", "no category", "-", "sagas-1", "a:b/c"])
async def test_other_stream_names_are_good(store: EventStore, stream: str) -> None:
    await store.append(stream, Shut())
    assert await data_of(store.read(stream)) == [Shut()]


@pytest.mark.parametrize("stream", ["saga-1", "inbox-1", "saga", "inbox", "saga-"])
async def test_the_engines_streams_are_not_for_others(store: EventStore, stream: str) -> None:
    with pytest.raises(DefinitionError, match="is the engine's"):
        await store.append(stream, Shut())


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([], DefinitionError),
        ((), DefinitionError),
        ({"a": 1}, NotRegisteredError),
        (object(), NotRegisteredError),
        ("text", NotRegisteredError),
        ([Shut(), object()], NotRegisteredError),
        ([Shut(), NewEvent("store-bad", object())], EncodeError),
        ([Shut(), Shut(hard="very")], EncodeError),  # type: ignore[arg-type]
        ([Shut(), NewEvent("bad name", {})], DefinitionError),
        ([NewEvent("a", 1, metadata={"actor": 7})], DefinitionError),
        ([NewEvent("a", 1, metadata={"actor": "\ud800"})], EncodeError),
    ],
    ids=[
        "empty list",
        "empty tuple",
        "dict",
        "object",
        "text",
        "one of two",
        "no JSON",
        "wrong type",
        "name",
        "metadata",
        "surrogate",
    ],
)
async def test_bad_events_store_nothing(store: EventStore, events: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await store.append("door-1", events)
    assert await store.head("door-1") == 0


async def test_a_hundred_writers_on_one_stream_lose_nothing_and_share_no_version(store: EventStore) -> None:
    results = await asyncio.gather(*(store.append("door-1", [Opened(str(n)), Shut()]) for n in range(100)))
    assert sorted(result.version for result in results) == list(range(2, 202, 2))
    events = await everything(store.read("door-1"))
    assert [event.version for event in events] == list(range(1, 201))
    for result in results:
        pair = events[result.version - 2 : result.version]
        assert tuple(event.position for event in pair) == result.positions
        assert isinstance(pair[0].data, Opened)


@pytest.mark.proves("one-winner")
async def test_of_writers_that_expect_the_same_version_one_wins(store: EventStore) -> None:
    results = await asyncio.gather(
        *(store.append("door-1", Opened(str(n)), expected_version=0) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Appended) for result in results) == 1
    assert sum(isinstance(result, VersionConflictError) for result in results) == 49


# -- event ids ---------------------------------------------------------------------------------------------------------


async def test_appending_again_changes_nothing_and_tells_the_same(store: EventStore) -> None:
    first = await store.append("door-1", numbered(3), expected_version="no_stream")
    await store.append("door-1", Shut())
    for expected in ("no_stream", "any", 17):
        assert await store.append("door-1", numbered(3), expected_version=expected) == first  # type: ignore[arg-type]
    assert await store.head("door-1") == 4


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("door-2", numbered(3)),
        ("door-1", numbered(2)),
        ("door-1", numbered(4)),
        ("door-1", numbered(3)[1:]),
        ("door-1", [NewEvent("store-other", 0, id="e-0"), *numbered(3)[1:]]),
        ("door-1", [NewEvent("store-numbered", 9, id="e-0"), *numbered(3)[1:]]),
        ("door-1", [*numbered(3)[:2], NewEvent("store-numbered", 2, id="new")]),
        ("door-1", [NewEvent("store-numbered", 2, id="new"), *numbered(3)[:1]]),
    ],
    ids=["stream", "fewer", "more", "tail", "type", "payload", "last id", "known id second"],
)
async def test_a_known_id_with_anything_else_is_a_conflict(store: EventStore, stream: str, events: Any) -> None:
    await store.append("door-1", numbered(3))
    with pytest.raises(EventIdConflictError):
        await store.append(stream, events)
    assert len(await everything(store.read_all())) == 3


async def test_one_id_twice_in_one_append_is_a_conflict(store: EventStore) -> None:
    with pytest.raises(EventIdConflictError):
        await store.append("door-1", [NewEvent("a", 1, id="x"), NewEvent("a", 1, id="x")])
    assert await store.head("door-1") == 0


async def test_the_same_append_at_the_same_time_lands_once(store: EventStore) -> None:
    results = await asyncio.gather(*(store.append("door-1", numbered(2)) for _ in range(20)))
    assert set(results) == {Appended(2, (1, 2))}


async def test_the_outcome_tells_what_landed(store: EventStore) -> None:
    landed = await store.append("door-1", numbered(3))
    await store.append("door-1", Shut())
    assert await store.outcome("e-0") == landed
    assert await store.outcome("e-1") is None
    assert await store.outcome("never") is None


async def test_the_outcome_of_an_interrupted_append_is_what_the_log_says(store: EventStore) -> None:
    """Whenever a caller is cancelled: its append landed wholly or not at all, and `outcome` knows."""
    tasks = []
    for n in range(60):
        tasks.append(asyncio.create_task(store.append(f"door-{n % 3}", numbered(2, f"n{n}"))))
        for _ in range(n % 7):
            await asyncio.sleep(0)
        tasks[-1 - n % 5 if n >= 5 else -1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    outcomes = [await store.outcome(f"n{n}-0") for n in range(60)]
    ids = {event.id for event in await everything(store.read_all())}
    for n, (result, outcome) in enumerate(zip(results, outcomes, strict=True)):
        assert {f"n{n}-0", f"n{n}-1"} & ids in (set(), {f"n{n}-0", f"n{n}-1"})
        assert (outcome is not None) == (f"n{n}-0" in ids)
        if isinstance(result, Appended):
            assert outcome == result
        else:
            assert isinstance(result, asyncio.CancelledError)
    assert any(isinstance(result, asyncio.CancelledError) for result in results)


async def test_the_outcome_of_a_unit_over_several_streams(store: EventStore) -> None:
    first, second = (NewRecord(i, "store-numbered", b"1") for i in "ab")
    await store.storage.write(Unit("a", 1, (Append("s-1", (first,)), Append("s-2", (second,)))))
    assert await store.outcome("a") == Appended(1, (1, 2))


# -- reading -----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_read_in_pages_both_ways(store: EventStore) -> None:
    await store.append("door-1", numbered(2500))
    assert await data_of(store.read("door-1")) == list(range(2500))
    assert await data_of(store.read("door-1", backwards=True)) == list(range(2499, -1, -1))
    assert await data_of(store.read("door-1", after=1000, limit=1200)) == list(range(1000, 2200))
    assert await data_of(store.read("door-1", after=2200, limit=1100, backwards=True)) == list(range(2198, 1098, -1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"after": 3}, [3, 4]),
        ({"after": 5}, []),
        ({"after": 99}, []),
        ({"limit": 2}, [0, 1]),
        ({"limit": 0}, []),
        ({"backwards": True, "limit": 2}, [4, 3]),
        ({"backwards": True, "after": 3}, [1, 0]),
        ({"backwards": True, "after": 1}, []),
        ({"backwards": True, "after": 99}, [4, 3, 2, 1, 0]),
    ],
    ids=str,
)
async def test_after_and_limit(store: EventStore, options: Any, expected: list[int]) -> None:
    await store.append("door-1", numbered(5))
    assert await data_of(store.read("door-1", **options)) == expected


@pytest.mark.parametrize(
    "options", [{"after": -1}, {"limit": -1}, {"after": "1"}, {"limit": 1.5}, {"after": True}], ids=str
)
async def test_bad_ranges_are_refused_at_once(store: EventStore, options: Any) -> None:
    with pytest.raises(DefinitionError, match="must be an integer from 0"):
        store.read("door-1", **options)
    with pytest.raises(DefinitionError, match="must be an integer from 0"):
        store.read_all(**options)


async def test_a_stream_without_events_yields_nothing(store: EventStore) -> None:
    assert await everything(store.read("door-1")) == []
    assert await everything(store.read_all()) == []


async def test_a_sagas_facts_come_as_single_events_wherever_one_begins(store: EventStore) -> None:
    await put_facts(store, "saga-1", *FACTS)
    flat = [fact for unit in FACTS for fact in unit]
    events = await everything(store.read("saga-1"))
    assert [event.data for event in events] == flat
    assert [event.version for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.id for event in events] == [
        "saga-1/0", "saga-1/0:1", "saga-1/0:2", "saga-1/1", "saga-1/2", "saga-1/2:1",
    ]  # fmt: skip
    for after in range(7):
        assert await data_of(store.read("saga-1", after=after)) == flat[after:]
        assert await data_of(store.read_all(after=after)) == flat[after:]
        for limit in range(1, 4):
            assert await data_of(store.read("saga-1", after=after, limit=limit)) == flat[after : after + limit]
            assert await data_of(store.read_all(after=after, limit=limit)) == flat[after : after + limit]
    for below in range(1, 8):
        assert await data_of(store.read("saga-1", after=below, backwards=True)) == flat[: below - 1][::-1]


async def test_all_streams_by_type_and_category(store: EventStore) -> None:
    await store.append("door-1", [Opened("a"), NewEvent("store-painted", 1)])
    await put_facts(store, "saga-1", *FACTS)
    await store.append("gate-1", [Shut(), Opened("b")])
    await store.append("door-2", Opened("c"))

    async def found(**options: Any) -> list[Any]:
        return [event.data for event in await everything(store.read_all(**options))]

    assert len(await found()) == 11
    assert await found(types=["store-painted"]) == [1]
    assert await found(types="store-painted") == [1]
    assert await found(types=Opened) == [Opened("a"), Opened("b"), Opened("c")]
    assert await found(types=[Happened]) == [Opened("a"), Shut(), Opened("b"), Opened("c")]
    assert await found(types=[Shut, "store-painted"]) == [1, Shut()]
    assert await found(categories="door") == [Opened("a"), 1, Opened("c")]
    assert await found(categories=["gate", "nothing"]) == [Shut(), Opened("b")]
    assert await found(types=Opened, categories="gate") == [Opened("b")]
    assert await found(types=[h.StepSucceeded, h.SagaCompleted]) == [
        h.StepSucceeded("a"), h.StepSucceeded("b"), h.SagaCompleted(),
    ]  # fmt: skip
    assert await found(types=h.SagaCompleted) == [h.SagaCompleted()]
    assert await found(types=h.StepStarted, after=4) == [h.StepStarted("b")]
    assert await found(types="store-unknown") == []


async def test_asking_for_a_class_that_is_not_registered_is_an_error(store: EventStore) -> None:
    with pytest.raises(NotRegisteredError, match="int"):
        store.read_all(types=int)
    with pytest.raises(NotRegisteredError, match="int"):
        store.follow(types=[Opened, int])


async def test_what_is_wanted_of_the_log_is_read_in_pages(store: EventStore) -> None:
    await asyncio.gather(
        *(store.append(f"{kind}-{n}", numbered(3, f"{kind}-{n}")) for n in range(500) for kind in ("door", "gate"))
    )
    wanted = [event.position for event in await everything(store.read_all()) if event.stream.startswith("door-")]
    assert len(wanted) == 1500
    assert [event.position for event in await everything(store.read_all(categories="door"))] == wanted
    assert [event.position for event in await everything(store.read_all(categories="door", limit=1200))] == wanted[
        :1200
    ]


async def test_the_whole_log_is_read_in_pages(store: EventStore) -> None:
    for n in range(5):
        await store.append(f"door-{n}", numbered(500, f"n{n}"))
    positions = [event.position for event in await everything(store.read_all())]
    assert positions == list(range(1, 2501))
    assert len(await everything(store.read_all(categories="door", limit=1700))) == 1700
    assert [event.position for event in await everything(store.read_all(after=1990, limit=20))] == list(
        range(1991, 2011)
    )


async def test_an_unreadable_event_stops_the_reader_where_it_stands(store: EventStore) -> None:
    await store.append("door-1", Opened("a"))
    broken = NewRecord("broken", "store-opened", b'{"by":7}')
    await store.storage.write(Unit("broken", 1, (Append("door-1", (broken,)),)))
    await store.append("door-1", Opened("b"))
    events = store.read("door-1")
    assert (await anext(events)).data == Opened("a")
    with pytest.raises(DecodeError, match=r"event 'broken' \(store-opened\), version 2 of stream 'door-1'"):
        await anext(events)
    assert await data_of(store.read("door-1", after=2)) == [Opened("b")]
    assert await data_of(store.read_all(after=2)) == [Opened("b")]


async def test_what_was_appended_survives_the_store(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    async with open_storage(url) as storage:
        appended = await EventStore(storage).append("door-1", [NewEvent("a", 1, id="x"), Opened("ann")])
    async with open_storage(url) as storage:
        store = EventStore(storage)
        assert await data_of(store.read("door-1")) == [1, Opened("ann")]
        assert await store.outcome("x") == appended
