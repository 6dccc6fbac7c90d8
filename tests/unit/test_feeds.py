"""Bells, progress, and checkpoints that one worker has at a time."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EventStore, NewEvent
from event_workflow_engine.errors import LogRewoundError, RowConflictError
from event_workflow_engine.feeds import Bell, ChangeBell, Feed, Progress, Tail
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from event_workflow_engine.storage.port import Record, Storage


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    opened = open_storage(store_url, auto_upgrade=True)
    with closing(Bell(opened, lambda _: False)) as of_others:
        async with opened:
            if store_url.startswith("postgresql"):
                assert await of_others.wait(20), "what was committed before it listens is rung for when it does"
            await settle(opened)
            yield opened


async def settle(storage: Storage) -> None:
    """A file's first ring is for what may have been committed before it was opened; it comes before the second write."""
    for n in range(2):
        await storage.write(Unit(f"settle-{n}", 1))


def a_unit(number: int, *rows: Row) -> Unit:
    return Unit(f"unit-{number}", 1, rows=rows)


def feed(storage: Storage, worker: str) -> Feed:
    return Feed(storage, "feed", worker, lambda: 1)


async def rings(bell: Bell) -> bool:
    """Whether it has been rung; without waiting."""
    return await bell.wait(0)


# -- bells -----------------------------------------------------------------------------------------------------------


async def test_a_bell_takes_any_commit_and_remembers_it_once(storage: Storage) -> None:
    bell, store = Bell(storage), EventStore(storage)
    assert not await rings(bell)
    await store.append("a-1", NewEvent("a", 1))
    await store.append("a-1", NewEvent("a", 1))
    assert await rings(bell)
    assert not await rings(bell)
    bell.ring()
    assert await rings(bell)
    bell.close()
    await store.append("a-1", NewEvent("a", 1))
    assert not await rings(bell)


async def test_a_bell_that_wants_something_sleeps_through_the_rest(storage: Storage) -> None:
    def wanted(unit: Unit) -> bool:
        return any(record.type == "a" for append in unit.appends for record in append.records)

    bell, store = Bell(storage, wanted), EventStore(storage)
    await store.append("b-1", NewEvent("b", 1))
    assert not await rings(bell)
    await asyncio.gather(*(store.append("b-1", NewEvent(kind, 1)) for kind in "bab"))
    assert await rings(bell)
    assert not await rings(bell)
    bell.close()
    await store.append("a-1", NewEvent("a", 1))
    assert not await rings(bell)


