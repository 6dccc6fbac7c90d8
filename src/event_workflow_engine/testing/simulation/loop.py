"""An event loop without a selector: time is a number, and the seed says whose turn it is.

Callbacks of one simulated process run in the order in which asyncio promises them. Between processes there is no order,
as there is none between machines: the seed draws one. A process can be frozen, and goes on later, or killed: then
nothing of it runs ever again, no ``finally`` either.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextvars import Context, ContextVar
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
        self.ready: deque[asyncio.Handle] = deque()
        self.frozen = False
        self.dead = False
        self.context = Context()
        self.context.run(_process.set, self)
        self.holds: dict[tuple[str, str], Any] = {}
        """What code of its own finds here, as it would among its module's globals."""
        self.remains: list[asyncio.Handle] = []
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
    """Takes the place of the base loop's queue: what is appended goes to its process."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    def append(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_process) or WORLD  # type: ignore[attr-defined]  # noqa: SLF001
        (process.remains if process.dead else process.ready).append(handle)

    def clear(self) -> None:
        for process in self._processes:
            process.ready.clear()

    def __len__(self) -> int:
        return sum(len(process.ready) for process in self._processes)


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

    def __init__(self, chance: random.Random, most_turns: int = 300_000) -> None:
        super().__init__()
        self._chance = chance
        self._most_turns = most_turns
        self._now = 0.0
        self.processes = [WORLD]
        WORLD.ready.clear()
        self._ready = _Ready(self.processes)
        self.digest = 0xCBF29CE484222325
        self.turns = 0

    def process(self, name: str) -> Process:
        """A new process."""
        process = Process(name, len(self.processes))
        self.processes.append(process)
        return process

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._now

    def later(self, delay: float, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Call something in a process, in so many seconds."""
        self.call_later(delay, callback, *args, context=process.context)

    def _run_once(self) -> None:
        able = self._able()
        if not able:
            able = self._able_later()
        process = able[int(self._chance.random() * len(able))] if len(able) > 1 else able[0]
        handle = process.ready.popleft()
        self.turns += 1
        if self.turns > self._most_turns:
            raise StalledError(f"it has not ended after {self._most_turns:,} turns")
        self.digest = ((self.digest ^ process.number ^ int(self._now * 1e6)) * _PRIME) & _MASK
        if not handle._cancelled:  # noqa: SLF001
            handle._run()  # noqa: SLF001

    def _able(self) -> list[Process]:
        self._take_due()
        return [one for one in self.processes if one.ready and not one.frozen]

    def _able_later(self) -> list[Process]:
        """Go on in time until somebody is able to run."""
        while True:
            if not self._scheduled:
                raise StalledError("nothing is ready, and nothing is scheduled")
            self._now = max(self._now, self._scheduled[0]._when)  # noqa: SLF001
            able = self._able()
            if able:
                return able

    def _take_due(self) -> None:
        scheduled = self._scheduled
        while scheduled and scheduled[0]._when <= self._now:  # noqa: SLF001
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # noqa: SLF001
            if not handle._cancelled:  # noqa: SLF001
                self._ready.append(handle)

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There is no thread to wake."""
