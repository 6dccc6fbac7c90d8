"""Snapshots, on every backend: when they are taken, what they hold, and when they are ignored."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from event_workflow_engine.aggregates import Aggregate
from event_workflow_engine.errors import DefinitionError, EncodeError, NotRegisteredError
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import REGISTRY, event
from event_workflow_engine.snapshots import SnapshotManager, every, older_than
from event_workflow_engine.storage import Storage, open_storage
from event_workflow_engine.storage.port import Row, Unit


@event("snapshots-added")
@dataclass(frozen=True)
class Added:
    amount: int


@dataclass
class Sum(Aggregate[Added], category="snapshotsum"):
    total: int = 0
    seen: set[int] = field(default_factory=set)
    _private: int = 0

    def apply(self, event: Added, /) -> None:
        self.total += event.amount
        self.seen.add(event.amount)
        self._private -= event.amount


@dataclass
class Cart:
    items: list[str]


class Tally(msgspec.Struct):
    n: int


class Model(BaseModel):
    n: int


class TestClock:
    """Shows what it is set to."""

    __test__ = False

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    async def sleep_until(self, when: datetime, /) -> None:
        self.time = max(self.time, when)


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def store(storage: Storage, clock: TestClock) -> EventStore:
    return EventStore(storage, clock=clock)


@pytest.fixture
def manager(store: EventStore) -> SnapshotManager:
    made = SnapshotManager(store)
    made.register(Cart, every(1))
    return made


# -- policies ----------------------------------------------------------------------------------------------------------


def test_every_counts_events() -> None:
    assert [every(3).due(n, 0) for n in (0, 2, 3, 4)] == [False, False, True, True]


def test_older_than_looks_at_the_age() -> None:
    policy = older_than(timedelta(minutes=1))
    assert [policy.due(1, age) for age in (0, 60, 60.1, float("inf"))] == [False, False, True, True]


@given(st.integers(1, 9), st.floats(0, 9), st.integers(0, 9), st.floats(0, 9))
def test_policies_compose(n: int, age: float, events: int, since: float) -> None:
    a, b = every(n), older_than(age)
    assert (a | b).due(events, since) is (a.due(events, since) or b.due(events, since))
    assert (a & b).due(events, since) is (a.due(events, since) and b.due(events, since))
    assert (a & b | a).due(events, since) is a.due(events, since)


def test_policies_show_what_they_are() -> None:
    assert repr(every(100) | older_than(60) & every(5)) == "(every(100) | (older_than(60.0) & every(5)))"


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3"], ids=repr)
def test_bad_counts_are_refused(bad: Any) -> None:
    with pytest.raises(DefinitionError, match="every"):
        every(bad)


@pytest.mark.parametrize("bad", [-1, timedelta(seconds=-1), float("nan")], ids=repr)
def test_bad_ages_are_refused(bad: Any) -> None:
    with pytest.raises(DefinitionError, match="older_than"):
        older_than(bad)


def test_policies_compose_with_policies_only() -> None:
    with pytest.raises(TypeError):
        every(1) | 5  # type: ignore[operator]
    with pytest.raises(TypeError):
        every(1) & None  # type: ignore[operator]


# -- saving and loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [Cart(["lamp"]), Tally(3), Model(n=3)], ids=repr)
async def test_a_snapshot_comes_back(manager: SnapshotManager, clock: TestClock, state: Any) -> None:
    manager.register(type(state), every(1))
    assert await manager.save("cart-1", state, version=4)
    loaded = await manager.load("cart-1", type(state))
    assert loaded is not None
    assert (loaded.state, loaded.version, loaded.taken_at) == (state, 4, clock.time)
    assert loaded.state is not state
    assert await manager.load("cart-2", type(state)) is None


async def test_types_on_one_stream_are_apart(manager: SnapshotManager) -> None:
    manager.register(Tally, every(1))
    await manager.save("cart-1", Cart([]), 1)
    await manager.save("cart-1", Tally(1), 2)
    assert (await manager.load("cart-1", Cart)).version == 1  # type: ignore[union-attr]
    assert (await manager.load("cart-1", Tally)).version == 2  # type: ignore[union-attr]


async def test_every_counts_from_the_last_snapshot(manager: SnapshotManager) -> None:
    manager.register(Cart, every(10))
    kept = [version for version in range(1, 40) if await manager.save("cart-1", Cart([]), version)]
    assert kept == [10, 20, 30]


async def test_the_age_is_that_of_the_last_snapshot(manager: SnapshotManager, clock: TestClock) -> None:
    manager.register(Cart, older_than(60))
    assert await manager.save("cart-1", Cart([]), 1)
    assert not await manager.save("cart-1", Cart([]), 2)
    clock.time += timedelta(seconds=60)
    assert not await manager.save("cart-1", Cart([]), 2)
    clock.time += timedelta(seconds=1)
    assert not await manager.save("cart-1", Cart([]), 1)  # the same version is no news
    assert await manager.save("cart-1", Cart([]), 2)


async def test_snapshots_only_advance(manager: SnapshotManager) -> None:
    assert await manager.save("cart-1", Cart(["new"]), 10)
    assert not await manager.save("cart-1", Cart(["old"]), 9)
    assert not await manager.save("cart-1", Cart(["other"]), 10)
    assert (await manager.load("cart-1", Cart)).state == Cart(["new"])  # type: ignore[union-attr]


async def test_of_many_savers_at_once_the_newest_stays(store: EventStore) -> None:
    managers = [SnapshotManager(store) for _ in range(4)]
    for manager in managers:
        manager.register(Cart, every(1))
    versions = [n * 7 % 60 + 1 for n in range(60)]
    kept = await asyncio.gather(
        *(managers[n % 4].save("cart-1", Cart([str(version)]), version) for n, version in enumerate(versions))
    )
    loaded = await managers[0].load("cart-1", Cart)
    assert loaded is not None
    assert (loaded.version, loaded.state) == (60, Cart(["60"]))
    assert any(kept)


async def test_one_may_be_asked_for_as_of_a_version(manager: SnapshotManager) -> None:
    await manager.save("cart-1", Cart([]), 10)
    assert await manager.load("cart-1", Cart, at=9) is None
    assert (await manager.load("cart-1", Cart, at=10)).version == 10  # type: ignore[union-attr]


async def test_deleting_forgets_every_type(manager: SnapshotManager) -> None:
    manager.register(Tally, every(5))
    await manager.save("cart-1", Cart([]), 10)
    await manager.save("cart-1", Tally(1), 10)
    await manager.save("cart-2", Cart([]), 3)
    await manager.delete("cart-1")
    await manager.delete("cart-9")
    assert await manager.load("cart-1", Cart) is None
    assert await manager.load("cart-1", Tally) is None
    assert await manager.load("cart-2", Cart) is not None
    assert await manager.save("cart-1", Tally(1), 5)  # it counts from the begin again


@pytest.mark.parametrize("version", [0, -1, 1.5, True, None], ids=repr)
async def test_bad_versions_are_refused(manager: SnapshotManager, version: Any) -> None:
    with pytest.raises(DefinitionError, match="must be an integer from 1"):
        await manager.save("cart-1", Cart([]), version)


async def test_what_is_not_registered_is_refused(manager: SnapshotManager) -> None:
    with pytest.raises(NotRegisteredError, match=r"Tally are kept: register\(Tally"):
        await manager.save("cart-1", Tally(1), 1)
    with pytest.raises(NotRegisteredError, match="Tally"):
        await manager.load("cart-1", Tally)
    assert not manager.knows(Tally)
    assert manager.knows(Cart)


def test_bad_registrations_are_refused(store: EventStore) -> None:
    class Plain(Aggregate[Added], category="plainsnap"):
        pass

    manager = SnapshotManager(store)
    with pytest.raises(DefinitionError, match="no policy"):
        manager.register(Cart, 100)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="schema_version"):
        manager.register(Cart, every(1), schema_version=0)
    with pytest.raises(DefinitionError, match="classes"):
        manager.register(list[int], every(1))
    with pytest.raises(DefinitionError, match="@dataclass"):
        manager.register(Plain, every(1))


async def test_a_state_that_would_not_come_back_is_refused(manager: SnapshotManager) -> None:
    with pytest.raises(EncodeError, match="could not be read back"):
        await manager.save("cart-1", Cart("lamp"), 1)  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match=r"builtins\.object"):
        await manager.save("cart-1", Cart([object()]), 1)  # type: ignore[list-item]
    assert await manager.load("cart-1", Cart) is None


# -- when it does not fit ----------------------------------------------------------------------------------------------


async def test_another_schema_version_is_ignored_and_replaced(store: EventStore) -> None:
    old, new = SnapshotManager(store), SnapshotManager(store)
    old.register(Cart, every(10), schema_version=1)
    new.register(Cart, every(10), schema_version=2)
    await old.save("cart-1", Cart(["old"]), 20)
    assert await new.load("cart-1", Cart) is None
    assert not await new.save("cart-1", Cart(["new"]), 19)  # the old code runs on, and needs its own
    assert await new.save("cart-1", Cart(["new"]), 20)
    assert await old.load("cart-1", Cart) is None
    assert (await new.load("cart-1", Cart)).state == Cart(["new"])  # type: ignore[union-attr]


async def test_a_damaged_one_is_ignored(manager: SnapshotManager, caplog: pytest.LogCaptureFixture) -> None:
    await manager.save("cart-1", Cart(["lamp"]), 10)
    row = Row("snapshots", "update", ("cart-1", f"{__name__}.Cart"), {"state": b'{"items":7}'})
    await manager._store.storage.write(Unit("damage", 1, (), (row,)))
    with caplog.at_level(logging.WARNING):
        assert await manager.load("cart-1", Cart) is None
    assert "cart-1" in caplog.text
    assert await manager.save("cart-1", Cart(["lamp"]), 11)
    assert await manager.load("cart-1", Cart) is not None


async def summed(store: EventStore, *amounts: int) -> None:
    await store.append("snapshotsum-1", [Added(amount) for amount in amounts])


async def test_replay_begins_at_the_snapshot(store: EventStore) -> None:
    await summed(store, 1, 2, 3)
    manager = SnapshotManager(store)
    manager.register(Sum, every(1))
    assert await manager.save("snapshotsum-1", await store.replay(Sum, "1"), 3)
    row = Row(
        "snapshots", "update", ("snapshotsum-1", f"{__name__}.Sum"), {"state": b'{"total":100,"seen":[9],"_private":5}'}
    )
    await store.storage.write(Unit("forged", 1, (), (row,)))
    await summed(store, 4)
    loaded = await store.replay(Sum, "1")
    assert (loaded.total, loaded.seen, loaded._private) == (104, {9, 4}, 1)
    assert (loaded.id, loaded.version) == ("1", 4)
    assert (await store.replay(Sum, "1", version=2)).total == 3  # from before the snapshot
    assert (await store.replay(Sum, "1", version=3)).total == 100
    assert (await store.replay(Sum, "1", version=0)).total == 0


async def test_an_aggregate_comes_back_from_its_snapshot_as_from_its_events(store: EventStore) -> None:
    await summed(store, 1, 2, 3)
    folded = await store.replay(Sum, "1")
    manager = SnapshotManager(store)
    manager.register(Sum, every(1))
    await manager.save("snapshotsum-1", folded, 3)
    snapshot = await manager.load("snapshotsum-1", Sum)
    assert snapshot is not None
    assert snapshot.state == folded
    assert (snapshot.state.id, snapshot.state.version) == ("1", 3)
    assert vars(snapshot.state).keys() == vars(folded).keys()


async def test_new_upcasters_of_its_events_make_it_old(store: EventStore) -> None:
    await summed(store, 1, 2)
    manager = SnapshotManager(store)
    manager.register(Sum, every(1))
    await manager.save("snapshotsum-1", await store.replay(Sum, "1"), 2)
    assert await manager.load("snapshotsum-1", Sum) is not None
    try:
        REGISTRY.register("snapshots-added", 2, Added)
        REGISTRY.register_upcaster("snapshots-added", 1, lambda data: {"amount": data["amount"] * 10})
        assert await manager.load("snapshotsum-1", Sum) is None
        assert (await store.replay(Sum, "1")).total == 30
    finally:
        REGISTRY._upcasters.pop(("snapshots-added", 1), None)
        REGISTRY.register("snapshots-added", 1, Added)
    assert await manager.load("snapshotsum-1", Sum) is not None


async def test_state_outside_of_the_fields_is_refused(store: EventStore) -> None:
    @dataclass
    class Leaky(Aggregate[Added], category="leaky"):
        total: int = 0

        def apply(self, event: Added, /) -> None:
            self.hidden = event.amount

        @cached_property
        def derived(self) -> int:
            return self.total + 1

    manager = SnapshotManager(store)
    manager.register(Leaky, every(1))
    await store.append("leaky-1", Added(1))
    leaky = await store.replay(Leaky, "1")
    assert leaky.derived == 1
    with pytest.raises(EncodeError, match="would lose hidden: declare them as fields"):
        await manager.save("leaky-1", leaky, 1)
    del leaky.hidden
    assert await manager.save("leaky-1", leaky, 1)


@pytest.mark.parametrize("url", ["sqlite"])
async def test_snapshots_survive_the_store(tmp_path: Path, url: str) -> None:
    path = f"{url}:///{tmp_path}/log.db"
    async with open_storage(path) as storage:
        manager = SnapshotManager(EventStore(storage))
        manager.register(Cart, every(1))
        await manager.save("cart-1", Cart(["lamp"]), 7)
    async with open_storage(path) as storage:
        manager = SnapshotManager(EventStore(storage))
        manager.register(Cart, every(1))
        assert (await manager.load("cart-1", Cart)).state == Cart(["lamp"])  # type: ignore[union-attr]
        assert not await manager.save("cart-1", Cart([]), 7)
