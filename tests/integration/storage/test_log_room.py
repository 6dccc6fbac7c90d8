"""Room in the write-ahead log: small commits seldom make the file longer, and what made it longer is in no table."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.storage.kit import connecting, unprivileged
from tests.integration.storage.pouring import step

from event_workflow_engine.storage.sqlite import SqliteStorage, checkpoints, log_room, session
from event_workflow_engine.storage.sqlite.connection import open_writer, use_wal
from event_workflow_engine.storage.sqlite.log_room import FRAME, LogRoom, make_room
from event_workflow_engine.storage.sqlite.migrate import migrate
from event_workflow_engine.testing.disk import FaultyDisk

if TYPE_CHECKING:
    import random
    from pathlib import Path

COMMITS = 200


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log grows as long as the test wants it to."""
    monkeypatch.setattr(checkpoints, "FEW_FRAMES", 10**9)
    monkeypatch.setattr(checkpoints, "MANY_FRAMES", 10**9)


def size_of(path: Path) -> int:
    """Of its log."""
    return path.with_name(path.name + "-wal").stat().st_size


async def grown_by(path: Path) -> tuple[int, int]:
    """How many of many small commits found no room for them in the log, and how long it is afterwards."""
    grew = size = 0
    starts: list[int] = []

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:  # type: ignore[override]
            nonlocal grew, size
            if sql.startswith("BEGIN"):
                starts.append(size_of(path))
            done = super().execute(sql, *params)
            if sql == "COMMIT":
                size = size_of(path)
                grew += size > starts[-1]
            return done

    async with SqliteStorage(path, connect=connecting(lambda _: None, factory=Watched)) as storage:
        for version in range(COMMITS):
            await storage.write(step("a", version))
        assert len(await storage.read_log(limit=COMMITS + 1)) == COMMITS
    return grew, size


async def test_small_commits_seldom_make_the_log_longer(tmp_path: Path) -> None:
    grew, size = await grown_by(tmp_path / "a.db")
    assert grew <= COMMITS // 4
    assert size < 2 * COMMITS * 3 * FRAME


async def test_without_room_each_commit_makes_it_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks what the test above looks at, so that it is known to see it."""
    monkeypatch.setattr(log_room, "LOOK_AFTER", 10**9)
    grew, _ = await grown_by(tmp_path / "a.db")
    assert grew >= COMMITS


def the_log(tmp_path: Path, frames: int) -> Path:
    path = tmp_path / "a.db"
    with (tmp_path / "a.db-wal").open("ab") as log:
        log.truncate(frames * FRAME)
    return path


def wanted(room: LogRoom) -> int:
    """What it wants at its next look, in frames."""
    looks = [room.wanted() for _ in range(log_room.LOOK_AFTER)]
    assert not any(looks[:-1])
    return looks[-1] // FRAME


def test_as_much_room_is_made_as_the_log_has_between_bounds(tmp_path: Path) -> None:
    room = LogRoom(str(tmp_path / "a.db"))
    assert wanted(room) == 0, "there is no log yet"
    the_log(tmp_path, 24)
    assert wanted(room) == log_room.LEAST_FRAMES
    the_log(tmp_path, 24 + log_room.LEAST_FRAMES)
    assert wanted(room) == 0, "nothing but the room that was made"
    the_log(tmp_path, 24 + log_room.LEAST_FRAMES + 12)
    assert wanted(room) == 24 + log_room.LEAST_FRAMES + 12
    room = LogRoom(str(the_log(tmp_path, 600)))
    assert wanted(room) == 0, "what was there may be room"
    the_log(tmp_path, 612)
    assert wanted(room) == log_room.MOST_FRAMES


@pytest.mark.parametrize("frames", [8 * log_room.LOOK_AFTER + 1, checkpoints.MANY_FRAMES])
def test_no_room_is_made_for_large_commits_or_beyond_where_the_log_begins_anew(tmp_path: Path, frames: int) -> None:
    before = frames - 20 if frames >= checkpoints.MANY_FRAMES else 0
    room = LogRoom(str(the_log(tmp_path, before)))
    wanted(room)
    the_log(tmp_path, frames)
    assert wanted(room) == 0


def test_no_room_is_made_on_a_disk_with_little_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it took would be missing when the log is moved into the database; it is looked for again at each look."""
    room = LogRoom(str(tmp_path / "a.db"))
    wanted(room)
    spare = log_room.SPARE
    monkeypatch.setattr(log_room, "SPARE", 2**62)
    the_log(tmp_path, 12)
    assert wanted(room) == 0
    monkeypatch.setattr(log_room, "SPARE", spare)
    the_log(tmp_path, 24)
    assert wanted(room) == log_room.LEAST_FRAMES


