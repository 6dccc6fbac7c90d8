"""Waiting for the end of sagas that run here, in another process, or are asleep."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.errors import EngineStateError, SagaNotFoundError, StorageError
from event_workflow_engine.journal import Journal, saga_stream
from event_workflow_engine.runner.conclusion import conclude, ended_as
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.saga import Saga

__all__ = ["Ends", "log_undone"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_PAGE: Final = 1000
_BACK_OFF_S: Final = 0.5
_LONGEST: Final = 500  # characters of a line in the log


def log_undone(run: SagaRun) -> None:
    """Say in one line why a saga that has ended was not done."""
    if run.journal.state is not WorkflowState.COMPLETED and _log.isEnabledFor(logging.INFO):
        text = " ".join(ended_as(run.journal).split())
        _log.info("%s", text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


class Ends:
    """Who waits for which saga's end. Cancelling one who waits only detaches it.

    Args:
        definitions: Type the results.
        runs: The sagas in memory here.
    """

    def __init__(self, definitions: Definitions, runs: Mapping[str, SagaRun]) -> None:
        self._definitions = definitions
        self._runs = runs
        self._kit: Kit | None = None
        self._waiters: defaultdict[str, list[asyncio.Future[SagaRun | None]]] = defaultdict(list)
        self._elsewhere: set[str] = set()
        self._looking = False
        self._look_again = False

    def start(self, kit: Kit) -> None:
        """The engine was entered."""
        self._kit = kit

    def stop(self) -> None:
        """The engine is left: who still waits gets an error that says so."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(
                        EngineStateError(
                            "the engine was left while the saga was under way; it goes on when it is entered again"
                        )
                    )
        self._waiters.clear()
        self._elsewhere.clear()
        self._kit = None

    def expect(self, saga_id: str) -> asyncio.Future[SagaRun | None]:
        """Resolved when the saga has ended or stands: with its run, or ``None`` where that was elsewhere."""
        waiter: asyncio.Future[SagaRun | None] = asyncio.get_running_loop().create_future()
        self._waiters[saga_id].append(waiter)
        return waiter

    def forget(self, saga_id: str, waiter: asyncio.Future[SagaRun | None]) -> None:
        """Nobody waits there any more."""
        waiters = self._waiters.get(saga_id)
        if waiters is None:
            return
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            del self._waiters[saga_id]
            self._elsewhere.discard(saga_id)

    def reached(self, saga_id: str, run: SagaRun | None) -> None:
        """The saga has ended or stands."""
        self._elsewhere.discard(saga_id)
        for waiter in self._waiters.pop(saga_id, ()):
            if not waiter.done():
                waiter.set_result(run)

    def left(self, saga_id: str) -> None:
        """The saga left this process's memory, and may end elsewhere."""
        if saga_id in self._waiters:
            self._elsewhere.add(saga_id)

    def look(self) -> None:
        """Something was committed: look whether sagas that run elsewhere have ended."""
        if not self._elsewhere or self._kit is None:
            return
        if self._looking:
            self._look_again = True
            return
        self._looking = True
        self._kit.host.spawn(self._look())

    async def _look(self) -> None:
        try:
            self._look_again = True
            while self._look_again and self._elsewhere and self._kit is not None:
                self._look_again = False
                try:
                    await self._look_once(self._kit)
                except StorageError as error:  # nobody may ring again for what has ended
                    _log.warning(
                        "could not look for the end of %d sagas, trying again: %s", len(self._elsewhere), error
                    )
                    self._look_again = True
                    await asyncio.sleep(_BACK_OFF_S)
        finally:
            self._looking = False

    async def _look_once(self, kit: Kit) -> None:
        ids = msgspec.json.encode(sorted(self._elsewhere - self._runs.keys())).decode()
        for row in await kit.storage.query("sagas_by_ids", ids=ids):
            if row["ended_at"] is not None or row["state"] == WorkflowState.NEEDS_INTERVENTION.value:
                self.reached(row["id"], None)

    async def wait(
        self,
        saga_id: str,
        saga: Saga[Any, Any] | None,
        waits: Callable[[asyncio.Future[SagaRun | None]], None] | None = None,
    ) -> Any:
        """The result of a saga, wherever it runs.

        Args:
            saga_id: Its id.
            saga: Types its result.
            waits: Called where it has not ended, before it is waited for, with what is done when it has.

        Raises:
            SagaNotFoundError: There is none.
            SagaFailedError: It did not end as done, or stands.
        """
        waiter = self.expect(saga_id)
        try:
            if saga_id not in self._runs:
                self._elsewhere.add(saga_id)
                row = await self._row(saga_id)
                if row["ended_at"] is not None or row["state"] == WorkflowState.NEEDS_INTERVENTION.value:
                    return await self._read(row, saga)
            if waits is not None:
                waits(waiter)
            return await self.conclusion(await waiter, saga_id, saga)
        finally:
            self.forget(saga_id, waiter)

    async def conclusion(self, run: SagaRun | None, saga_id: str, saga: Saga[Any, Any] | None) -> Any:
        """What the saga's caller is told, from the run that ended or else from the store."""
        kit = self._opened()
        if run is not None:
            return conclude(run.journal, saga or run.saga, kit.codec, run.by_name, run.forward.cause)
        return await self._read(await self._row(saga_id), saga)

    async def _row(self, saga_id: str) -> dict[str, Any]:
        kit = self._opened()
        row = await kit.storage.get("sagas", (saga_id,))
        if row is None:
            raise SagaNotFoundError(f"there is no saga {saga_id!r} in {kit.storage.url}")
        return row

    async def _read(self, row: dict[str, Any], saga: Saga[Any, Any] | None) -> Any:
        kit = self._opened()
        journal = Journal(row["id"])
        while page := await kit.storage.read_stream(saga_stream(row["id"]), after=journal.version, limit=_PAGE):
            for record in page:
                journal.load(record.data, record.version)
        return conclude(journal, saga or self._definitions.find(row["saga"], row["saga_version"]), kit.codec)

    def _opened(self) -> Kit:
        if self._kit is None:
            raise EngineStateError("the engine is not open: use it inside of `async with engine:`")
        return self._kit
