"""Files, disks and neighbours that are not as they should be: typed errors with the path and the remedy."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from typing import TYPE_CHECKING

import pytest
from tests.integration.storage.kit import connecting, names_in, unit, unprivileged

from event_workflow_engine.errors import (
    DefinitionError,
    SchemaVersionError,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage, user_sql
from event_workflow_engine.storage.port import Row, Unit, Written
from event_workflow_engine.storage.sqlite import SqliteStorage, checkpoints
from event_workflow_engine.testing.disk import FaultyDisk

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from event_workflow_engine.storage.port import SqlSession


async def refused(path: Path, error: type[StorageError], *says: str, auto_upgrade: bool = True) -> None:
    """Entering fails with that error, which names the path; and does so again."""
    for _ in range(2):
        with pytest.raises(error) as caught:
            async with SqliteStorage(path, auto_upgrade=auto_upgrade):
                pass
        assert type(caught.value) is error
        for text in (str(path), *says):
            assert text in str(caught.value)


async def filled(path: Path, events: int = 5) -> None:
    async with SqliteStorage(path) as storage:
        for _ in range(events):
            await storage.write(unit("a"))


def alter(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for sql in statements:
        connection.execute(sql)
    connection.commit()
    connection.close()


# -- what is at the path -----------------------------------------------------------------------------------------------


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    await refused(tmp_path / "none" / "a.db", StorageUnavailableError, repr(str(tmp_path / "none")), "create it")


async def test_a_directory(tmp_path: Path) -> None:
    await refused(tmp_path, StorageUnavailableError, "directory")


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 100, b"x", b"\x00" * 4096, b"SQLite format 4\x00" + b"\0" * 500]
)
async def test_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    await refused(path, StorageCorruptError)
    assert path.read_bytes() == content
    assert names_in(tmp_path) == {"notes.txt"}


async def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    alter(path, "CREATE TABLE theirs (a)", "INSERT INTO theirs VALUES (1)")
    content = path.read_bytes()
    await refused(path, StorageCorruptError, "another program")
    assert path.read_bytes() == content
    assert names_in(tmp_path) == {"other.db"}
    alter(path, "DROP TABLE theirs", "PRAGMA application_id = 7")
    await refused(path, StorageCorruptError, "another program")


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    await filled(path)


async def test_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await filled(path, 200)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(StorageError):
        async with SqliteStorage(path) as storage:
            await storage.read_log()
            await storage.write(unit("a"))


# -- the schema --------------------------------------------------------------------------------------------------------


async def test_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await filled(path)
    alter(path, "PRAGMA user_version = 99")
    await refused(path, SchemaVersionError, "99", "upgrade")


async def test_a_schema_that_becomes_newer_under_us(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as storage:
        await storage.write(unit("a"))
        alter(path, "PRAGMA user_version = 99")
        with pytest.raises(SchemaVersionError):
            await storage.write(unit("a"))
        alter(path, "PRAGMA user_version = 1")
        await storage.write(unit("a"))


async def test_an_altered_migration(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await filled(path)
    alter(path, "UPDATE schema_migrations SET checksum = 'x'")
    await refused(path, SchemaVersionError, "0001_initial.sql", "differs")


async def test_migrations_that_nobody_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await filled(path)
    alter(path, "DROP TABLE schema_migrations")
    await refused(path, SchemaVersionError, "not recorded")


async def test_without_auto_upgrade_an_old_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await refused(path, SchemaVersionError, "auto_upgrade", auto_upgrade=False)
    await filled(path)
    async with SqliteStorage(path, auto_upgrade=False) as storage:
        assert await storage.last_position() == 5


# -- permissions -------------------------------------------------------------------------------------------------------


async def test_a_directory_that_cannot_be_written() -> None:
    with unprivileged() as folder:
        folder.chmod(0o555)
        await refused(folder / "a.db", StorageUnavailableError, "mode")


async def test_a_file_that_cannot_be_written() -> None:
    with unprivileged() as folder:
        await filled(folder / "a.db")
        (folder / "a.db").chmod(0o444)
        await refused(folder / "a.db", StorageUnavailableError, "mode")
        (folder / "a.db").chmod(0o644)
        await filled(folder / "a.db")


async def test_a_file_that_cannot_be_read() -> None:
    with unprivileged() as folder:
        await filled(folder / "a.db")
        (folder / "a.db").chmod(0)
        await refused(folder / "a.db", StorageUnavailableError, "mode")


# -- room --------------------------------------------------------------------------------------------------------------


def limited(pages: int) -> Callable[[str], sqlite3.Connection]:
    return connecting(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}"))


@pytest.mark.proves("disk-full", store="sqlite")
async def test_a_full_disk_fails_what_does_not_fit_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path, connect=limited(80)) as storage:
        big = [unit(f"s-{n}", data=b"x" * 60_000) for n in range(12)]
        small = [unit(f"s-{n}") for n in range(12)]
        both = [one for pair in zip(big, small, strict=True) for one in pair]
        results = await asyncio.gather(*(storage.write(one) for one in both), return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        assert failed
        assert {type(error) for error in failed} == {StorageUnavailableError}
        assert all("no room" in str(error) and str(path) in str(error) for error in failed)
        # Those that fit landed although a neighbour in their batch did not.
        assert all(isinstance(result, Written) for result in results[1::2])
        assert isinstance(results[0], Written)
        stored = {record.id for record in await storage.read_log()}
        assert stored == {u.id for u, r in zip(both, results, strict=True) if isinstance(r, Written)}
    async with SqliteStorage(path) as storage:
        again = await asyncio.gather(*(storage.write(one) for one in both))
        assert [r.appended[0].position for r in again if isinstance(r, Written)]
        assert {record.id for record in await storage.read_log()} == {one.id for one in both}


@pytest.mark.proves("disk-full", store="sqlite")
async def test_no_room_for_the_schema(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="no room"):
        async with SqliteStorage(tmp_path / "a.db", connect=limited(3)):
            pass
    await filled(tmp_path / "a.db")


# -- neighbours --------------------------------------------------------------------------------------------------------


async def test_a_program_that_holds_the_database_locked(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path, connect=connecting(lambda _: None, timeout=0.05)) as storage:
        await storage.write(unit("a"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(*(storage.write(unit("a")) for _ in range(50)), return_exceptions=True)
        assert {type(result) for result in results} == {StorageUnavailableError}
        assert "locked" in str(results[0])
        assert await storage.head("a") == 1
        other.execute("COMMIT")
        other.close()
        await storage.write(unit("a"))
        assert await storage.head("a") == 2


@pytest.mark.parametrize("where", ["sqlite", "memory"])
async def test_exclusive_work_that_takes_too_long_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(user_sql, "HOLD_LIMIT_S", 0.05)
    url = f"sqlite:///{tmp_path / 'a.db'}" if where == "sqlite" else "memory://"
    async with open_storage(url) as storage:

        async def work(session: SqlSession) -> None:
            await session.execute("CREATE TABLE own (a)", {})
            await asyncio.Event().wait()

        with pytest.raises(StorageError, match=r"more than 0\.05 s"):
            await storage.exclusive(unit("a"), work)
        await storage.write(unit("a"))
        assert await storage.head("a") == 1
        with pytest.raises(DefinitionError, match="no such table"):
            await storage.fetch("SELECT * FROM own", {})


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("where", ["sqlite", "memory"])
async def test_a_statement_that_ends_the_transaction_ends_all_of_the_work(
    tmp_path: Path, where: str, goes_on: bool
) -> None:
    """Whoever catches its error and goes on writes nothing any more: neither by itself nor with the unit."""
    async with open_storage(f"sqlite:///{tmp_path / 'a.db'}" if where == "sqlite" else "memory://") as storage:

        async def prepare(session: SqlSession) -> None:
            await session.execute("CREATE TABLE own (a UNIQUE)", {})
            await session.execute("INSERT INTO own VALUES (1)", {})

        async def work(session: SqlSession) -> None:
            await session.execute("INSERT INTO own VALUES (2)", {})
            with pytest.raises(StorageError, match="UNIQUE"):
                await session.execute("INSERT OR ROLLBACK INTO own VALUES (1)", {})
            if goes_on:
                with pytest.raises(DefinitionError, match="ended the transaction"):
                    await session.execute("INSERT INTO own VALUES (3)", {})

        await storage.exclusive(unit("a"), prepare)
        with pytest.raises(StorageUnavailableError, match="all of it was undone"):
            await storage.exclusive(unit("a"), work)
        assert await storage.fetch("SELECT a FROM own", {}) == [{"a": 1}]
        assert await storage.head("a") == 1
        await storage.write(unit("a"))


async def test_a_statement_that_never_ends_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_sql, "HOLD_LIMIT_S", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    async with SqliteStorage(tmp_path / "a.db") as storage:

        async def work(session: SqlSession) -> None:
            await session.fetch(endless, {})

        with pytest.raises(StorageError):
            await storage.exclusive(unit("a"), work)
        await storage.write(unit("a"))


def is_locked(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_a_transaction_that_is_idle_keeps_the_lock_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint is due, and nobody wants anything for a while: it waits for the transaction's end all the same."""
    monkeypatch.setattr(checkpoints, "FEW_FRAMES", 0)
    lock = tmp_path / "a.db-ewe.lock"
    async with SqliteStorage(tmp_path / "a.db") as storage:
        await storage.write(unit("a"))
        writer, thread = storage._writing

        async def work(session: SqlSession) -> None:
            await session.execute("CREATE TABLE own (a)", {})
            await thread.call(writer.between_jobs, True)
            assert is_locked(lock)

        await storage.exclusive(unit("a"), work)
        async with asyncio.timeout(10):
            while is_locked(lock):  # noqa: ASYNC110 - by a checkpoint that is due all the time, now and then
                await asyncio.sleep(0)
    assert "checkpoint failed" not in caplog.text


