"""A process of its own on a store's file; tests start it with what to do, and read what it acknowledges.

Each acknowledged unit is a line on standard output, written when the store has answered and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from event_workflow_engine.errors import RowConflictError, VersionConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Append, NewRecord, Row, Storage, Unit, Written

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import SqlSession


def acknowledge(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def step(stream: str, version: int) -> Unit:
    new = uuid7()
    row = Row("sagas", "update", (stream,), {"fence": version + 1}, {"fence": version})
    return Unit(new, 1, (Append(stream, (NewRecord(new, "t", b"{}"),), version),), (row,))


async def seed(storage: Storage, stream: str) -> None:
    row = Row("sagas", "upsert", (stream,), {"fence": 0}, {"fence": 0})
    with contextlib.suppress(RowConflictError):  # another process was here before
        await storage.write(Unit(uuid7(), 1, rows=(row,)))


async def contend(storage: Storage, stream: str, rounds: int) -> None:
    """Append to a stream that others append to, at its version, until `rounds` of ours landed."""
    landed = 0
    while landed < rounds:
        one = step(stream, await storage.head(stream))
        try:
            await storage.write(one)
        except (VersionConflictError, RowConflictError):
            continue
        landed += 1
        acknowledge(one.id)


async def pour(storage: Storage, stream: str) -> None:
    """Append to a stream of our own for ever, without looking."""
    await seed(storage, stream)
    version = await storage.head(stream)
    while True:
        one = step(stream, version)
        written: Written = await storage.write(one)
        version = written.appended[0].version
        acknowledge(one.id)


async def hold(storage: Storage) -> None:
    """Hold the file's locks within a transaction, which has changed something, for ever."""

    async def work(session: SqlSession) -> None:
        await session.execute("CREATE TABLE own (a)", {})
        acknowledge("holding")
        await asyncio.Event().wait()

    await storage.exclusive(Unit("held", 1, (Append("a", (NewRecord("held", "t", b"{}"),)),)), work)


async def main(path: str, task: str, name: str, rounds: int) -> None:
    async with open_storage(f"sqlite:///{path}") as storage:
        acknowledge("ready")
        match task:
            case "contend":
                streams = [f"shared-{n}" for n in range(3)]
                for stream in streams:
                    await seed(storage, stream)
                await asyncio.gather(*(contend(storage, streams[n % 3], rounds) for n in range(6)))
            case "pour":
                await asyncio.gather(*(pour(storage, f"{name}-{n}") for n in range(20)))
            case "hold":
                await hold(storage)
            case "once":
                await storage.write(Unit("once", 1, (Append("a", (NewRecord("once", "t", b"{}"),)),)))
                acknowledge("once")
            case "claim":
                claimed = await storage.perform("claim_sagas", worker=name, now=10, limit=rounds, sagas='[["trip",1]]')
                for row in claimed:
                    acknowledge(row["id"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
