"""An attempt tells how its code ended: once, in the turn in which it ended, and as no part of that code."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.clock import SystemClock, to_micros
from event_workflow_engine.runner.execution import Attempt
from event_workflow_engine.timers import Alarms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

INSIDE: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="outside")


class Owner:
    """Keeps what it is told, and where from."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, BaseException | None]] = []
        self.seen: list[str] = []
        self.stuck = 0

    def attempt_ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        del attempt
        self.told.append((value, error))
        self.seen.append(INSIDE.get())

    def attempt_stuck(self, attempt: Attempt) -> None:
        del attempt
        self.stuck += 1


class Bench:
    """Starts attempts."""

    def __init__(self, alarms: Alarms, pool: ThreadPoolExecutor) -> None:
        self.owner = Owner()
        self._pool = pool
        self._kit: Any = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            alarms=alarms,
            context=contextvars.copy_context(),
            now=lambda: to_micros(SystemClock().now()),
        )

    async def rung(self) -> None:
        """Return when all alarms have rung that are due by now."""
        rung = asyncio.Event()
        self._kit.alarms.at(self._kit.now(), rung.set)
        await rung.wait()

    def start(
        self, fn: Callable[..., Any], *, timeout: float | None = None, is_async: bool = True, settle_timeout: float = 10
    ) -> Attempt:
        attempt = Attempt("act", self._kit, self.owner, settle_timeout=settle_timeout)
        context = contextvars.copy_context()
        context.run(INSIDE.set, "inside")
        attempt.start(fn, (), is_async=is_async, context=context, pool=self._pool, timeout=timeout)
        return attempt


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    alarms = Alarms(SystemClock())
    alarms.start()
    with ThreadPoolExecutor(1) as pool:
        yield Bench(alarms, pool)
    await alarms.stop()


async def settled(attempt: Attempt) -> None:
    while attempt.future is not None:
        await asyncio.wait((attempt.future,))


@pytest.mark.parametrize("is_async", [True, False])
async def test_the_end_is_told_once_and_outside_of_the_actions_context(bench: Bench, is_async: bool) -> None:
    async def act() -> str:
        return INSIDE.get()

    def act_in_thread() -> str:
        return INSIDE.get()

    await settled(bench.start(act if is_async else act_in_thread, is_async=is_async))
    assert bench.owner.told == [("inside", None)]
    assert bench.owner.seen == ["outside"]


async def test_a_plain_function_around_an_async_one_runs_to_its_end_in_the_actions_context(bench: Bench) -> None:
    async def act() -> str:
        await asyncio.sleep(0)
        return INSIDE.get()

    def around() -> Any:
        return act()

    await settled(bench.start(around, is_async=False))
    assert bench.owner.told == [("inside", None)]
    assert bench.owner.seen == ["outside"]


@pytest.mark.parametrize("how", ["cancel", "abandon"])
async def test_what_a_plain_function_returns_does_not_begin_when_it_was_asked_to_end(bench: Bench, how: str) -> None:
    in_thread, go_on, began = threading.Event(), threading.Event(), list[int]()

    async def act() -> None:
        began.append(1)

    def around() -> Any:
        in_thread.set()
        go_on.wait()
        return act()

    attempt = bench.start(around, is_async=False)
    await asyncio.to_thread(in_thread.wait)
    getattr(attempt, how)()
    go_on.set()
    await settled(attempt)
    assert began == []
    told = [type(error) for _, error in bench.owner.told]
    assert told == ([asyncio.CancelledError] if how == "cancel" else []), "an abandoned one tells nobody"


async def test_an_action_that_is_cancelled_before_it_begins_is_told_and_never_runs(bench: Bench) -> None:
    ran = []

    async def act() -> None:
        ran.append(1)

    attempt = bench.start(act)
    attempt.cancel()
    await settled(attempt)
    ((value, error),) = bench.owner.told
    assert (ran, value, type(error)) == ([], None, asyncio.CancelledError)


@pytest.mark.parametrize("how", ["cancel", "restart_timeout"])
async def test_what_has_ended_cannot_be_asked_to_end(bench: Bench, how: str) -> None:
    """It may be asked before its owner has recorded the end."""

    async def act() -> str:
        return "done"

    attempt = bench.start(act, timeout=10, settle_timeout=0)
    await settled(attempt)
    attempt._timeout = 0
    getattr(attempt, how)()
    for _ in range(3):
        await bench.rung()
    assert bench.owner.told == [("done", None)]
    assert bench.owner.stuck == 0


async def test_a_call_that_raises_before_there_is_a_coroutine_is_the_actions_error(bench: Bench) -> None:
    def act() -> Any:
        raise TypeError("it takes an argument")

    await settled(bench.start(act))
    ((_, error),) = bench.owner.told
    assert isinstance(error, TypeError)


async def test_what_follows_an_error_does_not_have_it_as_its_context(bench: Bench) -> None:
    class Raising(Owner):
        def attempt_ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
            super().attempt_ended(attempt, value, error)
            try:
                raise LookupError
            except LookupError as other:
                self.told.append((None, other))

    async def act() -> None:
        raise ValueError

    bench.owner = Raising()
    await settled(bench.start(act))
    (_, error), (_, other) = bench.owner.told
    assert isinstance(error, ValueError)
    assert other is not None
    assert other.__context__ is None


async def test_an_action_that_ends_after_its_timeout_is_told_as_timed_out(bench: Bench) -> None:
    async def act() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "at last"
        return "never"

    await settled(bench.start(act, timeout=0.001))
    ((value, error),) = bench.owner.told
    assert (value, type(error)) == (None, TimeoutError)


async def test_an_ended_attempt_leaves_no_cycle_to_the_garbage_collector(bench: Bench) -> None:
    async def cut_off() -> None:
        await asyncio.Event().wait()

    async def fails() -> None:
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        for act in (cut_off, fails):
            attempt = bench.start(act)
            assert attempt.future is not None
            task = weakref.ref(attempt.future)
            await asyncio.sleep(0)
            attempt.cancel()
            await settled(attempt)
            bench.owner.told.clear()
            del attempt
            await asyncio.sleep(0)
            assert task() is None, act.__name__
    finally:
        gc.enable()


def test_an_interrupt_in_an_action_ends_the_loop_and_is_told_when_it_runs_again() -> None:
    told: list[tuple[Any, BaseException | None]] = []

    async def act() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        alarms = Alarms(SystemClock())
        alarms.start()
        with ThreadPoolExecutor(1) as pool:
            bench = Bench(alarms, pool)
            try:
                await settled(bench.start(act))
                await asyncio.Event().wait()
            finally:
                await alarms.stop()
                told.extend(bench.owner.told)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    ((_, error),) = told
    assert isinstance(error, KeyboardInterrupt)
