"""The disk below a server fills up, hangs, fails and loses its power: what was acknowledged is on it, and work goes on."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.postgres.test_soak import soak
from tests.integration.postgres.volumes import volume
from tests.integration.storage.pouring import STREAMS, all_land, attempt, check_streams, rounds_of, step

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine, WorkflowState
from event_workflow_engine.errors import StorageError, StorageUnavailableError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Written
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guarantees.recording import Tally
    from tests.integration.postgres.volumes import Volume

    from event_workflow_engine.storage.port import Storage

pytestmark = [pytest.mark.long, pytest.mark.needs_root, pytest.mark.timeout(300)]

LARGE = 400_000
"""Bytes for which a table has to grow."""

HANGING = """
SELECT lower(wait_event) FROM pg_stat_activity
WHERE wait_event_type IN ('IO', 'LWLock') AND backend_type = 'client backend'
"""
"""What clients wait for: their own writes, or those of whoever writes the log for all. In capitals before 17."""


@pytest.fixture
def disk() -> Iterator[Volume]:
    with volume(mebibytes=384) as made:
        yield made


@contextmanager
def server_on(disk: Volume, **settings: str) -> Iterator[PostgresServer]:
    small = {"min_wal_size": "32MB", "max_wal_size": "64MB", **settings}
    with PostgresServer(folder=disk.path, settings=small) as made:
        disk.sync()  # its data are made without
        yield made


@pytest.fixture
def server(disk: Volume) -> Iterator[PostgresServer]:
    with server_on(disk) as made:
        yield made


# -- power and I/O errors ----------------------------------------------------------------------------------------------


class Outage:
    """The power of a server's machine, which goes and comes back."""

    def __init__(self, server: PostgresServer, disk: Volume) -> None:
        self._server = server
        self._disk = disk

    def over(self) -> None:
        """Whatever ran has ended; what was on the disk is what there is."""
        self._server.kill()
        self._disk.power_on()
        self._server.start()

    def lose_power(self) -> None:
        self._disk.lose_power()
        self.over()


