"""The committer over a backend of the test's own, which settles when the test says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.committing import Backend, turns, unit

from event_workflow_engine.errors import EngineStateError, StorageError
from event_workflow_engine.storage import group_commit
from event_workflow_engine.storage.group_commit import Repeated, Verdict
from event_workflow_engine.storage.port import Append, NewRecord, Unit, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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


@pytest.mark.parametrize("alone", [False, True])
async def test_batches_are_bounded_by_their_payloads_and_keep_their_order(
    monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(group_commit, "BATCH_BYTES", 10)
    backend = Backend()
    sizes = {"a": 4, "b": 6, "c": 1, "d": 11, "e": 20, "f": 0, "g": 10, "h": 0}

    def sized(name: str) -> Unit:
        return Unit(name, 0, (Append("s", (NewRecord(name, "t", b"x" * sizes[name]),)),))

    futures = [backend.committer.submit(sized(name)) for name in sizes]
    last: list[asyncio.Task[None]] = []
    if alone:
        last.append(asyncio.create_task(nothing_alone(backend)))
    while not all(future.done() for future in futures):
        await backend.settle()
        await turns()
    await asyncio.gather(*last)
    assert backend.batches == [["a", "b"], ["c"], ["d"], ["e"], ["f", "g", "h"]]


async def nothing_alone(backend: Backend) -> None:
    async def work() -> None:
        pass

    await backend.committer.alone(work)


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


async def test_hooks_and_bells_are_told_until_they_are_removed_which_may_be_twice() -> None:
    backend, told = Backend(), list[str]()
    assert not backend.listeners.has_bells
    remove_hook = backend.listeners.add_commit_hook(lambda committed: told.extend(u.id for u, _ in committed))
    remove_bell = backend.listeners.add_bell(lambda: told.append("bell"))
    assert backend.listeners.has_bells
    backend.committer.submit(unit("a"))
    await backend.settle()
    backend.listeners.ring()
    assert told == ["a", "bell", "bell"]
    for _ in range(2):
        remove_hook()
        remove_bell()
    assert not backend.listeners.has_bells
    backend.committer.submit(unit("b"))
    await backend.settle()
    assert told == ["a", "bell", "bell"]


async def test_a_bell_for_others_rings_for_what_hooks_are_not_told_of() -> None:
    backend, told = Backend(), list[str]()
    remove = backend.listeners.add_bell(lambda: told.append("other"), own=False)
    assert backend.listeners.has_bells
    backend.listeners.add_bell(lambda: told.append("any"))
    backend.committer.submit(unit("a"))
    await backend.settle()
    assert told == ["any"]
    backend.listeners.ring()
    assert told == ["any", "other", "any"]
    remove()
    backend.listeners.ring()
    assert told == ["any", "other", "any", "any"]


async def test_whoever_is_told_sees_what_was_told_before() -> None:
    backend, order = Backend(), list[str]()
    future = backend.committer.submit(unit("a"))
    backend.committer.post(unit("b"), lambda verdict: order.append(f"told {verdict.unit_id}"))  # type: ignore[union-attr]
    backend.committer.post(unit("c"), lambda verdict: order.append(repr(verdict)))
    backend.listeners.add_bell(lambda: order.append("bell"))
    backend.listeners.add_commit_hook(lambda batch: order.append(f"hook {[u.id for u, _ in batch]} {future.done()}"))
    future.add_done_callback(lambda _: order.append("callback"))
    await backend.settle(b=Repeated(Written("b", ())), c=StorageError("lost"))
    await turns()
    assert order == ["hook ['a'] True", "bell", "told b", "StorageError('lost')", "callback"]


async def test_a_batch_of_which_nothing_was_stored_is_not_announced() -> None:
    backend, told = Backend(), list[object]()
    backend.listeners.add_commit_hook(told.append)
    backend.listeners.add_bell(lambda: told.append("bell"))
    backend.committer.submit(unit("a")).add_done_callback(lambda future: future.exception())
    await backend.settle(a=StorageError("full"))
    assert told == []


async def test_a_listener_that_raises_is_reported_and_breaks_nothing() -> None:
    backend, told, reported = Backend(), list[str](), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))

    def broken(*_: object) -> None:
        raise LookupError("mine")

    backend.listeners.add_commit_hook(broken)
    backend.listeners.add_commit_hook(lambda _: told.append("hook"))
    backend.listeners.add_bell(broken)
    backend.committer.post(unit("a"), broken)
    backend.committer.post(unit("b"), lambda _: told.append("b"))
    await backend.settle()
    assert (told, reported) == (["hook", "b"], ["mine"] * 3)
    later = backend.committer.submit(unit("c"))
    await backend.settle()
    assert later.done()


@pytest.mark.parametrize(("waiting", "batches"), [
    (3, [["a"], ["w0", "w1", "w2", "again"]]),
    (4, [["a"], ["w0", "w1", "w2", "w3"], ["again"]]),
    (5, [["a"], ["w0", "w1", "w2", "w3", "w4"], ["again"]]),
])  # fmt: skip
async def test_who_is_told_joins_the_next_batch_unless_half_a_batch_waits_for_it(
    waiting: int, batches: list[list[str]]
) -> None:
    backend = Backend(batch_limit=8)
    backend.committer.post(unit("a"), lambda _: backend.committer.submit(unit("again")) and None)
    await turns()
    for n in range(waiting):
        backend.committer.submit(unit(f"w{n}"))
    await backend.settle()
    if waiting > 3:
        assert len(backend.batches) == 2, "it is on its way before anyone is told"
    for _ in batches[1:]:
        await backend.settle()
        await turns()
    assert backend.batches == batches


async def test_a_backend_that_answers_at_once_is_served_batch_by_batch() -> None:
    class Quick(Backend):
        def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
            self.batches.append([unit.id for unit in units])
            done([Written(unit.id, ()) for unit in units])

    backend = Quick(batch_limit=2)
    futures = [backend.committer.submit(unit(name)) for name in "abcde"]
    await backend.committer.close()
    assert [future.result().unit_id for future in futures] == list("abcde")
    assert backend.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_units_are_in_flight_from_when_they_are_sent_until_they_are_told_of() -> None:
    backend = Backend(batch_limit=1)
    told = [backend.committer.submit(unit(name)) for name in "ab"]
    assert backend.committer.in_flight() == []
    await turns()
    assert backend.committer.in_flight() == ["a"]
    await backend.settle()
    assert told[0].done()
    await backend.settle()
    assert backend.committer.in_flight() == []

    async def work() -> None:
        assert backend.committer.in_flight() == ["alone"]

    await backend.committer.alone(work, unit_id="alone")
    assert backend.committer.in_flight() == []


async def test_who_would_wait_for_himself_is_refused_and_others_are_not() -> None:
    backend, told = Backend(), list[object]()
    backend.committer.check()
    outside = asyncio.Event()

    async def other() -> Written:
        await outside.wait()
        backend.committer.check()
        return await backend.committer.write(unit("other"))

    task = asyncio.create_task(other())
    with backend.committer.inside():
        outside.set()
        for refused in (backend.committer.write(unit("a")), backend.committer.submit(unit("b"))):
            with pytest.raises(EngineStateError, match="inside of a transaction"):
                await refused
        with pytest.raises(EngineStateError):
            backend.committer.check()
        with pytest.raises(EngineStateError):
            await backend.committer.alone(turns)
        backend.committer.post(unit("c"), told.append)
        assert told == [], "never before the call returns"
        await turns()
        assert [type(one) for one in told] == [EngineStateError]
        await backend.settle()
        assert (await task).unit_id == "other"
    backend.committer.check()
    assert backend.batches == [["other"]]


async def test_settled_waits_for_the_unit_of_one_who_has_the_store_alone() -> None:
    backend, leave = Backend(), asyncio.Event()

    async def work() -> None:
        await leave.wait()

    alone = asyncio.create_task(backend.committer.alone(work, unit_id="mine"))
    await turns()
    mine, others = (asyncio.create_task(backend.committer.settled(name)) for name in ("mine", "other"))
    await turns()
    assert (mine.done(), others.done()) == (False, True)
    leave.set()
    await alone
    await turns()
    assert mine.done()


async def test_those_who_want_the_store_alone_have_it_in_turn_with_what_was_submitted() -> None:
    backend, order = Backend(batch_limit=2), list[str]()

    async def work(name: str) -> None:
        order.append(name)

    first = backend.committer.submit(unit("a"))
    turn = [asyncio.create_task(backend.committer.alone(lambda name=name: work(name))) for name in ("one", "two")]
    await turns(1)
    behind = [backend.committer.submit(unit(name)) for name in "bcd"]
    await turns()
    assert (backend.batches, order) == ([["a"]], [])
    await backend.settle()
    await asyncio.gather(*turn)
    assert order == ["one", "two"]
    await backend.settle()
    await backend.settle()
    await asyncio.gather(first, *behind)
    assert backend.batches == [["a"], ["b", "c"], ["d"]]


async def test_the_loop_that_is_stopped_while_telling_still_tells_the_others() -> None:
    backend, told = Backend(), list[str]()

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    backend.committer.post(unit("a"), stop)
    backend.committer.post(unit("b"), lambda _: told.append("b"))
    future = backend.committer.submit(unit("c"))
    with pytest.raises(KeyboardInterrupt):
        await backend.settle()
    assert future.done()
    await turns()
    assert told == ["b"]
    later = backend.committer.submit(unit("d"))
    await backend.settle()
    assert later.done()


async def test_settled_waits_for_what_is_sent_queued_or_in_line_under_that_id_and_for_nothing_else() -> None:
    backend = Backend(queue_limit=1, batch_limit=1)
    backend.committer.submit(unit("m1"))
    await turns()
    backend.committer.submit(unit("m2"))
    in_line = asyncio.create_task(backend.committer.write(unit("m3")))
    await turns()
    # Ids as they come from elsewhere: equal, but not the same objects.
    names = [f"{letter}{digit}" for letter, digit in ("a0", "m1", "m2", "m3", "z9")]
    waits = {name: asyncio.create_task(backend.committer.settled(name)) for name in names}
    for settled in (["a0", "z9"], ["a0", "m1", "z9"], ["a0", "m1", "m2", "z9"]):
        await turns()
        assert [name for name, wait in waits.items() if wait.done()] == settled
        await backend.settle()
    await turns()
    assert all(wait.done() for wait in waits.values())
    assert (await in_line).unit_id == "m3"


@pytest.mark.parametrize(("queued", "batches"), [
    ("b", [["a"], ["b", "x"], ["w"]]),
    ("bc", [["a"], ["b", "c"], ["x"], ["w"]]),
    ("bcde", [["a"], ["b", "c"], ["d", "e"], ["x"], ["w"]]),
])  # fmt: skip
async def test_a_queue_at_its_bound_or_over_it_makes_writers_wait_in_line(
    queued: str, batches: list[list[str]]
) -> None:
    backend = Backend(queue_limit=1, batch_limit=2)
    backend.committer.submit(unit("a"))
    await turns()
    for name in queued:
        backend.committer.submit(unit(name))
    in_line = asyncio.create_task(backend.committer.write(unit("w")))
    await turns()
    if len(queued) > 2:
        await backend.settle()
        await turns()
    backend.committer.submit(unit("x"))
    while not in_line.done():
        await backend.settle()
        await turns()
    assert backend.batches == batches
