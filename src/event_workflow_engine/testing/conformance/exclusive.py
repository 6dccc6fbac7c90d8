# ruff: noqa: PLR2004 - the numbers are the expectation
"""Exclusive work: user's SQL and a unit, both or neither."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.errors import (
    DefinitionError,
    EngineStateError,
    StorageError,
    VersionConflictError,
)
from event_workflow_engine.testing.conformance.kit import Cases, events, row_unit, saga, unit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.storage.port import SqlSession, Storage

CREATE = "CREATE TABLE IF NOT EXISTS ledger (account TEXT NOT NULL UNIQUE, cents BIGINT NOT NULL)"
INSERT = "INSERT INTO ledger (account, cents) VALUES (:account, :cents)"
COUNT = "SELECT count(*) AS n FROM ledger"

# What SQL of projections must not do.
FORBIDDEN = [
    "COMMIT",
    "ROLLBACK",
    "BEGIN",
    "SAVEPOINT x",
    "PRAGMA user_version = 9",
    "ATTACH DATABASE ':memory:' AS other",
    "VACUUM",
]


def insert(account: str, cents: int = 1) -> Callable[[SqlSession], Awaitable[None]]:
    """Work that makes the table and adds a row."""

    async def work(session: SqlSession) -> None:
        await session.execute(CREATE, {})
        assert await session.execute(INSERT, {"account": account, "cents": cents}) == 1

    return work


class ExclusiveCases(Cases):
    """Work in a transaction of its own."""

    async def _count(self, storage: Storage) -> int:
        ((n,),) = [tuple(row.values()) for row in await storage.fetch(COUNT, {})]
        return int(n)

    async def test_both(self, storage: Storage) -> None:
        """The user's rows and the unit are there together; the session reads its own writes."""
        seen: list[Any] = []

        async def work(session: SqlSession) -> None:
            await insert("a", 5)(session)
            seen.extend(await session.fetch("SELECT * FROM ledger WHERE account = :a", {"a": "a"}))

        told: list[Any] = []
        storage.add_commit_hook(told.extend)
        new = unit(events("x", expected=0), rows=[saga("s1")])
        written = await storage.exclusive(new, work)
        assert seen == [{"account": "a", "cents": 5}] == await storage.fetch("SELECT * FROM ledger", {})
        assert written.appended[0].position == 1
        assert await storage.head("x") == 1
        assert told == [(new, written)]

    async def test_neither_when_the_work_raises(self, storage: Storage) -> None:
        """What it raised comes out, and nothing stays."""
        await storage.exclusive(unit(events("x")), insert("a"))

        async def work(session: SqlSession) -> None:
            await insert("b")(session)
            raise LookupError("no")

        with pytest.raises(LookupError):
            await storage.exclusive(unit(events("x")), work)
        assert await self._count(storage) == 1
        assert await storage.head("x") == 1
        await storage.write(unit(events("x")))

    async def test_neither_when_the_unit_loses(self, storage: Storage) -> None:
        """The work is undone."""
        await storage.exclusive(unit(events("x")), insert("a"))
        with pytest.raises(VersionConflictError):
            await storage.exclusive(unit(events("x", expected=7)), insert("b"))
        assert await self._count(storage) == 1

    async def test_a_unit_that_landed_is_not_worked_for_again(self, storage: Storage) -> None:
        """The same unit again returns the first answer, and its work is undone."""
        new = unit(events("x"))
        first = await storage.exclusive(new, insert("a"))
        assert await storage.exclusive(new, insert("b")) == first
        assert await self._count(storage) == 1

    async def test_writes_from_inside_are_refused(self, storage: Storage) -> None:
        """They would wait for the end of what waits for them: a typed error, at once, and no deadlock."""
        errors: list[BaseException] = []

        async def note(attempt: Awaitable[object]) -> None:
            try:
                await attempt
            except EngineStateError as error:
                errors.append(error)

        async def work(session: SqlSession) -> None:
            await note(storage.write(row_unit(saga("s1"))))
            await note(storage.submit(row_unit(saga("s2"))))
            await note(storage.perform("claim_saga", worker="w", id="s"))
            await note(asyncio.create_task(storage.write(row_unit(saga("s3")))))
            await note(storage.exclusive(row_unit(saga("s4")), insert("z")))
            await insert("a")(session)

        await storage.exclusive(unit(events("x")), work)
        assert len(errors) == 5
        assert await storage.query("sagas_count") == []
        assert await self._count(storage) == 1

    async def test_others_wait(self, storage: Storage) -> None:
        """What others submit meanwhile lands behind, and is not seen in between."""
        inside, leave = asyncio.Event(), asyncio.Event()

        async def work(session: SqlSession) -> None:
            await insert("a")(session)
            inside.set()
            await leave.wait()

        task = asyncio.create_task(storage.exclusive(unit(events("x")), work))
        await inside.wait()
        other = storage.submit(unit(events("y")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not other.done()
        assert await storage.last_position() == 0
        leave.set()
        assert (await task).appended[0].position == 1
        assert (await other).appended[0].position == 2

    async def test_cancelled_it_is_undone(self, storage: Storage) -> None:
        """And the store is free again."""
        await storage.exclusive(unit(events("x")), insert("a"))
        inside = asyncio.Event()

        async def work(session: SqlSession) -> None:
            await insert("b")(session)
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(storage.exclusive(unit(events("x")), work))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await storage.write(unit(events("x")))
        assert await self._count(storage) == 1

    async def test_the_session_ends_with_the_work(self, storage: Storage) -> None:
        """It cannot be kept and used behind the commit."""
        kept: list[SqlSession] = []

        async def work(session: SqlSession) -> None:
            kept.append(session)

        await storage.exclusive(unit(events("x")), work)
        with pytest.raises(EngineStateError):
            await kept[0].execute(CREATE, {})

    @pytest.mark.parametrize("sql", FORBIDDEN)
    async def test_what_sql_of_projections_must_not_do(self, storage: Storage, sql: str) -> None:
        """Transactions, settings and other files are the engine's."""

        async def work(session: SqlSession) -> None:
            await insert("a")(session)
            with pytest.raises(DefinitionError):
                await session.execute(sql, {})

        await storage.exclusive(unit(events("x")), work)
        assert await self._count(storage) == 1
        with pytest.raises(DefinitionError):
            await storage.fetch(sql, {})

    async def test_mistakes_have_names(self, storage: Storage) -> None:
        """A mistake in SQL is a `DefinitionError` with the SQL in it, a broken constraint a `StorageError`."""
        await storage.exclusive(unit(events("x")), insert("a"))

        async def attempt(sql: str, params: dict[str, Any]) -> None:
            async def work(session: SqlSession) -> None:
                await session.execute(sql, params)

            await storage.exclusive(unit(events("x")), work)

        for sql, params in (
            ("SELEC 1", {}),
            ("INSERT INTO nowhere VALUES (1)", {}),
            (INSERT, {}),
            (INSERT, {"account": object(), "cents": 1}),
            (INSERT, {"account": "b", "cents": 2**64}),
            (INSERT, {"account": "\ud800", "cents": 1}),
            ("SELECT 1; SELECT 2", {}),
        ):
            with pytest.raises(DefinitionError) as caught:
                await attempt(sql, params)
            assert sql in str(caught.value)
        with pytest.raises(StorageError):
            await attempt(INSERT, {"account": "a", "cents": 1})
        assert await self._count(storage) == 1
        assert await storage.head("x") == 1

    async def test_fetch_only_reads(self, storage: Storage) -> None:
        """Statements that write are refused, and write nothing."""
        await storage.exclusive(unit(events("x")), insert("a"))
        for sql in (
            "DELETE FROM ledger",
            "DROP TABLE ledger",
            INSERT,
            "CREATE TABLE t (a)",
            "UPDATE ledger SET cents=0",
        ):
            with pytest.raises(DefinitionError):
                await storage.fetch(sql, {"account": "b", "cents": 1})
        assert await storage.fetch("SELECT * FROM ledger", {}) == [{"account": "a", "cents": 1}]
