"""Alarms in memory: one task sleeps on the clock until the first of many is due."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import TYPE_CHECKING

from event_workflow_engine.clock import Clock, from_micros, to_micros

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Alarm", "Alarms"]


class Alarm:
    """A call that is to come; `cancel` takes it back."""

    __slots__ = ("callback", "due")

    def __init__(self, due: int, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Take it back. Harmless when it has rung."""
        self.callback = None


class Alarms:
    """Rings many alarms from one sleep on the engine's clock, in due order, then in order of setting."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Alarm]] = []
        self._order = count()
        self._task: asyncio.Task[None] | None = None
        self._sleeping_until: int | None = None
        self._sooner = asyncio.Event()

    def start(self) -> None:
        """Begin to ring."""
        self._sooner = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="ewe-alarms")

    async def stop(self) -> None:
        """Stop ringing and forget every alarm."""
        self._heap.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def at(self, due: int, callback: Callable[[], None]) -> Alarm:
        """Call `callback` when the clock shows `due` (microseconds since 1970); soon, when that has passed."""
        alarm = Alarm(due, callback)
        heapq.heappush(self._heap, (due, next(self._order), alarm))
        if self._sleeping_until is None or due < self._sleeping_until:
            self._sooner.set()
        return alarm

    @property
    def loop_ends(self) -> bool:
        """Whether the loop cancels all its tasks, as `asyncio.run` does when it ends: nobody else knows of this one."""
        return self._task is not None and self._task.cancelling() > 0

    async def _run(self) -> None:
        while True:
            self._ring()
            self._sooner.clear()
            if not self._heap:
                self._sleeping_until = None
                await self._sooner.wait()
                continue
            self._sleeping_until = self._heap[0][0]
            await self._sleep(self._sleeping_until)
            self._sleeping_until = None

    def _ring(self) -> None:
        now = to_micros(self._clock.now())
        while self._heap and (self._heap[0][2].callback is None or self._heap[0][0] <= now):
            alarm = heapq.heappop(self._heap)[2]
            callback, alarm.callback = alarm.callback, None
            if callback is not None:
                callback()

    async def _sleep(self, until: int) -> None:
        """Until then, or until an earlier alarm is set."""
        sleep = asyncio.ensure_future(self._clock.sleep_until(from_micros(until)))
        sooner = asyncio.ensure_future(self._sooner.wait())
        try:
            await asyncio.wait((sleep, sooner), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            sooner.cancel()
            await asyncio.gather(sleep, sooner, return_exceptions=True)
