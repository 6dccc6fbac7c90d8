"""The wall clock of one simulated process: it runs with simulated time, and may be set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from event_workflow_engine.testing.simulation.loop import SimulatedLoop

__all__ = ["SimulatedClock"]

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class SimulatedClock:
    """A `Clock`. Whoever sleeps on it follows when it is set."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._set_by = timedelta()
        self._at = -1.0
        self._shows = _START
        self._sleepers: list[asyncio.Future[None]] = []

    def now(self) -> datetime:
        """What it shows."""
        if self._at != self._loop.now:  # asked far more often than time goes on
            self._at = self._loop.now
            self._shows = _START + timedelta(seconds=self._at) + self._set_by
        return self._shows

    def jump(self, seconds: float) -> None:
        """Set it on, or back."""
        self._set_by += timedelta(seconds=seconds)
        self._at = -1.0
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
