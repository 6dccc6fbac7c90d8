"""Sagas that left memory because what they wanted to write was not written: each goes on, or stands."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from event_workflow_engine.errors import (
    EncodeError,
    OwnershipLostError,
    RowConflictError,
    StorageError,
    StorageLostError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["Unwritten"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_BACK_OFF_S: Final = 0.5


class Unwritten:
    """Gives such a saga back when its code has ended and the store takes writes again.

    Until then it is this worker's by its row, though not in its memory.

    Args:
        freed: Called when one was given back, or stands.
    """

    def __init__(self, freed: Callable[[], None]) -> None:
        self._freed = freed
        self._sagas: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """The ids of those that are yet to be given back."""
        return iter(self._sagas)

    def forget(self) -> None:
        """The engine is left."""
        self._sagas.clear()

    def add(self, kit: Kit, run: SagaRun, error: StorageError | EncodeError) -> None:
        """What it wanted to write met `error`."""
        self._sagas.add(run.saga_id)
        if isinstance(error, EncodeError):
            _log.error("saga %s needs intervention: %s", run.saga_id, error)
        else:
            _log.error("saga %s could not be written and is loaded again: %s", run.saga_id, error)
        kit.host.spawn(self._give_back(kit, run, error))

    async def _give_back(self, kit: Kit, run: SagaRun, error: StorageError | EncodeError) -> None:
        if ending := run.still_ending():  # until then it is nobody else's, who would run that code beside it (rule 5)
            await asyncio.wait([one.future for one in ending])
        while True:
            await asyncio.sleep(_BACK_OFF_S)
            try:
                await _free(kit, run, error)
            except StorageError:
                continue
            self._sagas.discard(run.saga_id)
            self._freed()
            return


async def _free(kit: Kit, run: SagaRun, error: StorageError | EncodeError) -> None:
    try:
        if isinstance(error, EncodeError):  # no store takes it, nor would one the next time
            return await run.pen.stand(error)
        if isinstance(error, StorageLostError):
            return await run.pen.hand_over(lost=True)
    except (VersionConflictError, RowConflictError, OwnershipLostError):
        pass  # what was in doubt has landed, so nothing was cut off; or the saga is somebody else's by now
    fences = msgspec.json.encode({run.saga_id: run.fence}).decode()
    await kit.storage.perform("release_sagas", worker=kit.worker.id, fences=fences, now=kit.now())
    return None
