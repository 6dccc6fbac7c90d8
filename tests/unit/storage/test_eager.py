"""A task whose coroutine has run already up to where it first waits."""

from __future__ import annotations

import asyncio

import pytest

from event_workflow_engine.storage.postgres.eager import task_begun


async def test_it_runs_at_once_to_where_it_first_waits_and_on_in_a_task() -> None:
    gate = asyncio.get_running_loop().create_future()
    seen: list[object] = []

    async def work() -> None:
        seen.append("begun")
        try:
            seen.append(await gate)
        finally:
            seen.append(asyncio.current_task())

    task = task_begun(work(), name="work")
    assert seen == ["begun"]
    gate.set_result("answer")
    await task
    assert seen == ["begun", "answer", task]


async def test_what_it_waits_for_may_be_there_before_its_task_first_runs() -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()

    async def work() -> None:
        await first
        await second

    first.set_result(None)
    task = task_begun(work(), name="work")
    second.set_result(None)
    async with asyncio.timeout(5):
        await task


async def test_a_turn_of_the_loop_is_waited_for_too() -> None:
    seen: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        seen.append("on")

    task = task_begun(work(), name="work")
    assert seen == []
    await task
    assert seen == ["on"]


async def test_it_need_not_wait_at_all() -> None:
    async def work() -> None:
        return

    await task_begun(work(), name="work")


@pytest.mark.parametrize("turns", [0, 1, 2], ids=["before the task has run", "when it waits", "a turn later"])
async def test_it_is_cancelled_where_it_waits(turns: int) -> None:
    gate = asyncio.get_running_loop().create_future()
    ended: list[bool] = []

    async def work() -> None:
        try:
            await gate
        except asyncio.CancelledError:
            ended.append(True)
            raise

    task = task_begun(work(), name="work")
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_what_it_raises_later_is_the_tasks() -> None:
    gate = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await gate

    task = task_begun(work(), name="work")
    gate.set_exception(RuntimeError("lost"))
    with pytest.raises(RuntimeError, match="lost"):
        await task
