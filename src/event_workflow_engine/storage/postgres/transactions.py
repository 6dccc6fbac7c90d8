"""Transactions with user's SQL: over the writing connection, or beside it, where they take their time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from event_workflow_engine.errors import EngineStateError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from event_workflow_engine.storage.group_commit import GroupCommitter, Verdict
    from event_workflow_engine.storage.port import Rows, SqlSession, Unit
    from event_workflow_engine.storage.postgres.commit_order import CommitOrder
    from event_workflow_engine.storage.postgres.crowding import Crowding
    from event_workflow_engine.storage.postgres.user_sql import UserSql
    from event_workflow_engine.storage.postgres.writer import Writer

__all__ = ["ExclusiveTransaction", "SharedTransaction", "Spares"]


class ExclusiveTransaction:
    """A transaction that has the store's lock, and user's SQL in it: one statement at a time, none behind its end.

    Args:
        writer: Whose connection it is on.
        order: See `CommitOrder`.
    """

    connection: Any = None

    def __init__(self, writer: Writer, order: CommitOrder) -> None:
        self._writer = writer
        self._order = order
        self._user_sql: UserSql | None = None
        self._ended = False
        self._turn = asyncio.Lock()

    async def begin(self) -> SqlSession:
        """See `storage.exclusive.ExclusiveTransaction.begin`."""
        self._user_sql = await self._writer.begin_exclusive()
        return self

    async def end(self) -> None:
        """See `storage.exclusive.ExclusiveTransaction.end`."""
        self._ended = True
        async with self._turn:
            pass

    async def abort(self) -> None:
        """See `storage.exclusive.ExclusiveTransaction.abort`."""
        await self._writer.abort_exclusive()

    async def commit(self, unit: Unit) -> Verdict:
        """See `storage.exclusive.ExclusiveTransaction.commit`."""
        assert self._user_sql is not None, "it was begun"
        verdict = await self._writer.commit_exclusive(unit, self._user_sql)
        await self._order.follow([verdict])
        return verdict

    async def execute(self, sql: str, params: Mapping[str, Any], /) -> int:
        """Run a statement; the number of rows it changed."""
        return (await self._run(sql, params))[1]

    async def fetch(self, sql: str, params: Mapping[str, Any], /) -> Rows:
        """Run a query; all its rows."""
        return (await self._run(sql, params))[0]

    async def check(self) -> None:
        """See `SqlSession.check`."""
        async with self._turn:
            await self._open_sql.check()

    async def _run(self, sql: str, params: Mapping[str, Any]) -> tuple[Rows, int]:
        async with self._turn:
            return await self._open_sql.run(sql, params, writes=True)

    @property
    def _open_sql(self) -> UserSql:
        if self._ended or self._user_sql is None:
            raise EngineStateError("the transaction of this session has ended")
        return self._user_sql


class SharedTransaction(ExclusiveTransaction):
    """A transaction that takes the store's lock at its end alone, and waits for nothing else once it was begun.

    Args:
        writer: A spare one.
        order: See `CommitOrder`.
        committer: Beside whose batches it commits.
        check: Called under the lock; raises where what was decided is void.
    """

    def __init__(
        self, writer: Writer, order: CommitOrder, committer: GroupCommitter, check: Callable[[], None]
    ) -> None:
        super().__init__(writer, order)
        self._committer = committer
        self._check = check

    async def begin(self) -> SqlSession:
        """See `storage.exclusive.ExclusiveTransaction.begin`."""
        self._user_sql = await self._writer.begin_shared()
        self.connection = self._user_sql.connection
        return self

    async def commit(self, unit: Unit) -> Verdict:
        """See `storage.exclusive.ExclusiveTransaction.commit`."""
        assert self._user_sql is not None, "it was begun"
        try:
            self._committer.check()
        except EngineStateError as error:
            await self._writer.abort_exclusive()
            return error
        commit = self._order.begin(unit, self._committer)

        async def locked() -> None:
            self._check()
            await commit.locked(self._writer.landed)

        verdict: Verdict = EngineStateError("the event loop was closed while a transaction was under way")
        try:
            verdict = await self._writer.commit_shared(unit, self._user_sql, locked)
        except Exception as error:  # noqa: BLE001 - told to the one who waits
            await self._writer.abort_exclusive()
            verdict = error
        finally:
            await commit.ended(verdict)
        return verdict


class Spares:
    """Writers beside the one of the batches, each with a connection of its own; at most `limit` at a time.

    Args:
        make: Makes one.
        limit: How many.
        crowding: Told of those that are taken.
    """

    def __init__(self, make: Callable[[], Writer], limit: int, crowding: Crowding) -> None:
        self._make = make
        self._crowding = crowding
        self._room = asyncio.Semaphore(limit)
        self._idle: list[Writer] = []
        self._closed = False

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Writer]:
        """One that nobody else has, waiting for it.

        Raises:
            EngineStateError: They were closed meanwhile.
        """
        async with self._room:
            self._require_open()
            writer = self._idle.pop() if self._idle else self._make()
            try:
                with self._crowding.one_more():
                    yield writer
            finally:
                self._idle.append(writer)
                if self._closed:
                    await self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineStateError("the store was closed before a connection was free for this transaction")

    async def close(self) -> None:
        """Close their connections, and those of the ones that are taken when they come back."""
        self._closed = True
        await self._crowding.close()
        idle, self._idle = self._idle, []
        for writer in idle:
            await writer.close()
