"""The disk below the store fails, fills up, hangs and loses power: what was acknowledged is on it, and the rest can be tried again."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.storage.faulty import NEVER, Faulty, Way, check, make, play, stores
from tests.integration.storage.kit import connecting
from tests.integration.storage.pouring import step

from event_workflow_engine import Saga, SagaStep, StepContext, WorkflowEngine, WorkflowState
from event_workflow_engine.errors import StorageError
from event_workflow_engine.storage.group_commit import QUEUE_LIMIT
from event_workflow_engine.storage.port import Row, Unit
from event_workflow_engine.storage.sql_files import Migration
from event_workflow_engine.storage.sqlite import SqliteStorage, checkpoints, log_room
from event_workflow_engine.storage.sqlite.connection import connect, open_writer, use_wal
from event_workflow_engine.storage.sqlite.migrate import MIGRATIONS, migrate
from event_workflow_engine.testing.disk import FaultyDisk

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.guarantees.recording import Tally

    from event_workflow_engine.testing.disk import Operation


@pytest.fixture(autouse=True)
def many_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log moved into the database all the time: what is rare in a short run is where a disk can hurt most."""
    monkeypatch.setattr(checkpoints, "FEW_FRAMES", 10)
    monkeypatch.setattr(checkpoints, "MANY_FRAMES", 10)


@pytest.fixture(autouse=True)
def much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have room made in the log whenever it has grown, for the same reason."""
    monkeypatch.setattr(log_room, "LOOK_AFTER", 1)
    monkeypatch.setattr(log_room, "LEAST_FRAMES", 3)


# -- power -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """They sync as well, and so hide a commit that does not."""
    monkeypatch.setattr(checkpoints, "FEW_FRAMES", NEVER)
    monkeypatch.setattr(checkpoints, "MANY_FRAMES", NEVER)


@pytest.mark.proves("power", store="sqlite")
async def test_what_was_acknowledged_is_on_disk_when_the_power_goes(
    tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    losses = await play(tmp_path / "a", rng, rounds=40, apart=60)
    assert len(losses.left) > 2
    tally.count(runs=1, faults=len(losses.left))
    for path, acknowledged in losses.left:
        await check(path, acknowledged)


@pytest.mark.usefixtures("no_checkpoints")
@pytest.mark.proves("power", store="sqlite")
async def test_each_commit_is_on_disk_before_it_is_acknowledged(
    tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    losses = await play(tmp_path / "a", rng, rounds=40, apart=60, keep=0)
    assert len(losses.left) > 2
    tally.count(runs=1, faults=len(losses.left))
    for path, acknowledged in losses.left:
        await check(path, acknowledged)


@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.proves("power", store="sqlite-shared")
async def test_what_several_acknowledged_is_on_disk_when_the_power_goes_for_all(
    tmp_path: Path, rng: random.Random, tally: Tally, keep: float | None
) -> None:
    losses = await play(tmp_path / "a", rng, rounds=25, apart=60, keep=keep, number=3)
    assert len(losses.left) > 2
    tally.count(runs=1, faults=len(losses.left))
    for path, acknowledged in losses.left:
        await check(path, acknowledged)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.proves("power", store="sqlite")
async def test_what_was_acknowledged_is_on_disk_whenever_the_power_goes(
    tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    for turn in range(4):
        losses = await play(tmp_path / str(turn), rng, rounds=150, apart=25)
        tally.count(runs=1, faults=len(losses.left))
        for path, acknowledged in losses.left:
            await check(path, acknowledged)


@pytest.mark.usefixtures("no_checkpoints")
@pytest.mark.parametrize("level", ["OFF", "NORMAL"])
async def test_a_store_that_does_not_sync_each_commit_is_seen_to_lose_some(
    tmp_path: Path, rng: random.Random, level: str
) -> None:
    """Breaks what the tests above look at, so that they are known to see it."""

    class Careless(sqlite3.Connection):
        def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:  # type: ignore[override]
            return super().execute(sql.replace("synchronous = FULL", f"synchronous = {level}"), *params)

    careless = connecting(lambda _: None, factory=Careless)
    losses = await play(tmp_path / "a", rng, rounds=40, apart=60, keep=0, connect=careless)
    acknowledged_some = [(path, acknowledged) for path, acknowledged in losses.left if acknowledged]
    assert acknowledged_some
    for path, acknowledged in acknowledged_some:
        with pytest.raises((AssertionError, StorageError, sqlite3.Error)):
            await check(path, acknowledged)


# -- the N-th operation fails --------------------------------------------------------------------------------------------

FULL = sqlite3.SQLITE_FULL
FAULTS: list[tuple[Operation, int | None]] = [
    ("sync", None), ("write", None), ("write", FULL), ("truncate", None), ("create", None), ("delete", None),
]  # fmt: skip


def proven(way: Way) -> Any:
    """A test's parameter, with the cell that it tries."""
    row, store = "disk-full" if way.code else "sync-fails", "sqlite" if way.number == 1 else "sqlite-shared"
    shown = ", ".join(str(part) for part in way if part is not None)
    return pytest.param(way, marks=pytest.mark.proves(row, store=store), id=shown)


