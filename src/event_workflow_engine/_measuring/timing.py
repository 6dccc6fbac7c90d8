"""The two loops that everything is measured by: one call after another, and many callers at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["Taken", "in_turn", "side_by_side"]

_BREATHE_S: Final = 0.05


@dataclass(frozen=True)
class Taken:
    """How long calls took.

    Attributes:
        calls: Each, in seconds, the shortest first.
        elapsed: From the begin of the first to the end of the last.
    """

    calls: list[float]
    elapsed: float

    @classmethod
    def of(cls, calls: Iterable[float], elapsed: float) -> Taken:
        """Of calls in any order."""
        return cls(sorted(calls), elapsed)

    @property
    def per_s(self) -> float:
        """Calls a second."""
        return len(self.calls) / self.elapsed

    def ms(self, percentile: float) -> float:
        """What so many in a hundred took at most, in milliseconds."""
        return self.calls[min(int(len(self.calls) * percentile / 100), len(self.calls) - 1)] * 1000


async def in_turn(
    work: Callable[[int], Awaitable[object]], *, count: int | None = None, seconds: float = inf, warm: int = 0
) -> Taken:
    """Call `work` with 0, 1, 2, … each when the last has ended, until so many are counted or so long has gone by.

    Args:
        work: What is measured. Where it does not wait, others get a turn of the loop now and then, uncounted.
        count: How many calls count.
        seconds: After which none begins; one does in any case.
        warm: How many calls before them do not count.
    """
    for n in range(warm):
        await work(n)
    calls: list[float] = []
    paused = 0.0
    n, begun = warm, perf_counter()
    deadline, breath, now = begun + seconds, begun + _BREATHE_S, begun
    while not calls or (now < deadline and (count is None or len(calls) < count)):
        await work(n)
        n, before, now = n + 1, now, perf_counter()
        calls.append(now - before)
        if now > breath:
            await asyncio.sleep(0)
            last, now = now, perf_counter()
            paused, breath = paused + now - last, now + _BREATHE_S
    return Taken.of(calls, now - begun - paused)


async def side_by_side(
    work: Callable[[int, int], Awaitable[object]], *, callers: int, each: int | None = None, seconds: float = inf
) -> Taken:
    """So many callers at once, each of which calls ``work(caller, n)`` with 0, 1, 2, … one after another.

    Args:
        work: What is measured.
        callers: How many.
        each: How many calls each of them makes.
        seconds: After which none begins; one of each caller does in any case.

    Raises:
        Exception: The first that `work` raised; the other callers are cancelled.
    """
    calls: list[float] = []
    begun = perf_counter()
    deadline = begun + seconds

    async def caller(number: int) -> None:
        n, now = 0, perf_counter()
        while not n or (now < deadline and (each is None or n < each)):
            await work(number, n)
            n, before, now = n + 1, now, perf_counter()
            calls.append(now - before)

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(callers):
                tasks.create_task(caller(number))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return Taken.of(calls, perf_counter() - begun)
