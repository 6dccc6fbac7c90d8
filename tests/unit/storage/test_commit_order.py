"""Transactions that commit beside the batches: what is heard of both is in the order of commits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.committing import Backend, turns, unit

from event_workflow_engine.errors import StorageError, VersionConflictError
from event_workflow_engine.storage.group_commit import Repeated, Verdict
from event_workflow_engine.storage.port import Written
from event_workflow_engine.storage.postgres.commit_order import CommitOrder, SideCommit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Unit

REFUSED = VersionConflictError("s", 0, 1)


class Store:
    """What commits in a store, with the answers of its server given by hand."""

    def __init__(self) -> None:
        self.order = CommitOrder()
        self.backend = Backend(self.order)
        self.told: list[str] = []
        self.order.add_commit_hook(lambda committed: self.told.extend(one.id for one, _ in committed))
        self.bells = 0
        self.order.add_bell(self._ring)

    def _ring(self) -> None:
        self.bells += 1

    async def in_flight(self, *names: str) -> list[asyncio.Future[Written]]:
        """Units of a batch that was sent."""
        futures = [self.backend.committer.submit(unit(name)) for name in names]
        await turns()
        assert self.backend.committer.in_flight() == list(names)
        return futures

    async def locked(self, name: str, *landed: str) -> SideCommit:
        """A transaction that has the lock; of what is in flight that has landed."""
        commit = self.order.begin(unit(name), self.backend.committer)

        async def look(asked: list[str]) -> list[str]:
            await turns()
            return [one for one in landed if one in asked]

        await commit.locked(look)
        return commit

    def end(self, commit: SideCommit, verdict: Verdict | None = None) -> asyncio.Task[None]:
        """It has been told what became of it."""
        return asyncio.create_task(commit.ended(verdict or Written(commit.unit.id, ())))

    def answer(self, **verdicts: Verdict) -> asyncio.Task[None]:
        """The batch in flight has been told what became of it."""

        async def answered() -> None:
            assert self.backend.waiting is not None
            names = [one.id for one in self.backend.waiting[0]]
            await self.order.follow([verdicts.get(name, Written(name, ())) for name in names])
            await self.backend.settle(**verdicts)

        return asyncio.create_task(answered())


@pytest.fixture
async def store() -> Store:
    return Store()


async def test_a_batch_that_was_behind_is_told_of_behind(store: Store) -> None:
    """Its answer is here first."""
    (future,) = await store.in_flight("b")
    side = await store.locked("t")
    answer = store.answer()
    await turns()
    assert store.told == []
    assert not future.done()
    await store.end(side)
    await answer
    assert store.told == ["t", "b"]


async def test_a_transaction_does_not_wait_for_a_batch_that_is_behind_it(store: Store) -> None:
    """The batch may stand in line at a pooler for as long as others have its connections."""
    await store.in_flight("b")
    side = await store.locked("t")
    await store.end(side)
    assert store.told == ["t"]
    await store.answer()
    assert store.told == ["t", "b"]


async def test_a_transaction_is_told_of_behind_the_batch_that_was_before_it(store: Store) -> None:
    """Its answer is here first; its caller is told when the hooks were."""
    await store.in_flight("a", "b")
    side = await store.locked("t", "a", "b")
    ended = store.end(side)
    await turns()
    assert store.told == []
    assert not ended.done()
    await store.answer()
    await ended
    assert store.told == ["a", "b", "t"]


async def test_a_batch_that_was_before_does_not_wait_for_the_transaction(store: Store) -> None:
    (future,) = await store.in_flight("b")
    side = await store.locked("t", "b")
    await store.answer()
    assert future.done()
    await store.end(side)
    assert store.told == ["b", "t"]


async def test_what_was_answered_before_the_commit_was_sent_was_before_it(store: Store) -> None:
    """While it has the lock and looks, nothing else can land."""
    await store.in_flight("b")
    commit = store.order.begin(unit("t"), store.backend.committer)

    async def look(_: list[str]) -> list[str]:
        await store.answer()
        return ["b"]

    await commit.locked(look)
    assert commit.behind == frozenset()
    await store.end(commit)
    assert store.told == ["b", "t"]


async def test_a_batch_that_landed_in_parts_is_told_of_around_the_transactions(store: Store) -> None:
    await store.in_flight("a", "b", "c", "d")
    first = await store.locked("t1", "a")
    ends = [store.end(first)]
    second = await store.locked("t2", "a", "b", "c")
    answer = store.answer(c=REFUSED)
    await turns()
    assert store.told == []
    ends.append(store.end(second))
    await asyncio.gather(answer, *ends)
    assert store.told == ["a", "t1", "b", "t2", "d"]
    assert store.bells == 1


async def test_transactions_are_told_of_in_the_order_of_their_locks(store: Store) -> None:
    first, second = await store.locked("t1"), await store.locked("t2")
    behind = store.end(second)
    await turns()
    assert store.told == []
    await store.end(first)
    await behind
    assert store.told == ["t1", "t2"]


async def test_one_that_fails_lets_the_next_be_told_of_and_not_before_its_own_turn(store: Store) -> None:
    failing = [await store.locked("t1")]
    await store.in_flight("b")
    behind = store.end(await store.locked("t2", "b"))
    failing.append(await store.locked("t3", "b"))
    for one in failing:
        await store.end(one, StorageError("no"))
        await turns()
        assert store.told == [], "b was before it"
    await store.answer()
    await behind
    assert store.told == ["b", "t2"]

    failing = [await store.locked("t4")]
    behind = store.end(await store.locked("t5"))
    await turns()
    assert not behind.done()
    await store.end(failing[0], StorageError("no"))
    await behind
    assert store.told == ["b", "t2", "t5"]


@pytest.mark.parametrize("verdict", [StorageError("no"), Repeated(Written("t", ()))], ids=["failed", "had landed"])
async def test_nothing_waits_for_one_that_has_not_committed(store: Store, verdict: Verdict) -> None:
    await store.in_flight("b")
    side, behind = await store.locked("t"), await store.locked("t2")
    answer, ended = store.answer(), store.end(behind)
    await turns()
    assert store.told == []
    await store.end(side, verdict)
    await asyncio.gather(answer, ended)
    assert store.told == ["t2", "b"]


async def test_units_before_it_that_nobody_is_told_of_hold_nothing_up(store: Store) -> None:
    """One of them was stored long ago, and is only answered again."""
    await store.in_flight("b")
    ended = store.end(await store.locked("t", "b"))
    await turns()
    assert store.told == []
    await store.answer(b=Repeated(Written("b", ())))
    await ended
    assert store.told == ["t"]


async def test_it_is_told_of_behind_one_that_had_the_store_alone(store: Store) -> None:
    leave = asyncio.Event()

    async def work() -> None:
        await leave.wait()
        store.order.announce([(unit("e"), Written("e", ()))])

    alone = asyncio.create_task(store.backend.committer.alone(work, unit_id="e"))
    await turns()
    ended = store.end(await store.locked("t", "e"))
    await turns()
    assert store.told == []
    leave.set()
    await asyncio.gather(alone, ended)
    assert store.told == ["e", "t"]


async def test_its_unit_is_settled_and_the_store_closed_when_it_was_told_of(store: Store) -> None:
    waiting_for: Unit = unit("t")
    side = store.order.begin(waiting_for, store.backend.committer)
    waiting = [asyncio.create_task(one) for one in (store.order.settled("t"), store.order.close())]
    await store.order.settled("other")
    await turns()
    assert not any(one.done() for one in waiting)
    await store.end(side, StorageError("no"))
    await asyncio.gather(*waiting)
    assert store.told == []


async def test_a_hook_that_raises_keeps_nobody_waiting(store: Store) -> None:
    raised: list[object] = []

    def hook(_: object) -> None:
        raise LookupError("no")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
    store.order.add_commit_hook(hook)
    await store.end(await store.locked("t"))
    assert store.told == ["t"]
    assert [type(one) for one in raised] == [LookupError]


async def test_one_that_lost_the_lock_while_it_looked_holds_up_nobody_and_changes_no_order(store: Store) -> None:
    """Its connection hangs, and the server has ended its session: others have the lock, and it will never commit."""
    await store.in_flight("b")
    hanging = store.order.begin(unit("t1"), store.backend.committer)

    async def look(_: list[str]) -> list[str]:
        await asyncio.Event().wait()
        return []

    looking = asyncio.create_task(hanging.locked(look))
    await turns()
    behind = store.end(await store.locked("t2"))
    answer = store.answer()
    await turns()
    assert store.told == ["t2", "b"]
    await asyncio.gather(behind, answer)
    looking.cancel()
    await store.end(hanging, StorageError("no"))
    assert store.told == ["t2", "b"]


async def test_a_unit_before_it_that_is_written_once_more_is_not_waited_for_again(store: Store) -> None:
    """The second time nobody is told of it, so nothing would wake who waits for that."""
    await store.in_flight("b")
    failing = await store.locked("t1", "b")
    behind = store.end(await store.locked("t2", "b"))
    await store.answer()
    await turns()
    assert store.told == ["b"]
    await store.in_flight("b")
    await store.end(failing, StorageError("no"))
    await store.answer(b=Repeated(Written("b", ())))
    await turns()
    assert behind.done()
    assert store.told == ["b", "t2"]
