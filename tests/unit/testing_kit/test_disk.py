"""The faulty disk: it keeps what was synced, may lose what was not, and fails the operations that it was told."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.testing import sqlite_vfs
from event_workflow_engine.testing.disk import FaultyDisk
from event_workflow_engine.testing.sqlite_vfs import Vfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = "SELECT count(*) FROM t"


@pytest.fixture
def disk(tmp_path: Path, rng: random.Random) -> Iterator[FaultyDisk]:
    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        yield disk


def database(disk: FaultyDisk, synchronous: str, mode: str = "WAL") -> sqlite3.Connection:
    connection = sqlite3.connect(disk.path, isolation_level=None)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE t (a)")
    return connection


def rows_in(path: Path) -> int:
    """How many rows are in what a power loss left; -1 where it is damaged or no database at all."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return -1
            return int(connection.execute(ROWS).fetchone()[0])
        except sqlite3.DatabaseError:
            return -1


@pytest.mark.parametrize(("mode", "synchronous"), [("WAL", "FULL"), ("DELETE", "EXTRA")])
def test_what_was_synced_outlives_a_power_loss(disk: FaultyDisk, tmp_path: Path, mode: str, synchronous: str) -> None:
    (tmp_path / "left").mkdir()
    with closing(database(disk, synchronous, mode)) as connection:
        for n in range(30):
            connection.execute("INSERT INTO t VALUES (?)", (n,))
            assert rows_in(disk.lose_power(tmp_path / "left")) == n + 1


def test_a_deletion_may_be_lost_whose_folder_was_not_synced(disk: FaultyDisk, tmp_path: Path) -> None:
    """As SQLite's manual has it: with a rollback journal only EXTRA syncs the folder behind the deletion that commits."""
    (tmp_path / "left").mkdir()
    with closing(database(disk, "FULL", "DELETE")) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        assert rows_in(disk.lose_power(tmp_path / "left", keep=0)) == 0
        assert rows_in(disk.lose_power(tmp_path / "left", keep=1)) == 1


def test_what_was_not_synced_is_lost_or_torn(disk: FaultyDisk, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    with closing(database(disk, "NORMAL")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found = set()
        for n in range(30):
            connection.execute("INSERT INTO t VALUES (?)", (n,))
            found.add(rows_in(disk.lose_power(tmp_path / "left", keep=0.9)) - n - 1)
        assert rows_in(disk.lose_power(tmp_path / "left", keep=0)) == 0
        assert rows_in(disk.lose_power(tmp_path / "left", keep=1)) == 30
    assert len(found) > 2, "more or less of the last is lost, as the seed will have it"


def test_a_file_is_lost_whose_folder_was_not_synced(disk: FaultyDisk, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    with closing(database(disk, "OFF")) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        assert not disk.lose_power(tmp_path / "left", keep=0).exists()
        assert rows_in(disk.lose_power(tmp_path / "left", keep=1)) == 1


def test_the_nth_operation_fails_and_those_behind_it_do_not(disk: FaultyDisk) -> None:
    with closing(database(disk, "FULL")) as connection:
        disk.fail("sync", at=3, of="-wal")
        outcomes = []
        for n in range(5):
            try:
                connection.execute("INSERT INTO t VALUES (?)", (n,))
                outcomes.append(0)
            except sqlite3.OperationalError as error:
                outcomes.append(error.sqlite_errorcode)
        assert outcomes == [0, 0, sqlite3.SQLITE_IOERR_FSYNC, 0, 0]
        assert disk.failed == 1
        disk.fail("write", code=sqlite3.SQLITE_FULL, times=math.inf)
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError, match="full"):
                connection.execute("INSERT INTO t VALUES (9)")
        disk.heal()
        connection.execute("INSERT INTO t VALUES (10)")
        assert connection.execute(ROWS).fetchone() == (5,)


class Unlucky(random.Random):
    """Keeps nothing that may be lost."""

    def random(self) -> float:
        return 0.999

    def choice(self, seq: Any) -> Any:
        return seq[0]


def test_a_failed_sync_has_lost_what_it_was_to_sync(tmp_path: Path) -> None:
    """Linux forgets what it could not write, and says so once: the next sync succeeds, and brings nothing of it."""
    (tmp_path / "left").mkdir()
    with FaultyDisk(tmp_path / "a.db", Unlucky()) as disk, closing(database(disk, "NORMAL")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("INSERT INTO t VALUES (1)")
        disk.fail("sync")
        assert disk.sync(f"{disk.path}-wal") == sqlite3.SQLITE_IOERR_FSYNC
        assert disk.sync(f"{disk.path}-wal") == 0
        assert rows_in(disk.lose_power(tmp_path / "left")) == 0


def test_a_file_that_cannot_be_created(disk: FaultyDisk) -> None:
    disk.fail("create")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        sqlite3.connect(disk.path).execute("CREATE TABLE t (a)")


async def test_a_sync_hangs_until_it_is_let_go(disk: FaultyDisk) -> None:
    with closing(sqlite3.connect(disk.path, check_same_thread=False)) as connection:
        disk.hang()
        creating = asyncio.create_task(asyncio.to_thread(connection.execute, "CREATE TABLE t (a)"))
        assert await asyncio.to_thread(disk.wait_hung, 20)
        assert not creating.done()
        disk.heal()
        await creating


def test_a_call_at_an_operation_comes_once_and_before_it(disk: FaultyDisk) -> None:
    with closing(database(disk, "FULL")) as connection:
        seen: list[int] = []
        disk.at(2, lambda: seen.append(disk.counts.total()))
        before = disk.counts.total()
        connection.execute("INSERT INTO t VALUES (1)")
        assert seen == [before + 2]


def test_afterwards_sqlite_has_its_own_way_to_the_disk(tmp_path: Path, rng: random.Random) -> None:
    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        connection = database(disk, "FULL")
        disk.fail("write", times=math.inf)
    connection.execute("INSERT INTO t VALUES (1)")
    connection.close()
    counted = disk.counts.total()
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO t VALUES (2)")
    assert disk.counts.total() == counted


def test_other_files_are_left_alone(disk: FaultyDisk, tmp_path: Path) -> None:
    disk.fail("write", times=math.inf)
    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        connection.execute("CREATE TABLE t (a)")
    assert disk.counts.total() == 0


def test_several_threads_write_at_once(disk: FaultyDisk) -> None:
    database(disk, "FULL").close()

    def insert() -> None:
        with closing(sqlite3.connect(disk.path, isolation_level=None, timeout=30)) as connection:
            for _ in range(20):
                connection.execute("INSERT INTO t VALUES (1)")

    threads = [threading.Thread(target=insert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(sqlite3.connect(disk.path)) as connection:
        assert connection.execute(ROWS).fetchone() == (80,)


def test_an_interpreter_that_hides_its_sqlite_says_so(
    disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sqlite_vfs, "_candidates", lambda: iter([str(tmp_path / "none.so")]))
    with pytest.raises(StorageUnavailableError, match="linked to a shared SQLite"):
        Vfs(disk)
