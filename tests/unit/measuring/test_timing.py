"""The loops of the measurements: what they count, and when they end."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from event_workflow_engine._measuring.timing import Taken, in_turn, side_by_side


def test_a_percentile_is_what_so_many_of_a_hundred_took_at_most() -> None:
    taken = Taken.of((n / 1000 for n in range(100, 0, -1)), elapsed=5.05)
    assert [taken.ms(percentile) for percentile in (50, 99, 100)] == [51, 100, 100]
    assert taken.per_s == pytest.approx(100 / 5.05)
    assert Taken.of([0.25], 0.25).ms(99) == 250


async def test_calls_in_turn_are_numbered_on_and_those_that_warm_up_do_not_count() -> None:
    seen: list[int] = []

    async def work(n: int) -> None:
        seen.append(n)

    taken = await in_turn(work, count=3, warm=2)
    assert seen == [0, 1, 2, 3, 4]
    assert len(taken.calls) == 3
    assert sum(taken.calls) <= taken.elapsed * 1.001


async def test_time_ends_them_but_not_before_one_call() -> None:
    async def work(*_: int) -> None:
        pass

    assert len((await in_turn(work, seconds=0)).calls) == 1
    assert len((await side_by_side(work, callers=4, seconds=0)).calls) == 4


async def test_calls_that_never_wait_let_others_have_a_turn_and_do_not_count_it() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            until = perf_counter() + 0.05
            while perf_counter() < until:
                pass
            await asyncio.sleep(0)

    async def work(_: int) -> None:
        until = perf_counter() + 0.001
        while perf_counter() < until:
            pass

    task = asyncio.create_task(other())
    begun = perf_counter()
    taken = await in_turn(work, count=150)
    elapsed = perf_counter() - begun
    task.cancel()
    assert turns >= 2
    assert taken.elapsed <= elapsed - 0.05 * turns + 0.01


async def test_callers_are_at_it_at_once_each_with_numbers_of_its_own() -> None:
    seen: list[tuple[int, int]] = []
    all_there = asyncio.Barrier(3)

    async def work(caller: int, n: int) -> None:
        await all_there.wait()
        seen.append((caller, n))

    taken = await side_by_side(work, callers=3, each=2)
    assert sorted(seen) == [(caller, n) for caller in range(3) for n in range(2)]
    assert len(taken.calls) == 6


async def test_what_a_caller_raises_ends_all_and_is_raised_as_it_is() -> None:
    async def work(caller: int, _: int) -> None:
        if caller:
            await asyncio.Event().wait()
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        await side_by_side(work, callers=3)
