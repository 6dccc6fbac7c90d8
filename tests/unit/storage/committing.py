"""A backend of the test's own for the group committer, which settles when the test says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from event_workflow_engine.storage.group_commit import GroupCommitter, Listeners, Verdict
from event_workflow_engine.storage.port import Unit, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Backend:
    """Keeps batches until they are settled by hand."""

    def __init__(self, listeners: Listeners | None = None, **limits: Any) -> None:
        self.batches: list[list[str]] = []
        self.waiting: tuple[list[Unit], Callable[[Sequence[Verdict]], None]] | None = None
        self.listeners = listeners or Listeners()
        self.committer = GroupCommitter(self.execute, self.listeners, **limits)

    def execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        assert self.waiting is None, "two batches in flight"
        self.batches.append([unit.id for unit in units])
        self.waiting = (units, done)

    async def settle(self, **verdicts: Verdict) -> list[str]:
        """Answer the batch in flight; its ids."""
        for _ in range(10):
            if self.waiting is not None:
                break
            await asyncio.sleep(0)
        assert self.waiting is not None, "no batch came"
        (units, done), self.waiting = self.waiting, None
        done([verdicts.get(unit.id, Written(unit.id, ())) for unit in units])
        return [unit.id for unit in units]


def unit(name: str) -> Unit:
    return Unit(name, 0)


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
