"""The wall clock of one simulated process: it runs with simulated time, and may be set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["SimulatedClock"]

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class SimulatedClock:
    """A `Clock`. Whoever sleeps on it follows when it is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._set_by = timedelta()
        self._sleepers: list[asyncio.Future[None]] = []

    def now(self) -> datetime:
        """What it shows."""
        return _START + timedelta(seconds=self._loop.time()) + self._set_by

    def jump(self, seconds: float) -> None:
        """Set it on, or back."""
        self._set_by += timedelta(seconds=seconds)
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep_until(self, when: datetime, /) -> None:
        """Wait until it shows `when`."""
        while (left := (when - self.now()).total_seconds()) > 0:
            woken = self._loop.create_future()
            self._sleepers.append(woken)
            alarm = self._loop.call_later(left, _wake, woken)
            try:
                await woken
            finally:
                alarm.cancel()
                if woken in self._sleepers:
                    self._sleepers.remove(woken)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
