"""Sagas that left memory while code of theirs goes on: each keeps its lock until that has ended (rule 5)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine.locks import SagaLocks
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["Acting"]


class Acting:
    """Gives back the lock of a saga that left memory: at once, or when its code has ended.

    Args:
        locks: One for each saga in memory.
    """

    def __init__(self, locks: SagaLocks) -> None:
        self._locks = locks
        self._runs: dict[SagaRun, None] = {}

    def __iter__(self) -> Iterator[SagaRun]:
        """Those whose code has not ended."""
        return iter(list(self._runs))

    def left(self, run: SagaRun) -> None:
        """It has left memory."""
        self._runs[run] = None
        ending = [one.future for one in run.still_ending()]
        if not ending:
            self._ended(run)
            return
        # No task, which could be cut off before it begins, and then would never give the lock back.
        asyncio.gather(*ending, return_exceptions=True).add_done_callback(lambda _: self._ended(run))

    def give_up(self) -> None:
        """The engine is left with what goes on, and may be entered again, in another loop."""
        for run in self:
            self._ended(run)

    def _ended(self, run: SagaRun) -> None:
        if run in self._runs:
            del self._runs[run]
            self._locks.release(run.saga_id)
