"""Waiting until an engine has done all that it can do without its clock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from event_workflow_engine.engine import glance_at

if TYPE_CHECKING:
    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.testing.observed import ObservedStorage
    from event_workflow_engine.testing.threads import Threads

__all__ = ["is_calm", "settle"]

_TURNS: Final = 20
_ROUNDS: Final = 20


def is_calm(engine: WorkflowEngine, observed: ObservedStorage) -> bool:
    """Whether nothing of a saga is under way, nor on its way to the store and back."""
    return glance_at(engine).is_idle and not observed.in_flight


async def settle(engine: WorkflowEngine, observed: ObservedStorage, threads: Threads | None = None) -> None:
    """Wait for what is on its way to the store and back, then until nothing of a saga is under way.

    A plain function in one of the threads is waited for. An async action is only as long as it does something in the
    loop: it may wait for the clock itself.
    """
    glance = glance_at(engine)
    while True:
        for _ in range(_ROUNDS):
            await _turn()
            while observed.in_flight:
                await observed.quiet()
                await _turn()
            if glance.is_idle:
                return
        if threads is None or not await threads.one_returned():
            return


async def _turn() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
