"""`CrashingEngine`: an engine that crashes once, where it is told, and is entered again before its clients' eyes."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Self

from event_workflow_engine.clock import to_micros
from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.testing.settling import is_calm
from event_workflow_engine.testing.standstill import WatchedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.clock import Clock
    from event_workflow_engine.saga import Saga
    from event_workflow_engine.storage.port import Storage
    from event_workflow_engine.testing.clock import VirtualClock
    from event_workflow_engine.testing.observed import ObservedStorage

__all__ = ["CrashingEngine", "bury"]


class CrashingEngine(WorkflowEngine):
    """Sagas run in the engine that crashes; who starts, signals and waits for them is a process of its own.

    What it had in memory when it crashes is lost, and its steps are cancelled. Its worker is declared dead, as others
    do it when a lease is over, and it is entered anew, with what was registered.

    Args:
        storage: The opened store.
        observed: The same, as the engine that crashes sees it.
        clock: The clock of both.
        on_crash: Called when it has crashed, and nothing of it acts any more.
    """

    def __init__(
        self, storage: Storage, observed: ObservedStorage, *, clock: VirtualClock, on_crash: Callable[[], None]
    ) -> None:
        config = EngineConfig(shutdown_timeout=0)
        super().__init__(observed, config=config, clock=clock)  # type: ignore[arg-type]
        self._direct = storage
        self._observed = observed
        self._on_crash = on_crash
        self._client = WatchedEngine(
            storage,
            clock=clock,
            is_calm=lambda _: is_calm(self, observed),
            config=dataclasses.replace(config, worker=False),
            running=self,
        )
        self._around: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        """Enter both."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._client)
            await super().__aenter__()
            stack.push_async_exit(super().__aexit__)
            stack.callback(self._observed.disarm)
            self._observed.arm()
            watch = asyncio.create_task(self._watch(), name="ewe-crash")
            stack.push_async_callback(_end, watch)
            # What crashed is back before it is left.
            stack.push_async_callback(self._observed.quiet)
            self._around = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave both."""
        around, self._around = self._around, None
        if around is not None:
            await around.aclose()

    async def _watch(self) -> None:
        await self._observed.cut.wait()
        try:
            await super().__aexit__()
            self._on_crash()
            self._observed.disarm()
            await bury(self._direct, self._clock)
            await super().__aenter__()
        finally:
            self._observed.mend()

    def register(self, *sagas: Saga[Any, Any]) -> None:
        """See `WorkflowEngine.register`."""
        super().register(*sagas)
        self._client.register(*sagas)

    async def execute(self, *args: Any, **options: Any) -> Any:
        """See `WorkflowEngine.execute`."""
        return await self._client.execute(*args, **options)

    async def start(self, *args: Any, **options: Any) -> Any:
        """See `WorkflowEngine.start`."""
        return await self._client.start(*args, **options)

    def handle(self, *args: Any, **options: Any) -> Any:
        """See `WorkflowEngine.handle`."""
        return self._client.handle(*args, **options)

    def enlist(self, connection: Any) -> Any:
        """See `WorkflowEngine.enlist`."""
        return self._client.enlist(connection)


async def bury(storage: Storage, clock: Clock) -> None:
    """Declare all workers dead: as others do it when a lease is over."""
    for row in await storage.query("live_workers"):
        now = to_micros(clock.now())
        await storage.perform("bury_worker", beat=None, id=row["id"], incarnation=row["incarnation"], now=now)


async def _end(task: asyncio.Task[None]) -> None:
    if not task.done():
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task
