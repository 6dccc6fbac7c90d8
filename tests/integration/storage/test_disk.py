"""The disk below the store fails, fills up, hangs and loses power: what was acknowledged is on it, and the rest can be tried again."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import sqlite3
from contextlib import AsyncExitStack, closing
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.storage.kit import connecting

from event_workflow_engine import Saga, SagaStep, StepContext, WorkflowEngine, WorkflowState
from event_workflow_engine.errors import StorageError, StorageUnavailableError, VersionConflictError
from event_workflow_engine.storage.group_commit import QUEUE_LIMIT
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit, Written
from event_workflow_engine.storage.sql_files import Migration
from event_workflow_engine.storage.sqlite import SqliteStorage, checkpoints
from event_workflow_engine.storage.sqlite.connection import connect, open_writer, use_wal
from event_workflow_engine.storage.sqlite.migrate import MIGRATIONS, migrate
from event_workflow_engine.testing.disk import FaultyDisk

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from tests.guarantees.recording import Tally

    from event_workflow_engine.testing.disk import Operation

STREAMS = ("a", "b", "c")
NEVER = 10**9


@pytest.fixture(autouse=True)
def many_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log moved into the database all the time: what is rare in a short run is where a disk can hurt most."""
    monkeypatch.setattr(checkpoints, "FEW_FRAMES", 10)
    monkeypatch.setattr(checkpoints, "MANY_BATCHES", 2)


def step(stream: str, version: int, size: int = 2) -> Unit:
    """An event at an exact version, and a counter that is raised with it."""
    new = f"{stream} {version}"
    row = Row("sagas", "upsert", (stream,), {"fence": version + 1})
    return Unit(new, 1, (Append(stream, (NewRecord(new, "t", b"x" * size),), version),), (row,))


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


async def check(path: Path, acknowledged: list[str]) -> None:
    """All of it is there, streams have no gaps, rows agree with their streams, and SQLite finds the file whole."""
    async with SqliteStorage(path) as storage:
        stored = [record.id for record in await storage.read_log(limit=1_000_000)]
        assert set(acknowledged) <= set(stored), "what was acknowledged is there"
        assert len(stored) == len(set(stored))
        for stream in STREAMS:
            records = await storage.read_stream(stream, limit=1_000_000)
            assert [record.id for record in records] == [f"{stream} {n}" for n in range(len(records))]
            row = await storage.get("sagas", (stream,))
            assert (row["fence"] if row else 0) == len(records)
        await storage.write(step("afterwards", 0))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# -- power -------------------------------------------------------------------------------------------------------------


class PowerLosses:
    """What power losses at random moments would leave, each with what was acknowledged by then."""

    def __init__(self, disk: FaultyDisk, folder: Path, rng: random.Random, apart: int, keep: float | None) -> None:
        self._disk = disk
        self._folder = folder
        self._rng = rng
        self._apart = apart
        self._keep = keep
        self.acknowledged: list[str] = []
        self.left: list[tuple[Path, list[str]]] = []
        self._again()

    def _again(self) -> None:
        self._disk.at(self._rng.randrange(1, 2 * self._apart), self._lose)

    def _lose(self) -> None:
        folder = make(self._folder / str(len(self.left)))
        self.left.append((self._disk.lose_power(folder, keep=self._keep), list(self.acknowledged)))
        self._again()


async def pour(storage: SqliteStorage, losses: PowerLosses, stream: str, rounds: int) -> None:
    for version in range(rounds):
        written = await storage.write(step(stream, version, size=3 ** (version % 9)))
        losses.acknowledged.append(written.unit_id)


async def play(
    folder: Path,
    rng: random.Random,
    rounds: int,
    apart: int,
    *,
    keep: float | None = None,
    connect: Any = connect,
    stores: int = 1,
) -> PowerLosses:
    with FaultyDisk(make(folder) / "a.db", rng) as disk:
        losses = PowerLosses(disk, folder / "left", rng, apart, keep)
        async with AsyncExitStack() as opened:
            opening = [SqliteStorage(disk.path, connect=connect) for _ in range(stores)]
            storages = [await opened.enter_async_context(storage) for storage in opening]
            shares = zip(STREAMS, cycle(storages), strict=False)
            await asyncio.gather(*(pour(storage, losses, stream, rounds) for stream, storage in shares))
            disk.at(NEVER, losses.left.clear)
    return losses


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
    """Each has connections and locks of its own, as processes have; the disk under them is one, and so is its end."""
    losses = await play(tmp_path / "a", rng, rounds=25, apart=60, keep=keep, stores=3)
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
SYNC = pytest.mark.proves("sync-fails", store="sqlite")
ROOM = pytest.mark.proves("disk-full", store="sqlite")
FAULTS = [
    ("sync", None), ("write", None), ("write", FULL), ("truncate", None), ("create", None), ("delete", None),
]  # fmt: skip


