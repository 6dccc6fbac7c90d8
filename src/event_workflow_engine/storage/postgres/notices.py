"""Hearing of other processes' commits: notifications, with looking as the net below them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.storage.exclusive import to_the_end
from event_workflow_engine.storage.postgres.announcer import commits_in
from event_workflow_engine.storage.postgres.connections import fetch_named
from event_workflow_engine.storage.postgres.errors import DRIVER_ERRORS, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from event_workflow_engine.storage.postgres.address import Address

__all__ = ["Notices"]

_log = logging.getLogger("event_workflow_engine.storage")

LOOK_S: Final = 1.0
"""How often a listener looks whether it missed something."""

DEAF_LOOK_S: Final = 0.25
"""The same where nothing is ever heard, as behind a pooler that shares its connections."""

_GATHER_S: Final = 0.004
"""After a ring the next one waits so long: of a busy store every process would else be woken by every commit."""

_BACK_OFF_S: Final = 0.5


class Notices:
    """Rings when others commit.

    Args:
        address: Whose commits.
        sender: The name of this store object, whose own commits ring elsewhere.
        ring: Called on the loop.
    """

    def __init__(self, address: Address, sender: str, ring: Callable[[], None]) -> None:
        self._address = address
        self._sender = sender
        self._ring = ring
        self._task: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._again = False
        self._own = 0
        self._heard = 0
        self.deaf = address.listen_dsn is None

    def start(self) -> None:
        """Begin to listen, and to look."""
        self._task = asyncio.create_task(self._listen_for_ever(), name="ewe-notices")

    async def stop(self) -> None:
        """Listen no longer."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def own_commit(self) -> None:
        """This process committed: what is counted for that is nobody else's."""
        self._own += 1

    async def _listen_for_ever(self) -> None:
        complained = False
        while True:
            try:
                connection = await self._connect()
                try:
                    complained = False
                    await self._listen(connection)
                finally:
                    with suppress(*DRIVER_ERRORS):
                        connection.terminate()
            except (WorkflowError, *DRIVER_ERRORS) as error:
                if not complained:
                    complained = True
                    _log.warning("not listening, trying again: %s", storage_error(error, self._address.shown))
            await asyncio.sleep(_BACK_OFF_S)

    async def _connect(self) -> asyncpg.Connection[Any]:
        # To its end even when this task is cancelled: a connection that is cut off while it is made complains later.
        job = asyncio.ensure_future(self._address.connect(self._address.listen_dsn))
        try:
            return await to_the_end(job)
        except asyncio.CancelledError:
            if not job.cancelled() and job.exception() is None:
                job.result().terminate()
            raise

    async def _listen(self, connection: asyncpg.Connection[Any]) -> None:
        if self._address.listen_dsn is not None:
            await connection.add_listener(self._address.channel, self._hear)
        base = await self._count(connection) - self._own - self._heard
        missed_before = rings = 0
        self.ring()  # for what was committed while nobody listened
        while not connection.is_closed():
            await asyncio.sleep(DEAF_LOOK_S if self.deaf else LOOK_S)
            missed = await self._count(connection) - self._own - self._heard - base
            if missed != missed_before:
                missed_before = missed
                # The count runs ahead of the commit, which may be seen only at the next look.
                rings = 2
                self.deaf = missed > 0
            if rings:
                rings -= 1
                self.ring()

    async def _count(self, connection: asyncpg.Connection[Any]) -> int:
        (row,) = await fetch_named(connection, self._address.schema, "commits", {})
        return int(row["last_value"])

    def _hear(self, _connection: object, _pid: int, _channel: str, message: object) -> None:
        name, commits = commits_in(str(message))
        if name != self._sender:
            self._heard += commits
            self.deaf = False
            self.ring()

    def ring(self) -> None:
        """Ring now, or a moment after the last time."""
        if self._pause is not None:
            self._again = True
            return
        self._pause = asyncio.get_running_loop().call_later(_GATHER_S, self._gathered)
        self._ring()

    def _gathered(self) -> None:
        self._pause = None
        if self._again:
            self._again = False
            self.ring()
