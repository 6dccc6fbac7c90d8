"""What is large, long, many or slow, for one process and for several."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from event_workflow_engine import RetryPolicy, Saga, SagaStep, StepContext, WorkflowEngine, event, saga, step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MEBIBYTE = 2**20
ONCE = RetryPolicy(attempts=1)


@event("limits-walked")
@dataclass(frozen=True)
class Walked:
    number: int


EVENTS = 4_000
SIZE = 2_000, 100
"""Steps of a long saga, and how many of them at once."""


async def append_many(engine: WorkflowEngine) -> None:
    for start in range(0, EVENTS, 500):
        await engine.store.append("walk-1", [Walked(n) for n in range(start, start + 500)])


def of_size(size: int) -> Saga[None, Any]:
    """A saga with a result of so many bytes of JSON."""

    async def make(ctx: StepContext[None]) -> str:
        return "x" * (size - 2)

    return Saga("limits-of-size", [SagaStep("make", make, retry=ONCE)])


async def walk(number: int) -> int:
    return number


@saga("limits-long")
async def long(size: tuple[int, int]) -> int:
    (steps, at_once), walked = size, 0
    for first in range(0, steps, at_once):
        done = (step(walk, n, name=f"walk-{n}") for n in range(first, min(steps, first + at_once)))
        walked += len(await asyncio.gather(*done))
    return walked


def in_memory(kind: type) -> int:
    gc.collect()
    return sum(type(one) is kind for one in gc.get_objects())


async def check_slow_subscriber(engine: WorkflowEngine, appended: Callable[[], Awaitable[None]]) -> None:
    """A subscriber stands still while the events come, then gets all of them, and few of them are in memory at a time."""
    waiting = 1024
    seen, held = list[int](), list[int]()
    go_on, done = asyncio.Event(), asyncio.Event()

    async def handle(event: Walked) -> None:
        await go_on.wait()
        seen.append(event.number)
        if event.number % 500 == 0:
            held.append(in_memory(Walked))
        if event.number == EVENTS - 1:
            done.set()

    async with engine:
        engine.bus.subscribe(Walked, handle, durable="slow", key=lambda event: "all")
        await appended()
        go_on.set()
        await done.wait()
        await engine.bus.drain()
    assert seen == list(range(EVENTS))
    assert max(held) <= waiting + 600, "those in line, and two pages of the log"
