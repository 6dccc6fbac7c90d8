"""Time, as the engine sees it: one clock for what is stored and for what is waited for."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EPOCH", "Clock", "Duration", "SystemClock", "from_micros", "micros", "seconds", "to_micros", "told"]

Duration = float | timedelta
"""A length of time: a bare number is seconds."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LONGEST_SLEEP_S: Final = 1.0


class Clock(Protocol):
    """Where the engine gets its time from. The testing kit has one that can be advanced by hand."""

    def now(self) -> datetime:
        """The time now, aware, in UTC."""
        ...

    async def sleep_until(self, when: datetime, /) -> None:
        """Wait until the clock shows `when`; returns at once when that has passed."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time now, aware, in UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, when: datetime, /) -> None:
        """Wait until the wall clock shows `when`. A clock that is set meanwhile is followed within a second."""
        # In slices: the loop's timers know nothing of a wall clock that is set (NTP, suspend), on or back.
        while (left := (when - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(min(left, _LONGEST_SLEEP_S))


def micros(clock: Clock) -> Callable[[], int]:
    """What tells the time of `clock` as whole microseconds since 1970 in UTC, as it is stored."""
    if type(clock) is SystemClock:
        return _system_micros  # without a datetime in between: it is asked several times a step
    return lambda: to_micros(clock.now())


def _system_micros() -> int:
    return time.time_ns() // 1000


def seconds(duration: Duration) -> float:
    """`duration` in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def to_micros(when: datetime) -> int:
    """`when` as whole microseconds since 1970 in UTC, as it is stored."""
    return (when - EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC time of stored microseconds."""
    return EPOCH + timedelta(microseconds=micros)


def told(when: datetime, *, decimals: int = 0) -> str:
    """A time for people: in UTC, which its ``Z`` says.

    Args:
        when: An aware time.
        decimals: So many of its second, 6 at most; 0 at their end are left out.

    Example:
        >>> print(told(from_micros(1_500_000)), told(from_micros(1_500_000), decimals=6))
        1970-01-01 00:00:01Z 1970-01-01 00:00:01.5Z
    """
    when = when.astimezone(UTC)
    part = f"{when.microsecond:06}"[:decimals].rstrip("0")
    return f"{when:%Y-%m-%d %H:%M:%S}{'.' if part else ''}{part}Z"
