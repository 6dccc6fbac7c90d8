"""What is left for the store in users' own transactions, and how it gets into the log once they have committed.

A user's transaction takes as long as it takes. Where it appended to the log itself, it would hold the store's lock, or
have positions that others overtake. So it leaves units in a table, and a process of the store writes them, each once:
the unit that writes one deletes its row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.errors import (
    DefinitionError,
    EventIdConflictError,
    RowConflictError,
    StorageError,
    VersionConflictError,
)
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import Row, Unit, Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.errors import WorkflowError
    from event_workflow_engine.storage.port import Rows, Storage

__all__ = ["Intake", "stage", "staged_unit"]

_log: Final = logging.getLogger("event_workflow_engine.staging")

_BATCH: Final = 500
_GATHER_S: Final = 0.05
"""A busy store rings all the time: between two looks at least so long."""
_BACK_OFF_S: Final = 0.5
_FINAL: Final = (DefinitionError, EventIdConflictError, RowConflictError, VersionConflictError)


class _Staged(msgspec.Struct, frozen=True):
    unit: Unit
    joins: bool
    """A start that comes to nothing where its queue has another saga with its key: that is no failure."""


async def stage(storage: Storage, connection: Any, unit: Unit, *, joins: bool = False) -> None:
    """Leave a unit for the store in a user's transaction.

    Raises:
        DefinitionError: It is no connection on which a transaction is open, or the store cannot share one.
        StorageError: The connection cannot do it.
    """
    body = msgspec.json.encode(_Staged(unit, joins)).decode()
    await storage.stage(connection, Row("staged", "insert", (uuid7(),), {"body": body, "staged_at": unit.at}))


def staged_unit(body: str) -> Unit:
    """What a row of ``staged`` would write."""
    return msgspec.json.decode(body, type=_Staged).unit


class Intake:
    """Writes what was staged. Any number of processes do so: each row is deleted by one.

    Args:
        storage: The store.
        now: Microseconds since 1970.
    """

    def __init__(self, storage: Storage, now: Callable[[], int]) -> None:
        self._storage = storage
        self._now = now
        self._came = asyncio.Event()
        self._written: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._removers: list[Callable[[], None]] = []

    def start(self) -> None:
        """Look now, and when somebody else has committed."""
        self._came = asyncio.Event()
        self._came.set()
        if self._storage.stages:
            self._listen()
        self._task = asyncio.create_task(self._look_for_ever(), name="ewe-intake")

    async def stop(self) -> None:
        """Look no longer."""
        for remove in self._removers:
            remove()
        self._removers = []
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def look(self) -> None:
        """Look now: this process has put something there to be tried again."""
        self._came.set()

    def _listen(self) -> None:
        # What is staged is committed over another connection.
        self._removers = [self._storage.add_bell(self._came.set, own=False)]

    async def _look_for_ever(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            try:
                if not self._removers and await self._storage.query("staged_refused", after="", limit=1):
                    self._listen()  # it came with a copy of another store, and somebody else may have it tried again
                while rows := await self._storage.query("staged_page", after="", limit=_BATCH):
                    await self._move(rows)
            except StorageError as error:
                _log.warning("what was staged could not be moved into the log, trying again: %s", error)
                self._came.set()
                await asyncio.sleep(_BACK_OFF_S)
            except Exception:  # noqa: BLE001 - nothing else would move what is staged if this task ended
                _log.exception("what was staged could not be moved into the log, trying again")
                self._came.set()
                await asyncio.sleep(_BACK_OFF_S)
            await asyncio.sleep(_GATHER_S)

    async def _move(self, rows: Rows) -> None:
        """Write what was staged; what was written before and is still there, its id was used for the same already."""
        staged = [msgspec.json.decode(row["body"], type=_Staged) for row in rows]
        units = []
        for row, one in zip(rows, staged, strict=True):
            moved = Row("staged", "delete", (row["id"],))
            again = row["id"] in self._written
            unit = Unit(uuid7(), self._now(), rows=(moved,)) if again else one.unit
            if not again:
                unit = msgspec.structs.replace(unit, at=self._now(), rows=(*unit.rows, moved))
            units.append(unit)
        verdicts = await asyncio.gather(*map(self._storage.submit, units), return_exceptions=True)
        self._written = {row["id"] for row, verdict in zip(rows, verdicts, strict=True) if isinstance(verdict, Written)}
        for row, one, verdict in zip(rows, staged, verdicts, strict=True):
            if isinstance(verdict, _FINAL):
                await self._refused(row["id"], one, verdict)
            elif isinstance(verdict, BaseException):
                raise verdict

    async def _refused(self, row_id: str, staged: _Staged, error: WorkflowError) -> None:
        if isinstance(error, RowConflictError) and error.table == "staged":
            return  # another process has written it
        if await self._comes_to_nothing(staged, error):
            row = Row("staged", "delete", (row_id,))
        else:
            row = Row("staged", "update", (row_id,), {"refused": str(error)}, {"refused": None})
            what = ", ".join(append.stream for append in staged.unit.appends)
            _log.error("what a transaction staged for %s cannot be written, and stays in table staged until it "
                       "is dropped or tried again (ewe db staged): %s", what, error)  # fmt: skip
        with contextlib.suppress(RowConflictError):
            await self._storage.write(Unit(uuid7(), self._now(), rows=(row,)))

    async def _comes_to_nothing(self, staged: _Staged, error: WorkflowError) -> bool:
        """Whether it is a start of a saga that is there already, or of one that was to be joined to another."""
        if staged.joins and isinstance(error, RowConflictError) and error.table == "queue_keys":
            return True
        for row in staged.unit.rows:
            if row.table == "saga_ids":
                known = await self._storage.get("saga_ids", row.key)
                return known is not None and all(known[name] == row.values[name] for name in ("saga", "input_hash"))
        return False
