"""An event loop without a selector: time is a number, and the seed says whose turn it is.

Callbacks of one simulated process run in the order in which asyncio promises them. Between processes there is no order,
as there is none between machines: the seed draws one. A process can be frozen, and goes on later, or killed: then
nothing of it runs ever again, no ``finally`` either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.errors import WorkflowError

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

__all__ = ["WORLD", "Process", "SimulatedLoop", "StalledError", "process_here"]

_ready: Final = attrgetter("ready")


class StalledError(WorkflowError):
    """It does not go on, or does not end."""


_process: ContextVar[Process] = ContextVar("ewe_simulated_process")


class Process:
    """What runs together, freezes together and dies together. Its callbacks are told by their context.

    Attributes:
        ready: What may run now, in order: nothing of a process that is frozen.
        take: Takes what is to run next.
        holds: What code of its own finds here, as it would among its module's globals.
        remains: What would have run: kept, for what is collected runs its ``finally``, and at any time.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self._queue: deque[Any] = deque()
        self.ready = self._queue
        self.take: Callable[[Any], None] = self._queue.append
        self.dead = False
        self.context = Context()
        self.context.run(_process.set, self)
        self.holds: dict[tuple[str, str], Any] = {}
        self.remains: list[Any] = []

    def __repr__(self) -> str:
        """Its name."""
        return self.name

    def kill(self) -> None:
        """Let nothing of it run from now on."""
        self.dead = True
        self.remains.extend(self._queue)
        self.clear()
        self.take = self.remains.append

    def freeze(self) -> None:
        """Let nothing of it run for now."""
        self.ready = deque()

    def thaw(self) -> None:
        """Let it go on."""
        self.ready = self._queue

    def clear(self) -> None:
        """Forget what was to run."""
        self._queue.clear()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a task in it."""
        return self.context.copy().run(asyncio.ensure_future, work)


WORLD: Final = Process("world", 0)
"""What is no process: the server, the network, and who runs the simulation."""


def process_here() -> Process:
    """The process in which this runs."""
    return _process.get(WORLD)


class _Ready:
    """Takes the place of the base loop's queue, which is cleared when the loop is closed."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def clear(self) -> None:
        for process in self._loop.processes:
            process.clear()


class _Handle(msgspec.Struct, eq=False):
    """What asyncio's `TimerHandle` is to those who hold one, made more quickly: there are millions of them."""

    callback: Callable[..., object] | None
    args: tuple[Any, ...]
    context: Context
    process: Process
    at: float = 0.0

    def cancel(self) -> None:
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.at


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        chance: Draws whose turn it is.
        most_turns: How many callbacks may run before it is taken for a run that does not end.

    Attributes:
        now: Simulated seconds since it was made.
        processes: All that may still run something.
        trace: Of all turns so far: whose they were, by number, and before them when, in microseconds below zero.
        turns: How many callbacks have run.
    """

    _ready: Any
    _scheduled: Any
    _stopping: bool
    get_debug: Any = staticmethod(bool)  # no: asked with each future

    def __init__(self, chance: random.Random, most_turns: int = 300_000) -> None:
        super().__init__()
        self._draw = chance.random
        self._most_turns = most_turns
        self.now = 0.0
        self._born = 0
        self.processes = [WORLD]
        WORLD.clear()
        self._ready = _Ready(self)
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self._scheduled = []
        self._order = 0
        self._alone: Process | None = None
        self.trace: list[int] = []
        self.turns = 0

    def process(self, name: str) -> Process:
        """A new process."""
        self._born += 1
        process = Process(name, self._born)
        self.processes = [one for one in self.processes if not one.dead]
        self.processes.append(process)
        return process

    def time(self) -> float:
        """See asyncio: what `now` says."""
        return self.now

    def later(self, delay: float, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Call something in a process, in so many seconds."""
        self._order += 1
        handle = _Handle(callback, args, process.context, process)
        heappush(self._scheduled, (self.now + delay, self._order, handle))

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        """See asyncio."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        """See asyncio. What is for one instant comes in the order in which it was asked for."""
        if context is None:
            context = copy_context()
        handle = _Handle(callback, args, context, context.get(_process, WORLD), when)
        self._order += 1
        heappush(self._scheduled, (when, self._order, handle))
        return handle

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        """See asyncio: next in its process."""
        if context is None:
            context = copy_context()
        process = context.get(_process, WORLD)
        if process is not self._alone:
            self._alone = None
        handle = _Handle(callback, args, context, process)
        process.take(handle)
        return handle

    def thaw(self, process: Process) -> None:
        """Let a process go on that was frozen."""
        process.thaw()
        self._alone = None

    def _run_once(self) -> None:
        """Run callbacks until the loop is stopped."""
        scheduled, note, turns = self._scheduled, self.trace.append, self.turns
        try:
            while not self._stopping:
                process = self._alone
                if process is None or (scheduled and scheduled[0][0] <= self.now):
                    process = self._drawn()
                elif not process.ready:
                    process = self._first()
                handle = process.ready.popleft()
                turns += 1
                if turns > self._most_turns:
                    raise StalledError(f"it has not ended after {self._most_turns:,} turns")
                note(process.number)
                callback = handle.callback
                if callback is not None:
                    try:
                        handle.context.run(callback, *handle.args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:  # noqa: BLE001 - as asyncio does
                        self.call_exception_handler({"message": f"{callback!r} raised", "exception": error})
        finally:
            self.turns = turns

    def _drawn(self) -> Process:
        """Whose turn it is among all that have something to do."""
        scheduled, now = self._scheduled, self.now
        while scheduled and scheduled[0][0] <= now:
            handle = heappop(scheduled)[2]
            if handle.callback is not None:
                handle.process.take(handle)
        able = [*filter(_ready, self.processes)]
        if len(able) > 1:
            self._alone = None
            return able[int(self._draw() * len(able))]
        if not able:
            return self._first()
        # As long as it runs, and calls nobody else, it has the next turn, too.
        self._alone = able[0]
        return able[0]

    def _first(self) -> Process:
        """Whose turn it is where nobody has anything to do: time goes on until somebody has."""
        scheduled = self._scheduled
        while scheduled:
            when, _, handle = heappop(scheduled)
            if handle.callback is not None:
                process: Process = handle.process
                process.take(handle)
                if process.ready:
                    self.now = max(self.now, when)
                    self.trace.append(~int(self.now * 1e6))
                    if scheduled and scheduled[0][0] <= self.now:
                        return self._drawn()
                    self._alone = process
                    return process
        raise StalledError("nothing is ready, and nothing is scheduled")

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There is no thread to wake."""
