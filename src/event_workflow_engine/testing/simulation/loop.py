"""An event loop without a selector: time is a number, and the seed says whose turn it is.

Callbacks of one simulated process run in the order in which asyncio promises them. Between processes there is no order,
as there is none between machines: the seed draws one. A process can be frozen, and goes on later, or killed: then
nothing of it runs ever again, no ``finally`` either.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import WorkflowError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

__all__ = ["WORLD", "Process", "SimulatedLoop", "StalledError", "process_here"]

_MASK: Final = (1 << 64) - 1
_PRIME: Final = 0x100000001B3


class StalledError(WorkflowError):
    """It does not go on, or does not end."""


_process: ContextVar[Process | None] = ContextVar("ewe_simulated_process", default=None)


class Process:
    """What runs together, freezes together and dies together. Its callbacks are told by their context."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.ready: deque[Any] = deque()
        self.frozen = False
        self.dead = False
        self.context = Context()
        self.context.run(_process.set, self)
        self.holds: dict[tuple[str, str], Any] = {}
        """What code of its own finds here, as it would among its module's globals."""
        self.remains: list[Any] = []
        """What would have run: kept, for what is collected runs its ``finally``, and at any time."""

    def __repr__(self) -> str:
        """Its name."""
        return self.name

    def kill(self) -> None:
        """Let nothing of it run from now on."""
        self.dead = True
        self.remains.extend(self.ready)
        self.ready.clear()

    def freeze(self) -> None:
        """Let nothing of it run for now."""
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self.frozen = False

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a task in it."""
        return self.context.copy().run(asyncio.ensure_future, work)


WORLD: Final = Process("world", 0)
"""What is no process: the server, the network, and who runs the simulation."""


def process_here() -> Process:
    """The process in which this runs."""
    return _process.get() or WORLD


class _Ready:
    """Takes the place of the base loop's queue, which is cleared when the loop is closed."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def clear(self) -> None:
        for process in self._loop.processes:
            process.ready.clear()


class _Handle(asyncio.TimerHandle):
    """What asyncio's is, made without asking the loop whether it is being debugged: there are millions of them."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = False


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        chance: Draws whose turn it is.
        most_turns: How many callbacks may run before it is taken for a run that does not end.

    Attributes:
        digest: Of all turns so far: whose they were, and when.
        turns: How many callbacks have run.
    """

    _ready: Any
    _scheduled: Any
    _stopping: bool

    def __init__(self, chance: random.Random, most_turns: int = 300_000) -> None:
        super().__init__()
        self._chance = chance
        self._most_turns = most_turns
        self._now = 0.0
        self._micros = 0
        self._born = 0
        self.processes = [WORLD]
        WORLD.ready.clear()
        self._ready = _Ready(self)
        self._scheduled = []
        self._order = 0
        self._alone: Process | None = None
        self.digest = 0xCBF29CE484222325
        self.turns = 0

    def process(self, name: str) -> Process:
        """A new process."""
        self._born += 1
        process = Process(name, self._born)
        self.processes = [one for one in self.processes if not one.dead]
        self.processes.append(process)
        return process

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._now

    def later(self, delay: float, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Call something in a process, in so many seconds."""
        self.call_at(self._now + delay, callback, *args, context=process.context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio. What is for one instant comes in the order in which it was asked for."""
        handle = _Handle(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._scheduled, (when, self._order, handle))
        return handle

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio: next in its process."""
        handle = _Handle(0.0, callback, args, self, context)
        self._is_ready(handle)
        return handle

    def _is_ready(self, handle: Any) -> None:
        process = handle._context.get(_process) or WORLD  # noqa: SLF001
        if process is not self._alone:
            self._alone = None
        (process.remains if process.dead else process.ready).append(handle)

    def _run_once(self) -> None:
        """Run callbacks until the loop is stopped."""
        draw, prime, mask, scheduled = self._chance.random, _PRIME, _MASK, self._scheduled
        while not self._stopping:
            process = self._alone
            if process is None or not process.ready or (scheduled and scheduled[0][0] <= self._now):
                able = self._able()
                if len(able) > 1:
                    process, self._alone = able[int(draw() * len(able))], None
                else:
                    process = able[0]
                    # As long as it runs, and calls nobody else, it has the next turn, too. The world thaws others.
                    self._alone = None if process is WORLD else process
            handle = process.ready.popleft()
            self.turns += 1
            if self.turns > self._most_turns:
                raise StalledError(f"it has not ended after {self._most_turns:,} turns")
            self.digest = ((self.digest ^ process.number ^ self._micros) * prime) & mask
            if not handle._cancelled:  # noqa: SLF001
                try:
                    handle._context.run(handle._callback, *handle._args)  # noqa: SLF001
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as asyncio does
                    self.call_exception_handler({"message": f"{handle!r} raised", "exception": error})

    def _able(self) -> list[Process]:
        """Who has something to do; where nobody has, time goes on until somebody has."""
        scheduled = self._scheduled
        while True:
            while scheduled and scheduled[0][0] <= self._now:
                handle = heapq.heappop(scheduled)[2]
                if not handle._cancelled:  # noqa: SLF001
                    self._is_ready(handle)
            able = [one for one in self.processes if one.ready and not one.frozen]
            if able:
                return able
            if not scheduled:
                raise StalledError("nothing is ready, and nothing is scheduled")
            self._now = max(self._now, scheduled[0][0])
            self._micros = int(self._now * 1e6)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There is no thread to wake."""
