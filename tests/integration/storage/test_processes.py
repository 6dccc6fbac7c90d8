"""Several real processes on one file, and processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit
from event_workflow_engine.storage.sqlite import SqliteStorage

if TYPE_CHECKING:
    import random
    from asyncio.subprocess import Process

WORKER = Path(__file__).with_name("worker.py")


async def start(path: Path, task: str, name: str = "w", rounds: int = 0) -> Process:
    """A worker that has the store open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), str(path), task, name, str(rounds), stdout=asyncio.subprocess.PIPE, limit=2**22
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def rest_of(process: Process) -> list[str]:
    """What it acknowledged until its end. A line that a kill cut short acknowledges nothing."""
    assert process.stdout is not None
    text = (await process.stdout.read()).decode()
    await process.wait()
    return [line.removesuffix("\n") for line in text.splitlines(keepends=True) if line.endswith("\n")]


async def check_log(path: Path, acknowledged: list[str]) -> None:
    """Everything acknowledged is there, once; streams have no gaps; rows agree with their streams."""
    assert len(acknowledged) == len(set(acknowledged))
    async with SqliteStorage(path) as storage:
        log = await storage.read_log(limit=10_000_000)
        positions = [record.position for record in log]
        assert positions == sorted(set(positions))
        ids = [record.id for record in log]
        assert len(ids) == len(set(ids))
        assert set(acknowledged) <= set(ids)
        for stream in {record.stream for record in log}:
            own = [record.id for record in log if record.stream == stream]
            assert [record.id for record in await storage.read_stream(stream, limit=1_000_000)] == own
            assert await storage.head(stream) == len(own)
            row = await storage.get("sagas", (stream,))
            assert row is not None
            assert row["fence"] == len(own)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.mark.slow
@pytest.mark.proves("one-winner", store="sqlite-shared")
async def test_processes_that_contend_for_the_same_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    processes = [await start(path, "contend", f"w{n}", 60) for n in range(4)]
    acknowledged = [line for lines in await asyncio.gather(*map(rest_of, processes)) for line in lines]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(acknowledged) == 4 * 6 * 60
    await check_log(path, acknowledged)


@pytest.mark.slow
@pytest.mark.proves("killed", store="sqlite-shared", kills=18)
async def test_what_was_acknowledged_survives_kills(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.db"
    acknowledged: list[str] = []
    for turn in range(12):
        processes = [await start(path, "pour", f"w{n}") for n in range(1 + turn % 2)]
        for process in processes:
            assert process.stdout is not None
            lines = [await process.stdout.readline() for _ in range(rng.randrange(1, 150))]
            acknowledged += [line.decode().strip() for line in lines]
            process.kill()
        for process in processes:
            acknowledged += await rest_of(process)
            assert process.returncode == -9
    await check_log(path, acknowledged)


@pytest.mark.proves("store-errors", "doubt", store="sqlite-shared", kills=1)
async def test_what_a_killed_process_held_is_let_go_and_undone(tmp_path: Path) -> None:
    """It dies within a transaction, with the locks of the file; those who waited for them are told what they wrote."""
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as storage:
        holder = await start(path, "hold")
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"holding\n"
        opening = asyncio.create_task(start(path, "once"))
        written = asyncio.create_task(storage.write(Unit("mine", 1, (Append("b", (NewRecord("mine", "t", b"{}"),)),))))
        assert await storage.read_log() == [], "reads answer"
        assert not written.done()
        holder.kill()
        assert await rest_of(holder) == []
        assert holder.returncode == -signal.SIGKILL
        assert await written == await storage.outcome("mine")
        assert await rest_of(await opening) == ["once"]
        assert await storage.outcome("held") is None
        assert {record.id for record in await storage.read_log()} == {"mine", "once"}
        with pytest.raises(DefinitionError, match="no such table"):
            await storage.fetch("SELECT * FROM own", {})


@pytest.mark.slow
async def test_processes_that_saturate_the_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    processes = [await start(path, "pour", f"w{n}") for n in range(3)]
    shares = [0] * len(processes)
    all_go, enough = asyncio.Event(), asyncio.Event()

    async def count(number: int) -> None:
        stdout = processes[number].stdout
        assert stdout is not None
        while await stdout.readline():
            shares[number] += 1
            if all(shares):
                all_go.set()
            if shares[number] >= 2000:
                enough.set()

    # Only from when all go on: the first begins when the last still starts.
    counting = [asyncio.create_task(count(number)) for number in range(len(processes))]
    await all_go.wait()
    shares[:] = [0] * len(shares)
    enough.clear()
    await enough.wait()
    counted = list(shares)
    for process in processes:
        process.kill()
    await asyncio.gather(*counting, *(process.wait() for process in processes))
    assert min(counted) * 4 > max(counted)


async def test_a_commit_of_another_process_rings_the_bell(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as storage:
        await storage.write(Unit("mine", 1, rows=(Row("slots", "insert", ("a", 1)),)))
        rung = asyncio.Event()
        remove = storage.add_bell(rung.set)
        process = await start(path, "once")
        # As a follower does: whatever rang it, it looks, and waits for the next.
        while await storage.head("a") == 0:
            await asyncio.wait_for(rung.wait(), 10)
            rung.clear()
        assert (await rest_of(process))[-1] == "once"
        remove()


@pytest.mark.proves("one-winner", store="sqlite-shared")
async def test_claims_of_several_processes_share_the_sagas(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with SqliteStorage(path) as storage:
        values = {"saga": "trip", "saga_version": 1, "owner": "", "wake_at": 1}
        sagas = [Row("sagas", "insert", (f"s{n}",), values) for n in range(90)]
        living = [Row("workers", "insert", (f"w{n}",), {"alive": 1, "incarnation": 1}) for n in range(3)]
        await storage.write(Unit("seed", 1, rows=(*sagas, *living)))
        processes = [await start(path, "claim", f"w{n}", 40) for n in range(3)]
        claimed = [line for lines in await asyncio.gather(*map(rest_of, processes)) for line in lines]
        assert sorted(claimed) == sorted(f"s{n}" for n in range(90))
        # What another process changed is not remembered otherwise here.
        for n in range(90):
            row = await storage.get("sagas", (f"s{n}",))
            assert row is not None
            check = Row("sagas", "check", (f"s{n}",), {}, {"owner": row["owner"], "fence": 1})
            await storage.write(Unit(f"check-{n}", 1, rows=(check,)))


FORKING = """
import asyncio, os
from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.storage.sqlite import SqliteStorage

async def look(path):
    async with SqliteStorage(path) as storage:
        await storage.head("a")

def in_child(path):
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(look(path))
            print("open", flush=True)
        except EngineStateError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)

async def main():
    async with SqliteStorage("a.db"):
        in_child("a.db")
        in_child(os.path.abspath("a.db"))
        in_child("b.db")
    in_child("a.db")

asyncio.run(main())
"""


async def test_a_forked_child_is_refused_the_file_that_its_parent_has_open(tmp_path: Path) -> None:
    """SQLite would take its parent's locks for its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", FORKING, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    same, by_its_path, other, closed = await rest_of(process)
    for refused in (same, by_its_path):
        assert "the process that forked this one had it open" in refused
    assert (other, closed) == ("open", "open")
