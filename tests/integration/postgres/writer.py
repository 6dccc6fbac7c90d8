"""A process of writers: ``python -m … URL WRITERS UNITS NAME FOLDS``. Prints which units were acknowledged."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import TYPE_CHECKING

from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import ANY_VERSION, Append, NewRecord, Record, Row, RowReader, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.port import SqlSession, Storage

HOT = 8
EXCLUSIVE_EVERY = 16
COUNT = ("count", 1, "all")


def count(_unit: Unit, records: Sequence[Record], rows: RowReader, /) -> Sequence[Row]:
    """An inline document that every writer of every process wants to change."""
    row = rows.get("documents", COUNT)
    total = (int(row["body"]) if row else 0) + sum(record.count for record in records)
    return [Row("documents", "upsert", COUNT, {"body": str(total)})]


async def insert(session: SqlSession) -> None:
    await session.execute("INSERT INTO own VALUES (1)", {})


class Writer:
    """Appends to a stream of its own, and every fifth time to one that all share."""

    def __init__(self, storage: Storage, name: str, acknowledged: dict[str, int]) -> None:
        self._storage = storage
        self._stream = name
        self._rng = random.Random(name)
        self._acknowledged = acknowledged
        self._version = 0

    async def run(self, units: int) -> None:
        for n in range(units):
            hot = self._rng.random() < 0.2
            stream = f"hot-{self._rng.randrange(HOT)}" if hot else self._stream
            records = tuple(NewRecord(uuid7(), "t", b"{}") for _ in range(self._rng.randint(1, 3)))
            unit = Unit(records[0].id, 1, (Append(stream, records, ANY_VERSION if hot else self._version),))
            try:
                if n % EXCLUSIVE_EVERY == 7:
                    await self._storage.exclusive(unit, insert)
                else:
                    await self._storage.write(unit)
            except WorkflowError:
                return  # in a broken store anything may be refused; the check counts what was not
            self._acknowledged[unit.id] = len(records)
            if not hot:
                self._version += len(records)


async def main(url: str, writers: int, units: int, name: str, folds: bool) -> None:
    acknowledged: dict[str, int] = {}
    async with open_storage(url) as storage:
        storage.set_inline_folder(count if folds else None)
        print("ready", flush=True)  # noqa: T201 - to the test
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(Writer(storage, f"{name}-{n}", acknowledged).run(units) for n in range(writers)))
    print(json.dumps(acknowledged), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "folds"))