@pytest.fixture
def fail_everywhere(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture, tally: Tally
) -> Callable[[Way, int], Awaitable[None]]:
    """Play a way of failing at each operation, or at some."""

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    async def play(way: Way, at: int) -> tuple[bool, int]:
        caplog.clear()
        one = Faulty(tmp_path / str(at), rng, way, at, told)
        return await (one.whole_life() if way.whole else one.work()), one.reached

    async def play_all(way: Way, some: int) -> None:
        _, last = await play(way, NEVER)
        # A checkpoint more or less, with its few writes, is a matter of timing, and under several stores it is many.
        sure, slack = (last, 2 + last // 20) if way.number == 1 else (last // 2, 1 + last // 4)
        points = list(range(1, sure + 1))
        chosen = points if sure <= some else sorted(rng.sample(points, some))
        failed = [at for at in chosen if (await play(way, at))[0]]
        assert len(failed) >= len(chosen) - slack
        assert bool(failed) == bool(chosen)
        tally.count(runs=1 + len(chosen), faults=len(failed))

    return play_all


@pytest.mark.parametrize(
    "way",
    [
        proven(Way("sync")),
        proven(Way("sync", times=math.inf, whole=True)),
        proven(Way("write", FULL)),
        proven(Way("sync", number=3)),
        proven(Way("write", FULL, number=3)),
    ],
)
async def test_an_operation_fails(way: Way, fail_everywhere: Callable[[Way, int], Awaitable[None]]) -> None:
    await fail_everywhere(way, 3 if way.number > 1 else 2)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "way",
    [
        proven(Way(*fault, times, whole, number))
        for fault in FAULTS
        for times in (1, 3, math.inf)
        for whole in (False, True)
        for number in (1, 3)
    ],
)
async def test_any_operation_fails(way: Way, fail_everywhere: Callable[[Way, int], Awaitable[None]]) -> None:
    await fail_everywhere(way, NEVER if way.number == 1 else 25)


# -- who comes after a process that was killed before it had synced ------------------------------------------------------


@pytest.mark.proves("power", store="sqlite")
async def test_what_the_last_process_had_not_synced_is_on_disk_before_it_is_acknowledged(
    tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    """The next process finds a whole commit in the log. Its writer is killed, and the disk has nothing of it."""
    killed: list[Path] = []

    def kill() -> None:
        """What the next process would find, and what the disk has of it."""
        folder = tmp_path / str(len(killed))
        disk.lose_power(make(folder / "disk"), keep=0)
        for file in (tmp_path / "a.db", tmp_path / "a.db-wal"):
            shutil.copy(file, folder)
        killed.append(folder)
        disk.at(2, kill)

    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        async with SqliteStorage(disk.path) as storage:
            await storage.write(step("a", 0))
            disk.at(1, kill)
            await storage.write(step("a", 1))
            disk.at(NEVER, kill)
    found = 0
    for folder in killed:
        with FaultyDisk(folder / "a.db", rng, on_disk=folder / "disk") as disk:
            async with SqliteStorage(disk.path) as storage:
                found += await storage.outcome("a 1") is not None
                acknowledged = [record.id for record in await storage.read_log()]
                left = disk.lose_power(folder / "disk")
                await storage.write(step("a", 1))
                assert await storage.outcome("a 1") is not None
        await check(left, acknowledged)
    tally.count(runs=1, faults=len(killed))
    assert 0 < found < len(killed)


# -- a disk that hangs ----------------------------------------------------------------------------------------------------


@pytest.mark.proves("disk-hangs", store="sqlite", faults=1)
async def test_while_the_disk_hangs_reads_answer_and_callers_may_leave(tmp_path: Path, rng: random.Random) -> None:
    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        async with SqliteStorage(disk.path) as storage:
            await storage.write(step("a", 0))
            disk.hang()
            sent = [
                asyncio.create_task(storage.write(step(stream, version))) for stream, version in (("a", 1), ("b", 0))
            ]
            assert await asyncio.to_thread(disk.wait_hung, 20)
            told: list[object] = []
            for n in range(QUEUE_LIMIT):
                storage.post(
                    Unit(f"row {n}", 1, rows=(Row("slots", "upsert", ("slot", n % 10), {"done": n}),)), told.append
                )
            in_line = [asyncio.create_task(storage.write(step("a", 2 + n))) for n in range(10)]
            assert await storage.last_position() == 1
            assert [record.id for record in await storage.read_stream("a")] == ["a 0"]
            for left in (sent[1], in_line[-1]):
                left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await in_line[-1]
            assert not told
            assert not any(task.done() for task in (sent[0], *in_line[:-1]))
            disk.heal()
            acknowledged = [(await task).unit_id for task in (sent[0], *in_line[:-1])]
            assert len(told) == QUEUE_LIMIT
            assert await storage.outcome("b 0") is not None, "it was sent when its caller left"
            assert await storage.outcome("a 11") is None, "it was not, and was withdrawn"
            left_by = await asyncio.to_thread(disk.lose_power, make(tmp_path / "left"), keep=0)
    await check(left_by, acknowledged)


@pytest.mark.proves("disk-hangs", store="sqlite-shared", faults=1)
async def test_while_the_disk_hangs_below_several_reads_answer_and_writes_wait(
    tmp_path: Path, rng: random.Random
) -> None:
    """One of them hangs with the file's locks, and those behind it wait for these in turn."""
    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        async with stores(disk.path, 3) as storages:
            first = {
                (await storage.write(step(stream, 0))).unit_id for stream, storage in zip("abc", storages, strict=True)
            }
            disk.hang()
            sent = [
                asyncio.create_task(storage.write(step(stream, 1)))
                for stream, storage in zip("abc", storages, strict=True)
            ]
            assert await asyncio.to_thread(disk.wait_hung, 20)
            for storage in storages:
                assert {record.id for record in await storage.read_log()} == first
                assert await storage.last_position() == 3
            sent[0].cancel()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.wait(sent[1:], return_when="FIRST_COMPLETED")), 0.2)
            disk.heal()
            acknowledged = first | {(await task).unit_id for task in sent[1:]}
            left_by = await asyncio.to_thread(disk.lose_power, make(tmp_path / "left"), keep=0)
    await check(left_by, acknowledged)


