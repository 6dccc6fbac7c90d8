"""Telling other processes of commits: the first of a run at once, those right behind it together."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.storage.postgres.connections import fetch_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.storage.postgres.connections import Connections

__all__ = ["Announcer", "commits_in"]

_log = logging.getLogger("event_workflow_engine.storage")

_RUN_S: Final = 0.003
"""Commits so soon after a notification go without one of their own. Listeners wait as long after a ring anyway."""

_LATE_S: Final = 0.004
"""So long after a notification all that went without is told of, if no commit has done so meanwhile."""

_CLOSING_S: Final = 1.0


class Announcer:
    """Decides which commits of this process notify the others; shared by all that write for one store object.

    A notification makes the server wake each process that listens, this one among them, and takes a lock of the whole
    cluster while it commits: a tenth of what a step of one saga alone costs. Every commit is counted in the database
    all the same, so what is not told of, for this process died, is found by who looks at the count.

    Args:
        connections: Whose database it is.
        sender: Names this store object to the others.
        on_commit: Called for each commit that was counted.
    """

    def __init__(self, connections: Connections, sender: str, on_commit: Callable[[], None]) -> None:
        self._connections = connections
        self._channel = connections.address.channel
        self._sender = sender
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._last = float("-inf")
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    def begin(self) -> dict[str, str | None]:
        """The parameters that tell of a commit that is about to be made."""
        now = self._loop.time()
        sender = None
        if now - self._last >= _RUN_S:
            self._last = now
            sender = self._message(self._untold + 1)
            self._untold = 0
        return {"channel": self._channel, "sender": sender}

    def made(self, told: dict[str, str | None]) -> None:
        """The commit was made: it can be seen by who is told of it."""
        self._on_commit()
        if told["sender"] is None:
            self._untold += 1
            self._see_to_it()

    def failed(self, told: dict[str, str | None]) -> None:
        """It was not, as far as is known; what it would have told is told by the next."""
        if told["sender"] is not None:
            self._untold += commits_in(told["sender"])[1] - 1
            self._last = float("-inf")
            self._see_to_it()

    def undone(self, told: dict[str, str | None]) -> None:
        """It was counted, which cannot be undone, but has not committed, as far as is known."""
        self._on_commit()
        self._untold += 1 if told["sender"] is None else commits_in(told["sender"])[1]
        self._see_to_it()

    async def close(self) -> None:
        """Tell of what is left, unless that takes long: others find it by looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        telling = self._loop.create_task(self._tell_the_rest(self._telling), name="ewe-announce")
        await asyncio.wait((telling,), timeout=_CLOSING_S)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    def _message(self, commits: int) -> str:
        return f"{self._sender} {commits}"

    def _see_to_it(self) -> None:
        if self._untold and self._timer is None:
            self._timer = self._loop.call_later(_LATE_S, self._late)

    def _late(self) -> None:
        self._timer = None
        if not self._untold:
            return
        left = self._last + _LATE_S - self._loop.time()
        if left > 0:  # a commit has told meanwhile, and others came behind it
            self._timer = self._loop.call_later(left, self._late)
        elif self._telling is None or self._telling.done():
            self._telling = self._loop.create_task(self._tell(), name="ewe-announce")
        else:
            self._see_to_it()

    async def _tell_the_rest(self, telling: asyncio.Task[None] | None) -> None:
        if telling is not None:
            await telling
        if self._untold:
            await self._tell()

    async def _tell(self) -> None:
        untold, self._untold = self._untold, 0
        self._last = self._loop.time()
        told = {"channel": self._channel, "sender": self._message(untold)}
        try:
            await self._connections.read(
                lambda connection: fetch_named(connection, self._connections.address.schema, "tell", told)
            )
        except WorkflowError as error:
            # Whoever listens looks at the count of commits every second, too.
            _log.info("others were not told of %d commits, and find out by looking: %s", untold, error)


def commits_in(message: str) -> tuple[str, int]:
    """Who sent a notification, and of how many commits it tells."""
    sender, _, commits = message.partition(" ")
    return sender, int(commits) if commits.isdecimal() else 1
