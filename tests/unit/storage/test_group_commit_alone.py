"""Who wants the store alone, and what is refused meanwhile."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from tests.unit.storage.committing import Backend, turns, unit

from event_workflow_engine.errors import EngineStateError


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


async def test_an_exclusive_call_may_be_closed_in_another_context() -> None:
    """As the garbage collector does: nothing is raised, and what was around the call is as it was."""
    committer = Backend().committer

    async def call() -> None:
        with committer.inside():
            await asyncio.sleep(0)

    with committer.inside():
        around = contextvars.copy_context()
        called = call()
        around.run(called.send, None)
    committer.check()
    with committer.inside():
        around = contextvars.copy_context()
        other = call()
        around.run(other.send, None)
        contextvars.Context().run(other.close)
        with pytest.raises(EngineStateError, match="inside of a transaction"):
            around.run(committer.check)
    contextvars.Context().run(called.close)
    around.run(committer.check)


async def test_a_write_is_refused_however_many_stores_transactions_are_between() -> None:
    outer, inner = Backend().committer, Backend().committer

    async def write_to_both() -> None:
        for committer in (outer, inner):
            with pytest.raises(EngineStateError, match="inside of a transaction"):
                await committer.write(unit("a"))

    await outer.alone(lambda: inner.alone(write_to_both))
    outer.check()
    inner.check()
