"""A store that can lose its worker at any moment, and engines on it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EngineConfig, Saga, WorkflowEngine
from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from event_workflow_engine.storage.port import Storage, Told, Unit


LEASE = 0.7  # seconds until a crashed worker's sagas go on elsewhere, where no file lock tells at once


class Cable:
    """A store as one worker sees it, until the cable is cut: then nothing it writes arrives.

    Leaving the engine afterwards is a crash as far as the store can tell: nothing was handed over.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._cut = False

    def cut(self) -> None:
        self._cut = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def post(self, unit: Unit, told: Told) -> None:
        if self._cut:
            asyncio.get_running_loop().call_soon(told, StorageUnavailableError("the cable is cut"))
        else:
            self._storage.post(unit, told)

    async def write(self, unit: Unit) -> Any:
        self._check()
        return await self._storage.write(unit)

    async def perform(self, name: str, **params: Any) -> Any:
        self._check()
        return await self._storage.perform(name, **params)

    def _check(self) -> None:
        if self._cut:
            raise StorageUnavailableError("the cable is cut")


class Lab:
    """Engines on one store, and waiting without sleeping."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @asynccontextmanager
    async def engine(self, *sagas: Saga[Any, Any], **config: Any) -> AsyncIterator[WorkflowEngine]:
        """An engine that is left in good order."""
        engine = WorkflowEngine(self.storage, config=EngineConfig(**{"lease": LEASE, **config}))
        engine.register(*sagas)
        async with engine:
            yield engine

    @asynccontextmanager
    async def doomed(self, *sagas: Saga[Any, Any], **config: Any) -> AsyncIterator[WorkflowEngine]:
        """An engine that crashes at the end of the block."""
        cable = Cable(self.storage)
        engine = WorkflowEngine(cable, config=EngineConfig(shutdown_timeout=0, **{"lease": LEASE, **config}))  # type: ignore[arg-type]
        engine.register(*sagas)
        async with engine:
            yield engine
            cable.cut()

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a condition over the store holds; it is asked again after each commit."""
        rang = asyncio.Event()
        remove = self.storage.add_bell(rang.set)
        try:
            async with asyncio.timeout(10):
                while not await condition():
                    await rang.wait()
                    rang.clear()
        finally:
            remove()

    async def until_row(self, saga_id: str, **values: Any) -> None:
        """Wait until a saga's row holds these values."""

        async def holds() -> bool:
            row = await self.storage.get("sagas", (saga_id,))
            return row is not None and all(row[name] == value for name, value in values.items())

        await self.until(holds)

    async def until_fact(self, engine: WorkflowEngine, saga_id: str, fact: str, count: int = 1) -> None:
        """Wait until a saga's history holds a fact, so many times."""
        await self.until(lambda: self._holds(engine, saga_id, fact, count))

    async def _holds(self, engine: WorkflowEngine, saga_id: str, fact: str, count: int) -> bool:
        return (await self.facts(engine, saga_id)).count(fact) >= count

    async def facts(self, engine: WorkflowEngine, saga_id: str) -> list[str]:
        """The types of a saga's history."""
        return [event.type for event in await engine.handle(saga_id).history()]


@pytest.fixture
async def lab(store_url: str) -> AsyncIterator[Lab]:
    async with open_storage(store_url, auto_upgrade=True) as storage:
        yield Lab(storage)
