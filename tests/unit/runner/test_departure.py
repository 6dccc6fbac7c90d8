"""A cancel cuts off what runs of the life that is left, and nothing of the next."""

from __future__ import annotations

import asyncio

import pytest

from event_workflow_engine.runner.departure import Departure


async def test_a_cancel_while_it_is_left_cuts_off_what_runs_once() -> None:
    cuts: list[str] = []
    departure = Departure(lambda: cuts.append("cut"))
    closing = asyncio.Event()

    async def close() -> None:
        closing.set()
        await departure.haste

    leaving = asyncio.create_task(departure.leave(close))
    await closing.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert cuts == ["cut"]


async def test_a_cancel_that_comes_when_it_is_left_cuts_off_nothing_of_the_next_life() -> None:
    cuts: list[str] = []
    departure = Departure(lambda: cuts.append("cut"))

    async def close() -> None:
        leaving.cancel()  # met when this has ended

    leaving = asyncio.create_task(departure.leave(close))
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert cuts == []
    assert not departure.haste.done()