class Pour:
    """Those who append one event after the other, each with a store of its own, until they are told to stop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.acknowledged: list[str] = []
        self._wanted = 0
        self._enough = asyncio.Event()
        self.stopped = False

    async def until(self, more: int) -> None:
        """Wait until so many more were acknowledged."""
        self._wanted = len(self.acknowledged) + more
        self._enough.clear()
        await self._enough.wait()

    async def append(self, stream: str) -> None:
        """Whoever is refused asks again; one whose version is gone has lost what was acknowledged, and fails."""
        async with open_storage(self._url) as storage:
            version = await storage.head(stream)
            while not self.stopped:
                try:
                    written = await storage.write(step(stream, version, size=3 ** (version % 9)))
                except StorageError:
                    continue
                self.acknowledged.append(written.unit_id)
                version += 1
                if len(self.acknowledged) >= self._wanted:
                    self._enough.set()


async def lose_power_often(server: PostgresServer, disk: Volume, rng: random.Random, times: int) -> None:
    """What was acknowledged by then is there each time, and the database is whole."""
    outage = Outage(server, disk)
    async with open_storage(server.url(), auto_upgrade=True):
        pass
    pour = Pour(server.url())
    for _ in range(times):
        pour.stopped = False
        async with asyncio.TaskGroup() as pouring:
            for stream in STREAMS:
                pouring.create_task(pour.append(stream))
            try:
                await pour.until(rng.randrange(50, 300))
                await asyncio.to_thread(outage.lose_power)
            finally:
                pour.stopped = True
        async with open_storage(server.url()) as storage:
            await check_streams(storage, pour.acknowledged)
    data = server.query("SHOW data_directory")
    assert server.query("SHOW data_checksums") == "on"
    server.stop()
    server.run("pg_checksums", "--check", "--pgdata", data)


@pytest.mark.proves("power", store="postgres")
async def test_what_was_acknowledged_is_on_disk_when_the_power_of_the_server_goes(
    server: PostgresServer, disk: Volume, rng: random.Random, tally: Tally
) -> None:
    await lose_power_often(server, disk, rng, times=8)
    tally.count(runs=1, faults=8)


async def test_a_server_that_syncs_nothing_is_seen_to_lose_some(disk: Volume, rng: random.Random) -> None:
    """Breaks what the test above looks at, so that it is known to see it."""
    with server_on(disk, fsync="off") as server, pytest.raises((AssertionError, StorageError)):
        await lose_power_often(server, disk, rng, times=8)


@pytest.mark.proves("power", store="postgres")
async def test_sagas_end_once_over_power_losses_of_the_server(
    server: PostgresServer, disk: Volume, tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    outage = Outage(server, disk)
    await soak(server, tmp_path, rng, sagas=80, worker_kills=2, server_kills=4, kill_server=outage.lose_power)
    tally.count(runs=80, faults=4, kills=2)


@pytest.mark.proves("sync-fails", store="postgres")
async def test_the_disk_of_the_server_fails_until_it_is_another_one(
    server: PostgresServer, disk: Volume, caplog: pytest.LogCaptureFixture, tally: Tally
) -> None:
    """The server gives up, as it must: it cannot know what of its writes is on the disk."""
    outage, acknowledged, rounds = Outage(server, disk), dict[str, Written](), rounds_of(6, size=3000)
    async with open_storage(server.url(), auto_upgrade=True) as storage, open_storage(server.url()) as second:
        for _ in range(3):
            await attempt([storage, second], rounds[0], acknowledged)
            disk.lose_power()
            caplog.clear()
            refused = await attempt([storage, second], [one for units in rounds for one in units], acknowledged)
            assert any(isinstance(error, StorageUnavailableError) for error in refused)
            assert "is in doubt" in caplog.text, "a line tells of it"
            await asyncio.to_thread(outage.over)
            await check_streams(storage, acknowledged)
        await all_land([storage, second], rounds, acknowledged)
        await check_streams(storage, acknowledged)
    tally.count(runs=1, faults=3)


# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("disk-full", store="postgres", faults=1)
async def test_a_server_without_room_for_its_tables_says_so_and_goes_on_when_there_is_room(
    server: PostgresServer, disk: Volume
) -> None:
    acknowledged, rounds = dict[str, Written](), rounds_of(6, size=LARGE)
    async with open_storage(server.url(), auto_upgrade=True) as storage:
        disk.fill()
        refused = [error for units in rounds for error in await attempt([storage], units, acknowledged)]
        assert any("the server's disk is full: free space" in str(error) for error in refused)
        assert {record.id for record in await storage.read_log()} == set(acknowledged), "reads answer"
        disk.free()
        await all_land([storage], rounds, acknowledged)
        await check_streams(storage, acknowledged)


@pytest.mark.proves("disk-full", store="postgres", faults=1)
async def test_a_server_without_room_for_its_log_goes_down_and_has_all_when_it_comes_back(
    server: PostgresServer, disk: Volume
) -> None:
    acknowledged, rounds = dict[str, Written](), rounds_of(6, size=3000)
    async with open_storage(server.url(), auto_upgrade=True) as storage:
        await attempt([storage], rounds[0], acknowledged)
        disk.fill()
        with pytest.raises(StorageUnavailableError, match="No space left"):
            server.query(
                "SELECT count(pg_logical_emit_message(false, '', repeat('x', 1000000))) FROM generate_series(1, 200)"
            )
        refused = await attempt([storage], [one for units in rounds for one in units], acknowledged)
        assert any(isinstance(error, StorageUnavailableError) for error in refused)
        disk.free()
        server.kill()
        await asyncio.to_thread(server.start)
        await check_streams(storage, acknowledged)
        await all_land([storage], rounds, acknowledged)


@pytest.mark.proves("disk-full", store="postgres", faults=1)
async def test_sagas_wait_for_room_on_the_server_and_end_once(server: PostgresServer, disk: Volume) -> None:
    ran: list[tuple[str, str]] = []
    full = asyncio.Event()

    async def act(ctx: StepContext[Any]) -> str:
        ran.append((ctx.saga_id, ctx.step))
        if ctx.step == "a" and not full.is_set():
            disk.fill()
            full.set()
        return "x" * LARGE

    large = Saga("disk-full", [SagaStep(name, act) for name in "abc"], sequential=True)
    async with WorkflowEngine(server.url(), config=EngineConfig(auto_upgrade=True)) as engine:
        engine.register(large)
        handles = [await engine.start(large, id=f"f-{n}") for n in range(4)]
        await full.wait()
        with pytest.raises(TimeoutError):
            await asyncio.gather(*(handle.result(timeout=2) for handle in handles))
        disk.free()
        for handle in handles:
            assert {len(value) for value in (await handle.result(timeout=60)).values()} == {LARGE}
            succeeded = [event.data.step for event in await handle.history() if event.type == "step-succeeded"]
            assert succeeded == ["a", "b", "c"]
    assert sorted(set(ran)) == [(f"f-{n}", name) for n in range(4) for name in "abc"]


# -- a disk that hangs -------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(disk: Volume) -> Iterator[Volume]:
    """A disk that a test may freeze: it is thawed at the end, whatever happens."""
    yield disk
    if disk.is_frozen:
        disk.thaw()


async def ids_in(storage: Storage) -> set[str]:
    return {record.id for record in await storage.read_log()}


@pytest.mark.proves("disk-hangs", store="postgres", faults=1)
async def test_while_the_disk_of_the_server_hangs_reads_answer_and_callers_may_leave(
    server: PostgresServer, frozen: Volume
) -> None:
    async with open_storage(server.url(), auto_upgrade=True) as storage, open_storage(server.url()) as second:
        both = ((storage, "a"), (second, "b"))
        # By then the server has all files open that it writes to.
        first = {(await one.write(step(stream, n))).unit_id for n in range(5) for one, stream in both}
        assert await ids_in(storage) == await ids_in(second) == first
        frozen.freeze()
        sent = [asyncio.create_task(one.write(step(stream, 5))) for one, stream in both]
        async with asyncio.timeout(20):
            while "wal" not in await asyncio.to_thread(server.query, HANGING):
                pass
        behind = [asyncio.create_task(storage.write(step("a", 6 + n))) for n in range(3)]
        assert not (await asyncio.wait([*sent, *behind], timeout=0.5))[0]
        assert await ids_in(storage) == await ids_in(second) == first
        behind[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await behind[-1]
        frozen.thaw()
        acknowledged = [(await task).unit_id for task in (*sent, *behind[:-1])]
        assert await storage.outcome("a 8") is None, "it was not sent, and was withdrawn"
        await check_streams(storage, [*first, *acknowledged])


@pytest.mark.proves("disk-hangs", store="postgres", faults=1)
async def test_a_saga_waits_for_a_server_whose_disk_hangs(server: PostgresServer, frozen: Volume) -> None:
    ran: list[str] = []
    hung = asyncio.Event()

    async def act(ctx: StepContext[Any]) -> str:
        ran.append(ctx.step)
        if ctx.step == "a":
            frozen.freeze()
            hung.set()
        return ctx.step

    steps = Saga("hanging", [SagaStep("a", act), SagaStep("b", act)], sequential=True)
    async with WorkflowEngine(server.url(), config=EngineConfig(auto_upgrade=True)) as engine:
        engine.register(steps)
        handle = await engine.start(steps, id="h-1")
        await hung.wait()
        with pytest.raises(TimeoutError):
            await handle.result(timeout=1)
        assert await handle.status() is WorkflowState.RUNNING
        assert ran == ["a"]
        frozen.thaw()
        assert dict(await handle.result(timeout=20)) == {"a": "a", "b": "b"}
    assert ran == ["a", "b"]
