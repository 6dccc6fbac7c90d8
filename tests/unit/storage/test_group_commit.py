"""The committer over a backend of the test's own, which settles when the test says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import EngineStateError, StorageError
from event_workflow_engine.storage.group_commit import GroupCommitter, Listeners, Repeated, Verdict
from event_workflow_engine.storage.port import Unit, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Backend:
    """Keeps batches until they are settled by hand."""

    def __init__(self, **limits: int) -> None:
        self.batches: list[list[str]] = []
        self.waiting: tuple[list[Unit], Callable[[Sequence[Verdict]], None]] | None = None
        self.listeners = Listeners()
        self.committer = GroupCommitter(self.execute, self.listeners, **limits)

    def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        assert self.waiting is None, "two batches in flight"
        self.batches.append([unit.id for unit in units])
        self.waiting = (units, done)

    async def settle(self, **verdicts: Verdict) -> list[str]:
        """Answer the batch in flight; its ids."""
        for _ in range(10):
            if self.waiting is not None:
                break
            await asyncio.sleep(0)
        assert self.waiting is not None, "no batch came"
        (units, done), self.waiting = self.waiting, None
        done([verdicts.get(unit.id, Written(unit.id, ())) for unit in units])
        return [unit.id for unit in units]


def unit(name: str) -> Unit:
    return Unit(name, 0)


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_what_comes_in_one_turn_shares_a_batch_and_the_rest_the_next() -> None:
    backend = Backend()
    first = [backend.committer.submit(unit(name)) for name in "ab"]
    await turns()
    second = [backend.committer.submit(unit(name)) for name in "cde"]
    await turns()
    assert backend.batches == [["a", "b"]]
    await backend.settle()
    await backend.settle()
    assert backend.batches == [["a", "b"], ["c", "d", "e"]]
    assert [f.result().unit_id for f in first + second] == list("abcde")


async def test_batches_are_bounded() -> None:
    backend = Backend(batch_limit=2)
    futures = [backend.committer.submit(unit(name)) for name in "abcde"]
    while not all(future.done() for future in futures):
        await backend.settle()
        await turns()
    assert backend.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_full_queue_makes_writers_wait_in_line_but_not_submitters() -> None:
    backend = Backend(queue_limit=2, batch_limit=2)
    done: list[str] = []

    async def write(name: str) -> None:
        await backend.committer.write(unit(name))
        done.append(name)

    tasks = [asyncio.create_task(write(name)) for name in ("w1", "w2", "w3", "w4", "w5")]
    await turns()
    submitted = backend.committer.submit(unit("s1"))
    tasks[3].cancel()
    while not all(task.done() for task in tasks):
        await backend.settle()
        await turns()
    # w3 and w4 went from the line into the queue when the first batch left it; w4 was withdrawn, and s1 did not wait.
    assert backend.batches == [["w1", "w2"], ["w3", "s1"], ["w5"]]
    assert done == ["w1", "w2", "w3", "w5"]
    assert submitted.done()


async def test_cancelling_what_was_sent_breaks_nothing() -> None:
    backend = Backend()
    futures = [backend.committer.submit(unit(name)) for name in "abc"]
    await turns()
    futures[1].cancel()
    told: list[str] = []
    backend.listeners.add_commit_hook(lambda committed: told.extend(u.id for u, _ in committed))
    await backend.settle(c=StorageError("c"))
    await turns()
    assert futures[0].result().unit_id == "a"
    assert futures[1].cancelled()
    assert isinstance(futures[2].exception(), StorageError)
    assert told == ["a", "b"]


async def test_repeated_units_are_answered_and_not_announced() -> None:
    backend = Backend()
    told: list[str] = []
    backend.listeners.add_commit_hook(lambda committed: told.extend(u.id for u, _ in committed))
    future = backend.committer.submit(unit("a"))
    await backend.settle(a=Repeated(Written("a", ())))
    assert (await future).unit_id == "a"
    assert told == []


async def test_a_backend_that_raises_fails_its_batch_and_the_next_goes_on() -> None:
    class Broken(Backend):
        def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
            if len(self.batches) == 0:
                self.batches.append([])
                raise LookupError("broken")
            super().execute(units, done)

    backend = Broken()
    first = backend.committer.submit(unit("a"))
    with pytest.raises(LookupError):
        await first
    second = backend.committer.submit(unit("b"))
    await backend.settle()
    assert (await second).unit_id == "b"


async def test_hooks_may_submit() -> None:
    backend = Backend()
    more: list[asyncio.Future[Written]] = []

    def hook(committed: Sequence[tuple[Unit, Written]]) -> None:
        more.extend(backend.committer.submit(unit(f"{u.id}{u.id}")) for u, _ in committed if len(u.id) < 4)

    backend.listeners.add_commit_hook(hook)
    backend.committer.submit(unit("a"))
    for _ in range(3):
        await backend.settle()
    await turns()
    assert backend.batches == [["a"], ["aa"], ["aaaa"]]
    assert all(future.done() for future in more)


async def test_alone_waits_its_turn_and_keeps_others_out() -> None:
    backend = Backend()
    before = backend.committer.submit(unit("a"))
    leave = asyncio.Event()
    steps: list[str] = []

    async def work() -> str:
        steps.append("in")
        await leave.wait()
        return "done"

    alone = asyncio.create_task(backend.committer.alone(work))
    await turns(1)
    behind = backend.committer.submit(unit("b"))
    await turns()
    assert steps == []
    await backend.settle()
    await turns()
    assert before.done()
    assert steps == ["in"]
    assert backend.batches == [["a"]]
    leave.set()
    assert await alone == "done"
    await backend.settle()
    assert (await behind).unit_id == "b"


@pytest.mark.parametrize("after", range(6))
async def test_alone_cancelled_at_any_time_leaves_the_store_free(after: int) -> None:
    backend = Backend()

    async def work() -> None:
        await asyncio.Event().wait()

    alone = asyncio.create_task(backend.committer.alone(work))
    await turns(after)
    alone.cancel()
    behind = backend.committer.submit(unit("b"))
    await backend.settle()
    assert (await behind).unit_id == "b"
    assert (await asyncio.gather(alone, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_tasks_that_outlive_exclusive_work_may_write() -> None:
    backend = Backend()
    late: list[asyncio.Task[Written]] = []
    go = asyncio.Event()

    async def writes_later() -> Written:
        with pytest.raises(EngineStateError):
            await backend.committer.write(unit("early"))
        await go.wait()
        return await backend.committer.write(unit("late"))

    async def work() -> None:
        late.append(asyncio.create_task(writes_later()))
        await turns()

    await backend.committer.alone(work)
    go.set()
    await backend.settle()
    assert (await late[0]).unit_id == "late"


async def test_what_waits_is_refused_on_demand_and_what_is_sent_goes_on() -> None:
    backend = Backend(queue_limit=1)
    committer, told, refusal = backend.committer, list[object](), StorageError("void")

    async def nothing() -> None:
        raise AssertionError("its turn never came")

    sent = committer.submit(unit("sent"))
    await turns()
    queued, withdrawn = committer.submit(unit("queued")), committer.submit(unit("withdrawn"))
    committer.post(unit("posted"), told.append)
    withdrawn.cancel()
    alone = asyncio.create_task(committer.alone(nothing))
    in_line = asyncio.create_task(committer.write(unit("in line")))
    settled = asyncio.create_task(committer.settled("queued"))
    await turns()
    committer.refuse_waiting(refusal)
    assert not told, "only when the call has returned"
    refused = await asyncio.gather(queued, alone, in_line, return_exceptions=True)
    assert refused == [refusal] * 3
    assert told == [refusal]
    await settled
    await backend.settle()
    assert (await sent).unit_id == "sent"
    last = committer.submit(unit("last"))
    await backend.settle()
    assert (await last).unit_id == "last"
    await committer.alone(turns)
    await committer.close()
    assert backend.batches == [["sent"], ["last"]]


async def test_alone_cancelled_when_it_was_just_refused_leaves_the_store_to_who_has_it() -> None:
    backend = Backend()
    sent = backend.committer.submit(unit("sent"))
    await turns()
    alone = asyncio.create_task(backend.committer.alone(turns))
    await turns()
    backend.committer.refuse_waiting(StorageError("void"))
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    behind = backend.committer.submit(unit("behind"))
    await turns()
    assert backend.batches == [["sent"]], "one batch at a time"
    await backend.settle()
    await backend.settle()
    assert [(await one).unit_id for one in (sent, behind)] == ["sent", "behind"]


async def test_close_drains_then_refuses() -> None:
    backend = Backend(queue_limit=1, batch_limit=1)
    futures = [backend.committer.submit(unit(name)) for name in "ab"]
    in_line = asyncio.create_task(backend.committer.write(unit("c")))
    await turns(1)
    closing = asyncio.create_task(backend.committer.close())
    await turns()
    for refused in (backend.committer.submit(unit("d")), backend.committer.write(unit("e"))):
        with pytest.raises(EngineStateError):
            await refused
    assert not closing.done()
    for _ in range(3):
        await backend.settle()
        await turns()
    await closing
    assert [f.result().unit_id for f in futures] == ["a", "b"]
    assert (await in_line).unit_id == "c"


async def test_settled_waits_for_one_unit() -> None:
    backend = Backend(batch_limit=1)
    first, second = (backend.committer.submit(unit(name)) for name in "ab")
    await turns()
    second.cancel()
    withdrawn = asyncio.create_task(backend.committer.settled("b"))
    sent = asyncio.create_task(backend.committer.settled("a"))
    await turns()
    assert withdrawn.done()
    first.cancel()
    await turns()
    assert not sent.done()
    await backend.settle()
    await sent
