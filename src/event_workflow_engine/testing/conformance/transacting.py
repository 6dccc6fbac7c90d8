# ruff: noqa: PLR2004 - the numbers are the expectation
"""User's SQL in a transaction, and a unit that is made when it is done: both or neither."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from event_workflow_engine.errors import (
    DefinitionError,
    EngineStateError,
    OwnershipLostError,
    RowConflictError,
    StorageError,
    VersionConflictError,
)
from event_workflow_engine.storage.port import Row, WorkerRef
from event_workflow_engine.testing.conformance.exclusive import COUNT, CREATE, FORBIDDEN, INSERT
from event_workflow_engine.testing.conformance.kit import Cases, events, row_unit, saga, unit, worker

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from event_workflow_engine.storage.port import SqlSession, Storage, Unit


class _Ledger:
    """A table of a name of its own."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._name = f"ledger_{uuid4().hex[:12]}"
        self.create = CREATE.replace("ledger", self._name)

    async def insert(self, session: SqlSession, account: str = "a", cents: int = 5) -> None:
        """Add a row."""
        sql = INSERT.replace("ledger", self._name)
        assert await session.execute(sql, {"account": account, "cents": cents}) == 1

    async def count(self, session: SqlSession | None = None) -> int:
        """How many rows there are, inside of a transaction or behind it."""
        ((n,),) = [
            tuple(r.values()) for r in await (session or self._storage).fetch(COUNT.replace("ledger", self._name), {})
        ]
        return int(n)


class TransactCases(Cases):
    """Transactions that end with a unit."""

    async def _table(self, storage: Storage) -> _Ledger:
        """A table of the user's: unqualified names may mean a schema that many stores of a database share."""
        ledger = _Ledger(storage)

        async def work(session: SqlSession) -> Unit:
            await session.execute(ledger.create, {})
            return unit(events("made"))

        await storage.transact(work)
        return ledger

    async def test_a_transaction_and_its_unit(self, storage: Storage) -> None:
        """The unit is of what the work found; hooks hear of it."""
        ledger = await self._table(storage)
        told: list[Any] = []
        storage.add_commit_hook(told.extend)

        async def work(session: SqlSession) -> Unit:
            await ledger.insert(session)
            await session.check()
            return unit(events(f"x-{await ledger.count(session)}", 2))

        written = await storage.transact(work)
        assert (written.appended[0].stream, written.appended[0].version) == ("x-1", 2)
        assert await ledger.count() == 1
        assert [one for _, one in told] == [written]

    async def test_no_transaction_when_its_work_raises(self, storage: Storage) -> None:
        """What it raised comes out, and nothing stays."""
        ledger = await self._table(storage)

        async def work(session: SqlSession) -> Unit:
            await ledger.insert(session)
            raise LookupError("no")

        with pytest.raises(LookupError):
            await storage.transact(work)
        assert await ledger.count() == 0
        await storage.write(unit(events("x")))

    async def test_no_transaction_when_its_unit_loses(self, storage: Storage) -> None:
        """By a version, a row, or a worker that was declared dead meanwhile."""
        ledger = await self._table(storage)
        await storage.write(row_unit(worker("w1"), saga("s1", owner="w1", fence=1)))
        await storage.write(unit(events("x")))
        taken = Row("sagas", "check", ("s1",), {}, {"owner": "w1", "fence": 2})
        dead = WorkerRef("w1", 2)
        losers = [unit(events("x", expected=0)), row_unit(taken), unit(events("y"), by=dead)]
        kinds = [VersionConflictError, RowConflictError, OwnershipLostError]
        for n, (loser, kind) in enumerate(zip(losers, kinds, strict=True)):

            async def work(session: SqlSession, n: int = n, loser: Unit = loser) -> Unit:
                await ledger.insert(session, f"a{n}")
                return loser

            with pytest.raises(kind):
                await storage.transact(work)
        assert await ledger.count() == 0
        assert await storage.head("x") == 1

    async def test_no_transaction_for_a_unit_that_landed(self, storage: Storage) -> None:
        """The same unit again returns the first answer, and its work is undone."""
        ledger = await self._table(storage)
        same = unit(events("x"))

        async def work(session: SqlSession) -> Unit:
            account = f"a{await storage.head('x')}"
            await ledger.insert(session, account)
            return same

        first = await storage.transact(work)
        assert await storage.transact(work) == first
        assert await ledger.count() == 1

    async def test_one_that_is_cancelled_leaves_nothing(self, storage: Storage) -> None:
        """Neither rows nor a lock: the next goes on."""
        ledger = await self._table(storage)
        inside = asyncio.Event()

        async def work(session: SqlSession) -> Unit:
            await ledger.insert(session)
            inside.set()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        task = asyncio.create_task(storage.transact(work))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ledger.count() == 0
        await storage.write(unit(events("x")))

    async def test_writes_inside_of_a_transaction_are_refused(self, storage: Storage) -> None:
        """They would be no part of it, or wait for it."""
        errors: list[BaseException] = []

        async def note(attempt: Awaitable[object]) -> None:
            try:
                await attempt
            except EngineStateError as error:
                errors.append(error)

        async def work(_: SqlSession) -> Unit:
            await note(storage.write(row_unit(saga("s1"))))
            await note(storage.transact(work))
            await note(asyncio.create_task(storage.write(row_unit(saga("s3")))))
            return unit(events("x"))

        await storage.transact(work)
        assert len(errors) == 3
        assert await storage.query("sagas_count") == []
        await storage.write(row_unit(saga("s1")))

    async def test_what_it_must_not(self, storage: Storage) -> None:
        """Ending the transaction is the engine's; its tables are its own."""
        for sql in (*FORBIDDEN, "DELETE FROM sagas", "UPDATE events SET type = 'x'"):

            async def work(session: SqlSession, sql: str = sql) -> Unit:
                await session.execute(sql, {})
                return unit(events("x"))

            with pytest.raises((DefinitionError, StorageError)):
                await storage.transact(work)
        assert await storage.head("x") == 0

    async def test_sessions_end_with_their_transactions(self, storage: Storage) -> None:
        """One that is kept cannot be used any more."""
        kept: list[SqlSession] = []

        async def work(session: SqlSession) -> Unit:
            kept.append(session)
            return unit(events("x"))

        await storage.transact(work)
        with pytest.raises(EngineStateError):
            await kept[0].execute(CREATE, {})

    async def test_many_at_once(self, storage: Storage) -> None:
        """Each commits once, whatever order they take."""
        ledger = await self._table(storage)

        async def one(n: int) -> None:
            async def work(session: SqlSession) -> Unit:
                await ledger.insert(session, f"a{n}", n)
                return unit(events("hot"))

            await storage.transact(work)

        await asyncio.gather(*(one(n) for n in range(30)), *(storage.write(unit(events("hot"))) for _ in range(30)))
        assert await ledger.count() == 30
        assert await storage.head("hot") == 60
        positions = [record.position for record in await storage.read_log(limit=100)]
        assert positions == sorted(set(positions))
