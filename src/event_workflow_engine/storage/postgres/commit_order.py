"""Tells of commits in the order in which they were made, where transactions commit beside the batches.

Who has a transaction open must wait for nothing but the server: behind a pooler, what it waits for may need the very
connection that it holds, and of a wait within this process the server's search for deadlocks knows nothing. So each
transaction takes the store's lock when it is ready. What is put in order here is only what the process hears of it,
when nothing is held any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from event_workflow_engine.storage.group_commit import Listeners
from event_workflow_engine.storage.port import Written

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from event_workflow_engine.storage.group_commit import GroupCommitter, Verdict
    from event_workflow_engine.storage.port import Unit

__all__ = ["CommitOrder", "SideCommit"]


class CommitOrder(Listeners):
    """The listeners of a store, told in the order of commits, in whatever order the server's answers arrive.

    Everything commits under the store's lock. A transaction sends its COMMIT when it has been told that it has the
    lock, so these answers come in the order of commits. While it has the lock it asks which units in flight have
    landed: they were before it, and the others will be behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun: list[SideCommit] = []
        self._locked: list[SideCommit] = []  # in the order of commits

    def begin(self, unit: Unit, committer: GroupCommitter) -> SideCommit:
        """A transaction is about to commit `unit`, beside what `committer` has in flight."""
        commit = SideCommit(self, unit, committer)
        self._begun.append(commit)
        return commit

    def enter(self, commit: SideCommit) -> None:
        """It has the lock."""
        self._locked.append(commit)

    def drop(self, commit: SideCommit) -> None:
        """There is nothing to tell of it."""
        if commit in self._locked:
            self._locked.remove(commit)
        self._told(commit)

    async def follow(self, verdicts: Sequence[Verdict]) -> None:
        """Return when that can be told to which the main connection has had these answers.

        A transaction whose COMMIT is on its way may have been before it, and then is told of before it.
        """
        if not self._locked:
            return
        written = {verdict.unit_id for verdict in verdicts if isinstance(verdict, Written)}
        for commit in [one for one in self._locked if one.sent and not written <= one.behind]:
            await commit.over

    def announce(self, committed: Sequence[tuple[Unit, Written]]) -> None:
        """See `Listeners.announce`. Tells of the transactions, too, whose turn has come with that."""
        if not self._locked:
            if committed:
                super().announce(committed)
            return
        ready: list[SideCommit] = []
        for commit in self._locked:
            if not commit.sent:  # it is behind all that is known of, or has lost the lock and will never commit
                continue
            if not commit.over.done() or commit.waits():
                break
            ready.append(commit)
        for commit in ready:
            self._locked.remove(commit)
        rest, merged = list(committed), list[tuple["Unit", Written]]()
        for commit in ready:
            merged += [one for one in rest if one[0].id in commit.behind]
            rest = [one for one in rest if one[0].id not in commit.behind]
            merged += commit.written
        try:
            if merged or rest:
                super().announce(merged + rest)
        finally:
            for commit in ready:
                self._told(commit)

    def _told(self, commit: SideCommit) -> None:
        self._begun.remove(commit)
        commit.told.set_result(None)

    async def settled(self, unit_id: str) -> None:
        """Wait while a transaction that commits a unit of that id is under way."""
        while waiting := [one.told for one in self._begun if one.unit.id == unit_id]:
            await asyncio.wait(waiting)

    async def close(self) -> None:
        """Wait until no transaction commits any more."""
        while self._begun:
            await asyncio.wait([one.told for one in self._begun])


class SideCommit:
    """A transaction that commits beside the batches.

    Attributes:
        unit: What it commits.
        written: The unit with its verdict, where it was written.
        behind: Those units that were in flight when it had the lock, and had landed before.
        sent: From here on it may have committed.
        over: Done when it is known whether it has.
        told: Done when those who listen know.
    """

    def __init__(self, order: CommitOrder, unit: Unit, committer: GroupCommitter) -> None:
        loop = asyncio.get_running_loop()
        self.unit = unit
        self.written: tuple[tuple[Unit, Written], ...] = ()
        self.behind: frozenset[str] = frozenset()
        self.sent = False
        self._follows = False
        self.over: asyncio.Future[None] = loop.create_future()
        self.told: asyncio.Future[None] = loop.create_future()
        self._order = order
        self._committer = committer

    async def locked(self, landed: Callable[[list[str]], Awaitable[Collection[str]]]) -> None:
        """It has the lock, and keeps it to its end.

        Args:
            landed: Tells which of those units are in the store.
        """
        self._order.enter(self)
        in_flight = self._committer.in_flight()
        if in_flight:
            # What was told of while this was asked needs not be waited for.
            self.behind = frozenset(await landed(in_flight)).intersection(self._committer.in_flight())
        self.sent = True

    async def ended(self, verdict: Verdict) -> None:
        """What became of it. Returns when those who listen know, in its turn."""
        self.over.set_result(None)
        if not isinstance(verdict, Written):
            self._order.drop(self)
            self._order.announce(())
            return
        self.written = ((self.unit, verdict),)
        for unit_id in self.behind:
            await self._committer.settled(unit_id)
        self._follows = True
        self._order.announce(())
        await self.told

    def waits(self) -> bool:
        """Whether something that was before it is yet to be told of."""
        # Whoever writes such a unit again, once it was told of, has this one wait no more.
        return not self._follows and not self.behind.isdisjoint(self._committer.in_flight())
