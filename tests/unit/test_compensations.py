"""CompensationManager on its own: everything is undone, in reverse, whatever happens on the way."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from event_workflow_engine.compensations import CompensationManager
from event_workflow_engine.errors import CompensationFailedError, DefinitionError
from event_workflow_engine.retries import RetryPolicy

ONCE = RetryPolicy(attempts=1)
AT_ONCE = RetryPolicy(attempts=3, delay=0, jitter=0)
TRACE: ContextVar[str] = ContextVar("trace", default="")


async def test_runs_in_reverse_one_by_one_and_reports_it() -> None:
    log: list[str] = []
    undo = CompensationManager()

    async def release(what: str) -> None:
        log.append(f"{what} begins")
        await asyncio.sleep(0)
        log.append(f"{what} ends")

    undo.schedule(release, "first")
    undo.schedule(log.append, "in a thread", name="thread")
    undo.schedule(release, "last", name="last")
    report = await undo.run()
    assert log == ["last begins", "last ends", "in a thread", "first begins", "first ends"]
    assert report.compensated == ("last", "thread", "release")
    assert (await undo.run()).compensated == ()


async def test_every_failure_is_named_and_every_other_compensation_runs() -> None:
    log: list[str] = []
    undo = CompensationManager(retry=ONCE)

    def fail(why: str) -> None:
        raise ValueError(why)

    undo.schedule(log.append, "first")
    undo.schedule(fail, "one")
    undo.schedule(fail, "two")
    undo.schedule(log.append, "last", name="last")
    with pytest.raises(CompensationFailedError, match=r"2 of 4 .*two.*one") as failure:
        await undo.run()
    assert log == ["last", "first"]
    assert {name: str(error) for name, error in failure.value.failed.items()} == {"fail": "two", "fail#2": "one"}
    assert failure.value.succeeded == ("last", "append")


async def test_retries_by_its_policy() -> None:
    calls = 0

    async def flaky() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionResetError

    undo = CompensationManager()
    undo.schedule(flaky, retry=AT_ONCE)
    assert (await undo.run()).compensated == ("flaky",)
    assert calls == 3


async def test_a_timed_out_thread_has_ended_before_it_is_tried_again() -> None:
    running, most, calls, lock, gate = 0, 0, 0, threading.Lock(), threading.Event()

    def slow() -> None:
        nonlocal running, most, calls
        with lock:
            running, calls = running + 1, calls + 1
            most = max(most, running)
            first = calls == 1
        if first:
            gate.wait(0.1)
        with lock:
            running -= 1

    undo = CompensationManager()
    undo.schedule(slow, retry=AT_ONCE, timeout=0.02)
    await undo.run()
    assert (calls, most) == (2, 1)


async def test_sync_functions_see_the_context() -> None:
    seen: list[str] = []
    TRACE.set("t-1")
    undo = CompensationManager()
    undo.schedule(lambda: seen.append(TRACE.get()))
    await undo.run()
    assert seen == ["t-1"]


async def test_a_block_that_ends_well_undoes_nothing() -> None:
    log: list[str] = []
    async with CompensationManager() as undo:
        undo.schedule(log.append, "undone")
    assert log == []


async def test_a_block_that_raises_is_undone_and_raises() -> None:
    log: list[str] = []
    with pytest.raises(OSError, match="disk full"):
        async with CompensationManager() as undo:
            undo.schedule(log.append, "undone")
            raise OSError("disk full")
    assert log == ["undone"]


async def test_a_failed_compensation_has_the_blocks_error_as_its_cause() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(CompensationFailedError) as failure:
        async with CompensationManager(retry=ONCE) as undo:
            undo.schedule(fail)
            raise OSError("disk full")
    assert isinstance(failure.value.__cause__, OSError)


async def test_a_cancelled_block_is_undone_whole_even_when_it_is_cancelled_again() -> None:
    log: list[str] = []
    undoing, go = asyncio.Event(), asyncio.Event()

    async def release() -> None:
        undoing.set()
        await go.wait()
        log.append("released")

    async def work() -> None:
        async with CompensationManager() as undo:
            undo.schedule(log.append, "first")
            undo.schedule(release)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await undoing.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["released", "first"]


async def test_a_compensation_that_raises_a_cancel_of_its_own_has_failed_and_the_others_run() -> None:
    log: list[str] = []
    ended = asyncio.get_running_loop().create_future()
    ended.cancel()

    async def wait() -> None:
        await ended

    async def work() -> None:
        async with CompensationManager(retry=ONCE) as undo:
            undo.schedule(log.append, "first")
            undo.schedule(wait)
            raise RuntimeError("no disk")

    with pytest.raises(CompensationFailedError, match="1 of 2") as failure:
        await work()
    assert log == ["first"]
    assert isinstance(failure.value.failed["wait"], asyncio.CancelledError)


async def test_a_run_that_is_cancelled_keeps_what_has_not_ended() -> None:
    log: list[str] = []
    undo = CompensationManager()
    begun = asyncio.Event()

    async def release() -> None:
        begun.set()
        await asyncio.Event().wait() if not log else log.append("released")

    async def note(what: str) -> None:
        log.append(what)

    undo.schedule(note, "first")
    undo.schedule(release)
    running = asyncio.create_task(undo.run())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    log.append("again")
    assert (await undo.run()).compensated == ("release", "note")
    assert log == ["again", "released", "first"]


async def test_what_a_compensation_schedules_runs_too() -> None:
    log: list[str] = []
    undo = CompensationManager()

    async def note(what: str) -> None:
        log.append(what)

    async def release() -> None:
        undo.schedule(note, "found on the way")

    undo.schedule(note, "first")
    undo.schedule(release)
    await undo.run()
    assert log == ["found on the way", "first"]


async def test_what_cannot_be_called_is_refused_at_once() -> None:
    async def release() -> None: ...

    called = release()
    undo = CompensationManager()
    with pytest.raises(DefinitionError, match="give the function itself, uncalled"):
        undo.schedule(called)  # type: ignore[arg-type]
    called.close()
    with pytest.raises(DefinitionError, match="a function is needed"):
        undo.schedule("release")  # type: ignore[arg-type]
    assert (await undo.run()).compensated == ()
