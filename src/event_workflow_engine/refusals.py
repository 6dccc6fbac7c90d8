"""What transactions of users staged and the store refused: listed, tried again, dropped."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from event_workflow_engine.clock import from_micros
from event_workflow_engine.errors import NotRegisteredError, RowConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.staging import staged_unit
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.storage.port import Storage

__all__ = ["Refusal", "Refusals"]


class Refusal(msgspec.Struct, frozen=True):
    """Something that a transaction staged and that cannot be written.

    Attributes:
        id: What it is dropped or tried again by.
        what: In words: which saga was to start, whom was to be sent something, or which stream was to be appended to.
        staged_at: When.
        reason: Why it was refused.
    """

    id: str
    what: str
    staged_at: datetime
    reason: str


class Refusals:
    """What `WorkflowEngine.enlist` staged, and what turned out impossible when its transaction had committed.

    Args:
        storage: The store.
        on_retry: Called when something is to be tried again by this process; others hear of it by themselves.
    """

    def __init__(self, storage: Storage, on_retry: Callable[[], None] = lambda: None) -> None:
        self._storage = storage
        self._on_retry = on_retry

    async def list(self, *, after: str = "", limit: int = 100) -> list[Refusal]:
        """What was refused, in the order in which it was staged.

        Args:
            after: Only what is behind this id.
            limit: At most so many.
        """
        rows = await self._storage.query("staged_refused", after=after, limit=limit)
        return [
            Refusal(row["id"], _told(staged_unit(row["body"])), from_micros(row["staged_at"]), row["refused"])
            for row in rows
        ]

    async def retry(self, refusal: str) -> None:
        """Have it tried again by any process that has entered an engine: what was in its way may be gone.

        Args:
            refusal: Its id.

        Raises:
            NotRegisteredError: Nothing that was refused has this id.
        """
        await self._change(refusal, {"refused": None})
        self._on_retry()

    async def drop(self, refusal: str) -> None:
        """Forget it: it never happens.

        Args:
            refusal: Its id.

        Raises:
            NotRegisteredError: Nothing that was refused has this id.
        """
        await self._change(refusal, None)

    async def _change(self, refusal: str, values: dict[str, Any] | None) -> None:
        row = await self._storage.get("staged", (refusal,))
        if row is not None and row["refused"] is not None:
            was = {"refused": row["refused"]}
            change = Row("staged", "delete", (refusal,), {}, was)
            if values is not None:
                change = Row("staged", "update", (refusal,), values, was)
            try:
                await self._storage.write(Unit(uuid7(), time.time_ns() // 1000, rows=(change,)))
            except RowConflictError:
                pass  # somebody was quicker
            else:
                return
        raise NotRegisteredError(f"nothing that was refused has the id {refusal!r}: see ewe db staged")


def _told(unit: Unit) -> str:
    streams = [append.stream for append in unit.appends]
    starts = [row.key[0] for row in unit.rows if row.table == "saga_ids"]
    if starts:
        return f"start of saga {starts[0]!r}"
    if streams and streams[0].startswith("inbox-"):
        return f"signal to saga {streams[0].removeprefix('inbox-')!r}"
    events = sum(len(append.records) for append in unit.appends)
    return f"{events} events for stream {streams[0]!r}" if streams else "rows"
