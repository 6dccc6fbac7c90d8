"""Tells where nothing gets through while users' transactions are open, which may have all connections of a pooler."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import WorkflowError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine.storage.postgres.connections import Connections

__all__ = ["Crowding"]

_log = logging.getLogger("event_workflow_engine.storage")

_LOOK_S: Final = 1.0
_LATE_S: Final = 1.0
"""A statement that does nothing is answered within milliseconds, whatever others do in the server."""

_AGAIN_S: Final = 60.0


class Crowding:
    """Asks now and then, while transactions are open, and only then, whether a statement is answered.

    What a pooler has, and who else has it, nobody tells its clients. What waits for it looks like a slow server, until
    a worker is taken for dead for the want of a heartbeat.

    Args:
        connections: Over which to ask.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._told_at = float("-inf")
        self._closed = False

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A transaction has a connection meanwhile."""
        self._open += 1
        self._see_to_it()
        try:
            yield
        finally:
            self._open -= 1

    async def close(self) -> None:
        """Ask no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _see_to_it(self) -> None:
        if self._timer is None and not self._closed and (self._asking is None or self._asking.done()):
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._open:
            self._asking = self._loop.create_task(self._ask(), name="ewe-crowding")

    async def _ask(self) -> None:
        asking = asyncio.ensure_future(self._connections.query("server_age", {}))
        try:
            await asyncio.wait((asking,), timeout=_LATE_S)
            if not asking.done():
                self._tell()
            await asking
        except WorkflowError:
            return  # the server is away, of which others tell
        finally:
            asking.cancel()
            if self._open and not self._closed:
                self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _tell(self) -> None:
        now, address = self._loop.time(), self._connections.address
        if not self._open or now - self._told_at < _AGAIN_S:
            return
        self._told_at = now
        _log.warning("%s: a statement that does nothing has had no answer for %g s, while %d transactional steps of "
                     "this process are open. Where a pooler is before the server, such steps, those of other processes "
                     "among them, have all its connections, and heartbeats wait for one: give it %d for each process "
                     "at least, or lower pool=",
                     address.shown, _LATE_S, self._open, address.transactions + 1)  # fmt: skip
