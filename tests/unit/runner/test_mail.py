"""Reading an inbox whose saga leaves memory meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from event_workflow_engine.runner.mail import Mail
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Coroutine


async def test_a_look_that_was_asked_for_before_the_saga_left_memory_finds_nothing_to_do() -> None:
    spawned: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        spawned.append(asyncio.ensure_future(work))

    async with open_storage("memory://") as storage:
        host = SimpleNamespace(spawn=spawn)
        run: Any = SimpleNamespace(kit=SimpleNamespace(host=host, storage=storage), closed=False, saga_id="s-1")
        mail = Mail(run)
        mail.look()
        run.closed = True
        mail.close()
        (task,) = spawned
        await task
    assert task.exception() is None
