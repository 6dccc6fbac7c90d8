"""`Watched`: an engine of which a test knows how often it was looked at for a standstill."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from event_workflow_engine.testing import VirtualClock
from event_workflow_engine.testing.observed import ObservedStorage
from event_workflow_engine.testing.settling import is_calm, settle
from event_workflow_engine.testing.standstill import WatchedEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from event_workflow_engine import EngineConfig, Saga, WorkflowEngine
    from event_workflow_engine.storage.port import Storage


class Watched:
    """An engine that is looked at each few milliseconds, with the looks counted."""

    def __init__(self, storage: Storage, *sagas: Saga[Any, Any], config: EngineConfig | None = None) -> None:
        self.clock = VirtualClock()
        self.clock.patience = 0.05
        self.looks = 0
        self._at: dict[int, Callable[[], object]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        observed = ObservedStorage(storage)
        self.engine = WatchedEngine(
            observed, clock=self.clock, is_calm=lambda made: self._look(made, observed), config=config
        )
        self.clock.settle = partial(settle, self.engine, observed)
        self.engine.register(*sagas)

    def _look(self, made: WorkflowEngine, observed: ObservedStorage) -> bool:
        self.looks += 1
        self._at.pop(self.looks, lambda: None)()
        return is_calm(made, observed)

    def at_look(self, number: int, callback: Callable[[], object]) -> None:
        self._at[number] = callback

    async def looked(self, number: int) -> None:
        reached = asyncio.Event()
        self.at_look(number, reached.set)
        await reached.wait()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def rest(self) -> None:
        await asyncio.gather(*self._tasks)
