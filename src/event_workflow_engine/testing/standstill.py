"""`WatchedEngine`: who waits for a saga that waits for a clock which nothing moves is told so, not left to wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.clock import told as time_told
from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.testing.telling import look_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime, timedelta

    from event_workflow_engine.saga import Saga
    from event_workflow_engine.testing.clock import VirtualClock
    from event_workflow_engine.testing.telling import Waiting

__all__ = ["StandstillError", "WatchedEngine"]

_LOOKS: Final = 8
"""Within the clock's patience. Looks are counted, not time: a loop that is blocked, or a debugger, is no standstill."""
_WITH_OTHERS: Final = 10
"""So many times as patient where a task of the test is there that may be about to move the clock."""
_PACKAGE: Final = str(Path(__file__).parent.parent)
_EVENT_WAIT: Final = asyncio.Event.wait.__code__


class StandstillError(AssertionError, TimeoutError):
    """A test waits for a saga's end, the saga for a time, and nothing moves the `VirtualClock`. The saga is as it was.

    Also a `TimeoutError`, for a test that shows by one that a saga has not ended.
    """


class _Waiting:
    """One who waits for a saga's end."""

    def __init__(self, saga_id: str) -> None:
        self.saga_id = saga_id
        self.task = asyncio.current_task()
        self.limit = asyncio.timeout(None)
        self.why = ""


class _Vigil:
    """Looks now and then, while somebody waits, whether nothing will come of it.

    Args:
        clock: The clock of it all.
        is_calm: Whether nothing is under way in the engine, nor to its store and back.
        engine: That which runs the sagas.
    """

    def __init__(self, clock: VirtualClock, is_calm: Callable[[], bool], engine: WorkflowEngine) -> None:
        self._clock = clock
        self._is_calm = is_calm
        self._engine = engine
        self._waiting: set[_Waiting] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None
        self._calm = 0
        self._advances = 0

    @asynccontextmanager
    async def beside(self, saga_id: str) -> AsyncIterator[None]:
        """Raise a standstill in what waits inside of it."""
        waiting = _Waiting(saga_id)
        try:
            async with waiting.limit:
                self._waiting.add(waiting)
                self._calm = 0
                self._look_later()
                try:
                    yield
                finally:
                    self._waiting.remove(waiting)
                    if not self._waiting:
                        await self._rest()
        except TimeoutError:
            if not (waiting.why and waiting.limit.expired()):
                raise
            raise StandstillError(waiting.why) from None

    def _look_later(self) -> None:
        if self._timer is None and self._clock.patience is not None:
            self._timer = asyncio.get_running_loop().call_later(self._clock.patience / _LOOKS, self._look)

    async def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    def _look(self) -> None:
        self._timer = None
        self._calm = self._calm + 1 if self._stands() else 0
        self._advances = self._clock.advances
        if self._calm > _LOOKS * (_WITH_OTHERS if self._are_others() else 1):
            self._calm = 0
            self._telling = asyncio.create_task(self._tell(), name="ewe-standstill")
        else:
            self._look_later()

    def _stands(self) -> bool:
        """Whether nothing moves, nor has moved the clock since the last look."""
        return self._is_calm() and not self._clock.is_advancing and self._advances == self._clock.advances

    def _are_others(self) -> bool:
        """Whether there are tasks that neither wait here nor are the library's own."""
        known = {waiting.task for waiting in self._waiting}
        return any(task not in known and not _is_own(task) for task in asyncio.all_tasks())

    async def _tell(self) -> None:
        for waiting in list(self._waiting):
            try:
                found = await look_at(self._engine, waiting.saga_id)
            except WorkflowError:  # it is in its start, say, and who waits for it will be told
                continue
            due = _due(found, self._clock.now())
            if due is None or not self._stands() or waiting not in self._waiting:
                continue
            waiting.why = _why(waiting.saga_id, found.in_words(), self._clock.now(), due)
            waiting.limit.reschedule(asyncio.get_running_loop().time())
        self._telling = None
        if self._waiting:
            self._look_later()


class WatchedEngine(WorkflowEngine):
    """An engine whose ``execute`` and ``result`` raise a `StandstillError` instead of waiting for ever.

    Args:
        storage: An opened storage.
        clock: The clock; its ``patience`` says how soon.
        is_calm: Whether nothing is under way there, nor to the store and back.
        config: See `EngineConfig`.
        running: The engine that runs the sagas, where it is another one.
    """

    def __init__(
        self,
        storage: Any,
        *,
        clock: VirtualClock,
        is_calm: Callable[[WorkflowEngine], bool],
        config: EngineConfig | None = None,
        running: WorkflowEngine | None = None,
    ) -> None:
        super().__init__(storage, clock=clock, config=config or EngineConfig())
        self._vigil = _Vigil(clock, lambda: is_calm(self), self if running is None else running)

    async def execute(
        self,
        saga: Saga[Any, Any] | str,
        input: Any = None,  # noqa: A002 - the contract's name
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
        **queueing: Any,
    ) -> Any:
        """See `WorkflowEngine.execute`."""
        saga_id = uuid7() if id is None else id
        async with self._vigil.beside(saga_id):
            return await super().execute(saga, input, id=saga_id, **queueing)

    async def wait_for_end(self, saga_id: str, saga: Saga[Any, Any] | None) -> Any:
        """See `WorkflowEngine.wait_for_end`."""
        async with self._vigil.beside(saga_id):
            return await super().wait_for_end(saga_id, saga)


def _is_own(task: asyncio.Task[Any]) -> bool:
    coro = task.get_coro()
    code = getattr(coro, "cr_code", None)
    if code is None:  # a step's, which waits for a child: while another one acts, nobody is told anything
        return type(coro).__module__.startswith(f"{__package__.partition('.')[0]}.")
    return code is _EVENT_WAIT or code.co_filename.startswith(_PACKAGE)


def _due(found: Waiting, now: datetime) -> datetime | None:
    """When the saga would go on by itself; ``None``: there is no such time, or it does not wait for it alone."""
    first = None if found.is_under_way() else found.first()
    return None if first is None or first <= now else first


def _why(saga_id: str, waits: str, now: datetime, due: datetime) -> str:
    return (
        f"saga {saga_id!r} {waits}; this VirtualClock shows {time_told(now, decimals=6)} and nothing moves it: "
        f"`await clock.advance(seconds={_plain(due - now)})` does, between `engine.start(…)` and `handle.result()`, or "
        "in another task"
    )


def _plain(length: timedelta) -> str:
    return f"{length.total_seconds():.6f}".rstrip("0").rstrip(".")