async def test_a_transaction_that_an_error_ended_keeps_the_lock_until_its_work_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is due, and room in the log: both wait."""
    monkeypatch.setattr(checkpoints, "MANY_FRAMES", 0)
    monkeypatch.setattr(checkpoints, "FEW_FRAMES", 0)
    lock = tmp_path / "a.db-ewe.lock"
    async with SqliteStorage(tmp_path / "a.db") as storage:
        writer, thread = storage._writing

        async def prepare(session: SqlSession) -> None:
            await session.execute("CREATE TABLE own (a UNIQUE)", {})
            await session.execute("INSERT INTO own VALUES (1)", {})

        async def work(session: SqlSession) -> None:
            with pytest.raises(StorageError):
                await session.execute("INSERT OR ROLLBACK INTO own VALUES (1)", {})
            await thread.call(writer.between_jobs, False)
            assert is_locked(lock)

        await storage.exclusive(unit("a"), prepare)
        with pytest.raises(StorageUnavailableError):
            await storage.exclusive(unit("a"), work)
        async with SqliteStorage(tmp_path / "a.db") as other:
            await other.write(unit("a"))


async def test_a_process_that_goes_to_another_folder_keeps_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    """A relative path begins where the process was when it named it, also for connections that are opened later."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with FaultyDisk("a.db", rng) as disk:
        async with SqliteStorage("a.db") as storage:
            await storage.write(unit("a"))
            monkeypatch.chdir(tmp_path / "other")
            assert await storage.head("a") == 1
            disk.fail("sync")  # the writer opens another, too
            await storage.write(unit("a"))
            assert disk.failed
            assert await storage.head("a") == 2
    assert names_in(tmp_path / "other") == set()