async def attempt(storage: SqliteStorage, units: list[Unit], acknowledged: dict[str, Written]) -> None:
    results = await asyncio.gather(*(storage.write(one) for one in units), return_exceptions=True)
    for one, result in zip(units, results, strict=True):
        if isinstance(result, Written):
            assert acknowledged.setdefault(one.id, result) == result
        else:
            assert isinstance(result, StorageError | VersionConflictError), result


class Faulty:
    """A store whose disk fails once, or for a while, from a number of operations on."""

    def __init__(self, folder: Path, rng: random.Random, fault: dict[str, Any], told: Callable[[], list[str]]) -> None:
        self._folder = make(folder)
        self._told = told
        self._fault = fault
        self.acknowledged: dict[str, Written] = {}
        self.rounds = [[step(stream, n, size=3000) for stream in STREAMS] for n in range(3)]
        self.disk = FaultyDisk(folder / "a.db", rng)
        self.reached = 0

    async def work(self) -> bool:
        """Work while it fails, and on when it works again; whether it had failed."""
        with self.disk:
            async with SqliteStorage(self.disk.path) as storage:
                self._arm()
                for units in self.rounds:
                    await attempt(storage, units, self.acknowledged)
                    await storage.last_position()
                met = self._healed()
                told = [line for line in self._told() if "could not be written" in line or "checkpoint failed" in line]
                assert met <= len(told), "a line tells of it"
                assert len(told) <= 1 or self._fault["times"] > 1, told
                await self._all_lands(storage)
        await check(self._folder / "a.db", list(self.acknowledged))
        return met

    async def whole_life(self) -> bool:
        """The same from opening to closing."""
        with self.disk:
            self._arm()
            try:
                async with SqliteStorage(self.disk.path) as storage:
                    for units in self.rounds:
                        await attempt(storage, units, self.acknowledged)
            except StorageUnavailableError:
                assert not self.acknowledged, "only opening raises"
            met = self._healed()
            async with SqliteStorage(self.disk.path) as storage:
                await self._all_lands(storage)
        return met

    def _arm(self) -> None:
        self._before = self.disk.counts[self._fault["operation"]]
        self.disk.fail(**self._fault)

    def _healed(self) -> bool:
        self.disk.heal()
        self.reached = self.disk.counts[self._fault["operation"]] - self._before
        return self.disk.failed > 0

    async def _all_lands(self, storage: SqliteStorage) -> None:
        """As callers do who were refused, and whose later units had lost their version by that; then the power goes."""
        for units in self.rounds:
            await attempt(storage, units, self.acknowledged)
        assert set(self.acknowledged) == {one.id for units in self.rounds for one in units}
        for name, written in self.acknowledged.items():
            assert await storage.outcome(name) == written
        await check(self.disk.lose_power(make(self._folder / "left")), list(self.acknowledged))


async def fail_everywhere(
    folder: Path,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
    whole: bool,
    some: int,
    fault: dict[str, Any],
    tally: Tally,
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    async def play(at: int) -> tuple[bool, int]:
        caplog.clear()
        one = Faulty(folder / str(at), rng, {**fault, "at": at}, told)
        return await (one.whole_life() if whole else one.work()), one.reached

    _, last = await play(NEVER)
    points = list(range(1, last + 1))
    chosen = points if last <= some else sorted(rng.sample(points, some))
    # A checkpoint more or less is a matter of timing.
    failed = [at for at in chosen if (await play(at))[0]]
    assert len(failed) >= len(chosen) - 2
    tally.count(runs=1 + len(chosen), faults=len(failed))


@pytest.mark.parametrize(
    ("operation", "code", "times", "whole"),
    [
        pytest.param("sync", None, 1, False, marks=SYNC),
        pytest.param("sync", None, math.inf, True, marks=SYNC),
        pytest.param("write", FULL, 1, False, marks=ROOM),
    ],
)
async def test_an_operation_fails(
    tmp_path: Path,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
    whole: bool,
    operation: Operation,
    code: int | None,
    times: float,
    tally: Tally,
) -> None:
    await fail_everywhere(
        tmp_path, rng, caplog, whole, 2, {"operation": operation, "code": code, "times": times}, tally
    )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("whole", [False, True], ids=["at work", "from opening to closing"])
@pytest.mark.parametrize("times", [1, 3, math.inf])
@pytest.mark.parametrize(
    ("operation", "code"), [pytest.param(*fault, marks=ROOM if fault[1] else SYNC) for fault in FAULTS]
)
async def test_any_operation_fails(
    tmp_path: Path,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
    whole: bool,
    operation: Operation,
    code: int | None,
    times: float,
    tally: Tally,
) -> None:
    await fail_everywhere(
        tmp_path, rng, caplog, whole, NEVER, {"operation": operation, "code": code, "times": times}, tally
    )


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