@pytest.mark.proves("disk-hangs", store="sqlite", faults=1)
async def test_a_saga_waits_for_a_disk_that_hangs(tmp_path: Path, rng: random.Random) -> None:
    ran: list[str] = []

    async def act(ctx: StepContext[Any]) -> str:
        ran.append(ctx.step)
        if ctx.step == "a":
            disk.hang()
        return ctx.step

    steps = Saga("hanging", [SagaStep("a", act), SagaStep("b", act)], sequential=True)
    with FaultyDisk(tmp_path / "a.db", rng) as disk:
        async with WorkflowEngine(f"sqlite:///{disk.path}") as engine:
            engine.register(steps)
            handle = await engine.start(steps, id="h-1")
            assert await asyncio.to_thread(disk.wait_hung, 20)
            with pytest.raises(TimeoutError):
                await handle.result(timeout=0.05)
            assert await handle.status() is WorkflowState.RUNNING
            disk.heal()
            assert dict(await handle.result(timeout=20)) == {"a": "a", "b": "b"}
    assert ran == ["a", "b"]


# -- the schema ------------------------------------------------------------------------------------------------------------

NEXT = Migration(
    len(MIGRATIONS) + 1,
    "more.sql",
    "CREATE TABLE more (a);\nINSERT INTO more SELECT id FROM events;\nDROP TABLE slots;\n",
)


def upgrade(path: Path | str) -> None:
    connection = open_writer(str(path), connect)
    with closing(connection):
        use_wal(connection, str(path))
        migrate(connection, str(path), auto_upgrade=True, migrations=(*MIGRATIONS, NEXT))


async def cut_migrations(folder: Path, rng: random.Random, some: int) -> int:
    """Cut the making of the schema, then its upgrade, at some of their operations, and go on from what was left."""
    cuts = 0
    for number, with_data in enumerate([False, True]):
        place = make(folder / str(number))
        if with_data:
            async with SqliteStorage(place / "a.db") as storage:
                for n in range(20):
                    await storage.write(step("a", n))
        left: list[Path] = []
        wanted = {rng.randrange(1, 120) for _ in range(some)} if some < NEVER else set(range(1, 200))

        def cut(disk: FaultyDisk, place: Path = place, left: list[Path] = left, wanted: set[int] = wanted) -> None:
            if disk.counts.total() in wanted:
                for keep in (0, 1, None):  # a power loss, a killed process, and what is between them
                    left.append(disk.lose_power(make(place / f"{len(left)}"), keep=keep))
            disk.at(1, lambda: cut(disk))

        with FaultyDisk(place / "a.db", rng) as disk:
            disk.at(1, partial(cut, disk))
            upgrade(disk.path)
        for path in left:
            upgrade(path)
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA user_version").fetchone() == (NEXT.number,)
                numbers = connection.execute("SELECT number FROM schema_migrations").fetchall()
                assert numbers == [(one.number,) for one in (*MIGRATIONS, NEXT)]
                assert connection.execute("SELECT count(*) FROM more").fetchone() == (20 if with_data else 0,)
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        cuts += len(left)
    return cuts


@pytest.mark.proves("migration", store="sqlite")
async def test_a_migration_that_was_cut_short_is_done_again(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    cuts = await cut_migrations(tmp_path, rng, some=3)
    tally.count(runs=2, faults=cuts)
    assert cuts > 3


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.proves("migration", store="sqlite")
async def test_a_migration_that_was_cut_short_anywhere_is_done_again(
    tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    cuts = await cut_migrations(tmp_path, rng, some=NEVER)
    tally.count(runs=2, faults=cuts)
    assert cuts > 100
