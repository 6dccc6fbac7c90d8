"""Units at exact versions, those who write them whatever becomes of it, and what must be in a store afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from event_workflow_engine.errors import StorageError, VersionConflictError
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit, Written

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from event_workflow_engine.storage.port import Storage

STREAMS = ("a", "b", "c")


def step(stream: str, version: int, size: int = 2) -> Unit:
    """An event at an exact version, and a counter that is raised with it."""
    new = f"{stream} {version}"
    row = Row("sagas", "upsert", (stream,), {"fence": version + 1})
    return Unit(new, 1, (Append(stream, (NewRecord(new, "t", b"x" * size),), version),), (row,))


def rounds_of(rounds: int, size: int) -> list[list[Unit]]:
    """So many units for each stream, those of a round to be written at once."""
    return [[step(stream, n, size) for stream in STREAMS] for n in range(rounds)]


async def attempt(
    storages: Sequence[Storage], units: Sequence[Unit], acknowledged: dict[str, Written]
) -> list[StorageError | VersionConflictError]:
    """Have units written at once, each by the next of the stores.

    Returns:
        Why some did not land: by typed errors.
    """
    by = [storages[n % len(storages)] for n in range(len(units))]
    results = await asyncio.gather(
        *(storage.write(one) for storage, one in zip(by, units, strict=True)), return_exceptions=True
    )
    refused: list[StorageError | VersionConflictError] = []
    for storage, one, result in zip(by, units, results, strict=True):
        if isinstance(result, Written):
            assert acknowledged.setdefault(one.id, result) == result
            assert await storage.outcome(one.id) == result
        else:
            assert isinstance(result, StorageError | VersionConflictError), result
            refused.append(result)
    return refused


async def all_land(
    storages: Sequence[Storage], rounds: Sequence[Sequence[Unit]], acknowledged: dict[str, Written]
) -> None:
    """As callers do who were refused, and whose later units had lost their version by that."""
    for units in rounds:
        await attempt(storages, units, acknowledged)
    assert set(acknowledged) == {one.id for units in rounds for one in units}
    for name, written in acknowledged.items():
        assert await storages[-1].outcome(name) == written


async def check_streams(storage: Storage, acknowledged: Collection[str]) -> None:
    """All that was acknowledged is there, streams have no gaps, rows agree with their streams, and work goes on."""
    stored = [record.id for record in await storage.read_log(limit=1_000_000)]
    assert set(acknowledged) <= set(stored), "what was acknowledged is there"
    assert len(stored) == len(set(stored))
    for stream in STREAMS:
        records = await storage.read_stream(stream, limit=1_000_000)
        assert [record.id for record in records] == [f"{stream} {n}" for n in range(len(records))]
        row = await storage.get("sagas", (stream,))
        assert (row["fence"] if row else 0) == len(records)
    await storage.write(step("afterwards", await storage.head("afterwards")))