async def test_positions_are_not_reused_when_rows_are_deleted_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as storage:
        for _ in range(4):
            await storage.write(unit("a"))
        alter(path, "DELETE FROM events WHERE position > 2")
        assert await storage.last_position() == 4
        written = await storage.write(unit("a"))
        assert (written.appended[0].position, written.appended[0].version) == (5, 5)
    alter(path, "DELETE FROM events")
    async with SqliteStorage(path) as storage:
        written = await storage.write(unit("b"))
        assert written.appended[0].position == 6


async def test_ids_of_row_units_are_pruned_a_week_behind_the_newest(tmp_path: Path) -> None:
    day = 24 * 3600 * 1_000_000
    path = tmp_path / "a.db"

    def row_unit(name: str, at: int) -> Unit:
        return Unit(name, at, rows=(Row("slots", "upsert", (name, 1), {"done": 0}),))

    async with SqliteStorage(path) as storage:
        await storage.write(row_unit("old", day))
        await storage.write(row_unit("recent", 5 * day))
        # Upkeep comes with checkpoints, and those with much written.
        for turn in range(60):
            units = [unit(uuid7(), data=b"x" * 2000) for _ in range(100)]
            await asyncio.gather(*(storage.write(one) for one in units), storage.write(row_unit(f"new{turn}", 9 * day)))
        while await storage.outcome("old") is not None:
            await storage.write(unit("a", data=b"x" * 100_000))
        assert await storage.outcome("recent") == Written("recent", ())
        assert await storage.outcome("new0") == Written("new0", ())


async def test_the_log_file_stays_small_and_is_gone_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as storage:
        for _ in range(40):
            await asyncio.gather(*(storage.write(unit(f"s-{n}", data=b"x" * 4000)) for n in range(100)))
        status = await storage.status()
        assert status["file_size"] > 10_000_000
        assert status["wal_size"] < 16_000_000
        assert (status["journal_mode"], status["synchronous"]) == ("wal", "FULL")
    assert names_in(tmp_path) == {"a.db", "a.db-ewe.lock", "a.db-ewe.turn"}