async def test_a_store_that_closes_wants_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log stays, since another reads it, and has grown."""
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as other:
        await other.write(step("a", 0))
        monkeypatch.setattr(log_room, "LOOK_AFTER", 1)
        monkeypatch.setattr(log_room, "MOST_FRAMES", 1)
        async with SqliteStorage(path):
            await other.write(step("a", 1))
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM units").fetchall()
        reader.close()
    assert not caplog.records


async def test_a_log_that_cannot_be_looked_at_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a process that has given up its rights since it opened the file."""
    monkeypatch.setattr(log_room, "LOOK_AFTER", 2)
    with unprivileged() as folder:
        async with SqliteStorage(folder / "a.db") as storage:
            folder.chmod(0)
            try:
                for version in range(10):
                    await storage.write(step("a", version))
            finally:
                folder.chmod(0o700)
    assert ["Permission denied" in record.getMessage() for record in caplog.records] == [True]


def test_what_made_room_is_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(open_writer(str(path), connecting(lambda _: None))) as connection:
        use_wal(connection, str(path))
        migrate(connection, str(path), auto_upgrade=True)
        before = size_of(path)
        cache = connection.execute("PRAGMA cache_size").fetchone()
        with closing(sqlite3.connect(path)) as reader:
            version = reader.execute("PRAGMA data_version").fetchone()
            make_room(connection, 50 * FRAME)
            assert size_of(path) >= before + 40 * FRAME
            assert reader.execute("PRAGMA data_version").fetchone() == version
        assert not connection.in_transaction
        assert connection.execute("PRAGMA cache_size").fetchone() == cache
        assert connection.execute("SELECT count(*) FROM snapshots").fetchone() == (0,)
        grown = size_of(path)
        connection.execute("INSERT INTO units (id, at) VALUES ('behind', 1)")
        assert size_of(path) == grown
        # As one finds it whose process was killed.
        shutil.copytree(tmp_path, tmp_path / "left")
    with closing(sqlite3.connect(tmp_path / "left" / "a.db")) as found:
        assert found.execute("SELECT id FROM units").fetchall() == [("behind",)]
        assert found.execute("SELECT count(*) FROM snapshots").fetchone() == (0,)
        assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_disk_that_has_none_to_spare_is_told_of_and_not_asked_again(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_room, "LOOK_AFTER", 1)
    made: list[int] = []

    def counted(connection: sqlite3.Connection, size: int) -> None:
        made.append(size)
        disk.fail("write", at=1, code=sqlite3.SQLITE_FULL)
        make_room(connection, size)

    monkeypatch.setattr(session, "make_room", counted)
    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        async with SqliteStorage(disk.path) as storage:
            for version in range(5):
                await storage.write(step("a", version))
                assert await storage.identity()  # behind what the writer does between two jobs
            assert len(await storage.read_log()) == 5
    assert len(made) == 1
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["between two jobs"]


def test_no_room_is_waited_for_while_another_program_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(open_writer(str(path), connecting(lambda _: None, timeout=3600))) as connection:
        use_wal(connection, str(path))
        migrate(connection, str(path), auto_upgrade=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            before = size_of(path)
            make_room(connection, 50 * FRAME)
            assert size_of(path) == before
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (3_600_000,)
