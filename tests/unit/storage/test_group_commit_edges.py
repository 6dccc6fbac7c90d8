"""The committer where little is left to do, or much at once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.committing import Backend, turns, unit

from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.storage.group_commit import Listeners, Repeated
from event_workflow_engine.storage.port import Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import Unit


async def test_what_is_withdrawn_before_it_is_sent_leaves_the_store_at_rest() -> None:
    backend = Backend()
    backend.committer.submit(unit("a")).cancel()
    await turns()
    later = backend.committer.submit(unit("b"))
    await backend.settle()
    assert later.done()
    assert backend.batches == [["b"]]


async def test_closing_ends_where_all_that_waits_is_withdrawn() -> None:
    backend = Backend()
    backend.committer.submit(unit("a")).cancel()
    async with asyncio.timeout(5):
        await backend.committer.close()
    assert backend.batches == []


async def test_closing_waits_for_one_who_has_the_store_alone() -> None:
    backend, ends = Backend(), asyncio.Event()

    async def work() -> None:
        await ends.wait()

    alone = asyncio.create_task(backend.committer.alone(work))
    await turns()
    closing = asyncio.create_task(backend.committer.close())
    await turns()
    assert not closing.done()
    ends.set()
    await asyncio.gather(alone, closing)


async def test_a_backend_that_answers_at_once_may_have_thousands_of_batches_before_it() -> None:
    class Quick(Backend):
        def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
            done([Written(one.id, ()) for one in units])

    backend = Quick(batch_limit=1)
    futures = [backend.committer.submit(unit(str(n))) for n in range(5000)]
    await backend.committer.close()
    assert [future.result().unit_id for future in futures] == [str(n) for n in range(5000)]


async def test_hooks_see_what_is_committed_while_many_wait() -> None:
    backend = Backend(batch_limit=2)
    seen: list[str] = []
    backend.listeners.add_commit_hook(lambda committed: seen.extend(one.id for one, _ in committed))
    futures = [backend.committer.submit(unit(name)) for name in "abcdefgh"]
    while not all(future.done() for future in futures):
        await backend.settle()
    assert seen == list("abcdefgh")


async def test_who_posts_to_a_closed_store_is_told() -> None:
    backend = Backend()
    await backend.committer.close()
    told: list[Written | Exception] = []
    backend.committer.post(unit("a"), told.append)
    assert told == [], "never before it returns"
    await turns()
    assert isinstance(told[0], EngineStateError)
    assert backend.batches == []


async def test_who_waits_for_a_unit_passes_over_those_who_want_the_store_alone() -> None:
    backend, ends = Backend(), asyncio.Event()

    async def work() -> None:
        await ends.wait()

    backend.committer.submit(unit("a"))
    await turns()
    alone = asyncio.create_task(backend.committer.alone(work, unit_id="x1"))
    await turns()
    async with asyncio.timeout(5):
        await backend.committer.settled("b")
    await backend.settle()
    await turns()
    for number in "1":  # an id as it comes from elsewhere: equal, but not the same object
        waits = asyncio.create_task(backend.committer.settled(f"x{number}"))
    await turns()
    assert not waits.done()
    ends.set()
    await asyncio.gather(alone, waits)


async def test_a_saga_on_its_own_does_not_wait_for_the_end_of_the_turn_and_many_share_a_batch() -> None:
    backend = Backend(answers_later=True)
    told: list[Written | Exception] = []
    backend.committer.post(unit("a"), told.append)
    assert backend.batches == [], "others may come"
    await backend.settle()
    backend.committer.post(unit("b"), told.append)
    assert backend.batches == [["a"], ["b"]], "nobody came last time"
    assert len(told) == 1, "never before it returns"
    for name in "cd":
        backend.committer.post(unit(name), told.append)
    await backend.settle()
    await backend.settle()
    backend.committer.post(unit("e"), told.append)
    backend.committer.post(unit("f"), told.append)
    await backend.settle()
    assert backend.batches[2:] == [["c", "d"], ["e", "f"]]
    assert len(told) == 6


async def test_a_backend_that_raises_at_once_is_told_of_when_the_post_has_returned() -> None:
    class Broken(Backend):
        def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
            if len(self.batches) == 1:
                raise OSError("away")
            super().execute(units, done)

    backend = Broken(answers_later=True)
    told: list[Written | Exception] = []
    backend.committer.post(unit("a"), told.append)
    await backend.settle()
    backend.committer.post(unit("b"), told.append)
    assert len(told) == 1
    await turns()
    assert isinstance(told[1], OSError)


async def test_a_backend_that_answers_at_once_tells_no_post_before_it_has_returned() -> None:
    class Quick(Backend):
        def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
            done([Written(one.id, ()) for one in units])

    backend = Quick()
    told: list[Written | Exception] = []
    for number, name in enumerate("abc"):
        backend.committer.post(unit(name), told.append)
        assert len(told) == number
        await turns()
    assert len(told) == 3


@pytest.mark.parametrize("of", [Written("a", ()), Repeated(Written("a", ())), EngineStateError("refused")])
async def test_hooks_hear_of_a_unit_that_is_posted_alone_before_its_poster_and_only_if_it_was_stored(
    of: Verdict,
) -> None:
    backend = Backend()
    heard: list[object] = []
    backend.listeners.add_commit_hook(heard.extend)
    backend.listeners.add_bell(lambda: heard.append("bell"))
    alone = unit("a")
    backend.committer.post(alone, heard.append)
    await backend.settle(a=of)
    if isinstance(of, Written):
        assert heard == [(alone, of), "bell", of]
    else:
        assert heard == [of.written if isinstance(of, Repeated) else of]


@pytest.mark.parametrize("removed", range(4))
async def test_of_many_listeners_the_one_is_removed_that_wants_to_be(removed: int) -> None:
    listeners = Listeners()
    heard: list[int] = []
    bells = [partial(heard.append, n) for n in range(4)]
    removers = [listeners.add_bell(bell) for bell in bells]
    removers[removed]()
    listeners.ring()
    assert heard == [n for n in range(4) if n != removed]


async def test_those_who_have_had_the_store_alone_leave_nothing_behind() -> None:
    backend = Backend()

    async def work() -> None:
        return

    for n in range(3):
        first = backend.committer.submit(unit(f"a{n}"))
        await turns()
        alone = asyncio.create_task(backend.committer.alone(work))
        await turns()
        behind = backend.committer.submit(unit(f"b{n}"))
        await backend.settle()
        async with asyncio.timeout(5):
            await alone
        await backend.settle()
        assert (first.result().unit_id, behind.result().unit_id) == (f"a{n}", f"b{n}")
    assert backend.batches == [[f"{name}{n}"] for n in range(3) for name in "ab"]