async def test_a_bell_rings_for_whatever_another_process_commits(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/feeds.db"
    async with open_storage(url) as here, open_storage(url) as elsewhere:
        await settle(here)
        bell, store = Bell(here, lambda _: False), EventStore(here)
        for _ in range(3):
            await store.append("a-1", NewEvent("a", 1))
        assert not await rings(bell)
        await EventStore(elsewhere).append("a-1", NewEvent("a", 1))
        assert await bell.wait(20)
        bell.close()


async def test_a_change_bell_knows_tables(storage: Storage) -> None:
    bell = ChangeBell(storage, frozenset({"slots"}))
    await storage.write(a_unit(1, Row("saga_ids", "insert", ("s",), {})))
    assert not await rings(bell)
    await storage.write(a_unit(2, Row("slots", "insert", ("s", 1), {})))
    assert await rings(bell)
    bell.close()


async def test_a_bell_wakes_who_waits_when_the_store_is_closed() -> None:
    async with open_storage("memory://") as storage:
        bell = Bell(storage, lambda _: False)
        waiting = asyncio.create_task(bell.wait())
        await asyncio.sleep(0)
    assert await waiting


async def test_progress_misses_no_move() -> None:
    progress = Progress()
    first, second = progress.moved(), progress.moved()
    second.cancel()
    progress.tell()
    await first
    third = progress.moved()
    assert not third.done()
    progress.tell()
    assert third.done()


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.proves("one-winner")
async def test_one_of_many_gets_a_new_checkpoint(storage: Storage) -> None:
    feeds = [feed(storage, f"w-{n}") for n in range(5)]
    for n in range(5):
        await storage.write(a_unit(n, Row("workers", "insert", (f"w-{n}",), {"incarnation": 1, "alive": 1})))
    assert sorted(await asyncio.gather(*(one.claim() for one in feeds))) == [False] * 4 + [True]
    (owner,) = [one for one in feeds if await one.claim()]
    assert [await one.is_fed_elsewhere() for one in feeds] == [one is not owner for one in feeds]
    await owner.release()
    assert await feeds[0].claim()


async def test_a_move_is_the_owners_alone(storage: Storage) -> None:
    first, second = feed(storage, "w-1"), feed(storage, "w-2")
    await EventStore(storage).append("a-1", [NewEvent("a", n) for n in range(5)])
    assert await first.claim()
    assert first.is_new
    await first.save(2, 2)
    assert await second.claim(), "w-1 has no row among the workers, so it is not alive"
    assert (second.position, second.events, second.is_new) == (2, 2, False)
    with pytest.raises(RowConflictError):
        await first.save(3)
    await first.release()
    await second.save(3, 1)
    row = await storage.get("checkpoints", ("feed",))
    assert row is not None
    assert (row["owner"], row["position"], row["events"]) == ("w-2", 3, 3)


async def test_a_new_one_begins_where_it_is_told(storage: Storage) -> None:
    await EventStore(storage).append("a-1", [NewEvent("a", n) for n in range(5)])
    one = feed(storage, "w-1")
    assert await one.claim(4)
    assert one.position == 4
    assert await one.claim(0)
    assert one.position == 4, "it is not new any more"


async def test_a_log_that_ends_before_the_checkpoint_is_told(storage: Storage) -> None:
    await storage.write(a_unit(1, Row("checkpoints", "insert", ("feed",), {"position": 7, "events": 7, "owner": ""})))
    with pytest.raises(LogRewoundError, match=r"position 7.*ends at position 0"):
        await feed(storage, "w-1").claim()


class RewoundStorage:
    """Answers from a log that is lost by then: with the answer comes the news of it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.rewinds: list[tuple[int, int]] = []
        self.lost: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def read_log(self, **wanted: Any) -> list[Record]:
        found = await self._storage.read_log(**wanted)
        if self.lost:
            self.rewinds.append((5, 2))
            if self.lost.pop(0):
                found = []
        return found


@pytest.fixture
async def rewound() -> AsyncIterator[tuple[Tail, RewoundStorage]]:
    """A tail that has read five events, and its store."""
    async with open_storage("memory://") as storage:
        await EventStore(storage).append("a-1", [NewEvent("a", n) for n in range(5)])
        rewound = RewoundStorage(storage)
        tail = Tail(rewound, "reader")  # type: ignore[arg-type]
        tail.move((await tail.look(100))[-1])
        yield tail, rewound


async def test_what_was_checked_is_checked_again_where_the_log_was_rewound_meanwhile(
    rewound: tuple[Tail, RewoundStorage],
) -> None:
    tail, storage = rewound
    storage.lost = [False]
    await tail.check()
    assert not storage.lost
    storage.lost = [False, True]
    with pytest.raises(LogRewoundError, match="reader had read the log of memory:// up to position 5"):
        await tail.check()


async def test_what_was_looked_at_is_void_where_the_log_was_rewound_since(
    rewound: tuple[Tail, RewoundStorage],
) -> None:
    tail, storage = rewound
    tail.require_unrewound()
    storage.rewinds.append((5, 2))
    with pytest.raises(LogRewoundError) as caught:
        tail.require_unrewound()
    assert (caught.value.position, caught.value.end) == (5, 2)
    assert await tail.look(100) == []
    tail.require_unrewound()
