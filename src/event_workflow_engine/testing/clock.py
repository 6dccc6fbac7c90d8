"""`VirtualClock`: time that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.clock import Duration

__all__ = ["VirtualClock"]

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TURNS: Final = 50


class VirtualClock:
    """A clock for tests: three days pass in milliseconds, and everything that was due on the way happens in order.

    Args:
        start: What it shows first; aware.
        settle: Awaited after each time that it moves, so that what was woken is done before time goes on. By default
            the loop is turned a number of times, which is enough for what needs no thread.

    Attributes:
        settle: As given.
        patience: Who waits for the end of a saga that waits for this clock gets a `StandstillError` when nothing has
            moved it for about so long, in seconds of real time, and ten times that while other tasks of the test are
            there. ``None``: never. Of the fixture ``engine`` and of `given`.
        advances: How often `advance` was called.

    Example:
        >>> async def main() -> None:
        ...     clock = VirtualClock()
        ...     sleeper = asyncio.create_task(clock.sleep_until(clock.now() + timedelta(days=1)))
        ...     await clock.advance(hours=23)
        ...     print(sleeper.done())
        ...     await clock.advance(hours=1)
        ...     print(sleeper.done())
        >>> asyncio.run(main())
        False
        True
    """

    def __init__(self, start: datetime = _START, *, settle: Callable[[], Awaitable[None]] | None = None) -> None:
        if start.tzinfo is None:
            raise ValueError(f"VirtualClock({start!r}): an aware datetime")
        self._now = start.astimezone(UTC)
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._order = count()
        self.settle: Callable[[], Awaitable[None]] = settle if settle is not None else _turn
        self.patience: float | None = 2.0
        self.advances = 0
        self._advancing = 0

    def now(self) -> datetime:
        """What it shows."""
        return self._now

    @property
    def is_advancing(self) -> bool:
        """Whether somebody moves it right now."""
        return self._advancing > 0

    async def sleep_until(self, when: datetime, /) -> None:
        """Wait until the clock is moved to `when` or past it."""
        if when <= self._now:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (when, next(self._order), woken))
        await woken

    async def advance(self, by: Duration | None = None, /, **parts: Any) -> None:
        """Move the clock, waking each sleeper at its time, in order; what a woken one sets up on the way is included.

        Args:
            by: How far; seconds or timedelta.
            parts: Or as `timedelta`'s parts: ``days=3``.

        Raises:
            ValueError: It is no length of time, or below zero: this clock goes on only.
        """
        length = _length(timedelta(**parts) if by is None else by)
        until = self._now + length
        self.advances += 1
        self._advancing += 1
        try:
            await self._advance(until)
        finally:
            self._advancing -= 1

    async def _advance(self, until: datetime) -> None:
        await self.settle()
        while True:
            while self._sleepers and self._sleepers[0][2].done():
                heapq.heappop(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > until:
                break
            when, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, when)
            woken.set_result(None)
            await self.settle()
        self._now = until
        await self.settle()


def _length(by: Any) -> timedelta:
    by_seconds = isinstance(by, (int, float)) and not isinstance(by, bool)
    try:
        length: Any = timedelta(seconds=by) if by_seconds else by
    except (ValueError, OverflowError):  # not a number, or more than a timedelta holds
        length = None
    if not isinstance(length, timedelta) or length < timedelta():
        raise ValueError(f"advance({by!r}): seconds or a timedelta, from zero, or its parts as in advance(days=3)")
    return length


async def _turn() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
