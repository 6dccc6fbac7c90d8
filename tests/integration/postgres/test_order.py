"""Positions are in the order of commits, on every path that appends, whoever writes: a reader at the tail misses nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import pytest
from tests.integration.postgres.writer import COUNT

from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Append, NewRecord, Record, Unit
from event_workflow_engine.storage.postgres.storage import PostgresStorage

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import SqlSession, Storage

ROOT = Path(__file__).parents[3]
Reader = Callable[["Storage", asyncio.Event], Awaitable[list["Record"]]]
UNITS = 1600
"""Of all writers of a run together."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Found(NamedTuple):
    """What a run of writers left, and what a reader at the tail saw of it.

    Attributes:
        missed: Records of the log that the tail was never given, or was given twice.
        inverted: Records that it was given behind one of a higher position.
        holes: Versions that streams lack or have twice.
        lost: Acknowledged events that are not in the log.
        events: In the log.
        counted: By the inline document.
    """

    missed: int
    inverted: int
    holes: int
    lost: int
    events: int
    counted: int | None


async def tail(storage: Storage, ended: asyncio.Event) -> list[Record]:
    """Everything that a reader sees who always goes on from the last position it saw."""
    seen: list[Record] = []
    while True:
        last_round = ended.is_set()
        page = await storage.read_log(after=seen[-1].position if seen else 0, limit=1000)
        seen += page
        if last_round and not page:
            return seen


async def tail_by_transaction(storage: Storage, ended: asyncio.Event) -> list[Record]:
    """The same by transaction id, up to the oldest that is under way: what is in common use, and broken."""
    assert isinstance(storage, PostgresStorage)
    server = await asyncpg.connect(storage.address.dsn)
    seen: list[Record] = []
    last = (0, 0)
    try:
        while True:
            last_round = ended.is_set()
            page = await server.fetch(
                f"""
                SELECT xmin::text::bigint AS xid, position, stream, version, count, id, type, schema, data, metadata, recorded_at
                FROM {storage.address.schema}.events
                WHERE (xmin::text::bigint, position) > ($1, $2)
                  AND xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
                ORDER BY 1, 2 LIMIT 1000
                """,
                *last,
            )
            seen += [Record(*list(row.values())[1:]) for row in page]
            if page:
                last = (page[-1]["xid"], page[-1]["position"])
            elif last_round:
                return seen
    finally:
        await server.close()


async def run(
    url: str, writers: int, processes: int, *, folds: bool, reader: Reader = tail, units: int = UNITS
) -> Found:
    async def make(session: SqlSession) -> None:
        await session.execute("CREATE TABLE own (n INT)", {})

    def start(number: int) -> subprocess.Popen[str]:
        share = [str(writers // processes), str(units // writers), f"p{number}", "folds" if folds else "-"]
        return stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.postgres.writer", url, *share],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    async with open_storage(url) as storage:
        await storage.exclusive(Unit("made", 1, (Append("made", (NewRecord("made", "t", b""),)),)), make)
        ended = asyncio.Event()
        reading = asyncio.create_task(reader(storage, ended))
        with ExitStack() as stack:
            started = [start(number) for number in range(processes)]
            for process in started:
                assert await asyncio.to_thread(line, process) == "ready\n"
            for process in started:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            acknowledged: dict[str, int] = {"made": 1}
            for process in started:
                acknowledged |= json.loads(await asyncio.to_thread(line, process))
        ended.set()
        return compare(await reading, await whole_log(storage), acknowledged, await storage.get("documents", COUNT))


async def whole_log(storage: Storage) -> list[Record]:
    log: list[Record] = []
    while page := await storage.read_log(after=log[-1].position if log else 0, limit=5000):
        log += page
    return log


def compare(
    seen: list[Record], log: list[Record], acknowledged: dict[str, int], document: dict[str, str] | None
) -> Found:
    assert [record.position for record in log] == sorted({record.position for record in log})
    versions: defaultdict[str, list[int]] = defaultdict(list)
    for record in log:
        versions[record.stream].append(record.version)
    stored = {record.id for record in log}
    return Found(
        missed=len(stored - {record.id for record in seen}) + (len(seen) - len({record.id for record in seen})),
        inverted=sum(before.position >= after.position for before, after in pairwise(seen)),
        holes=sum(found != list(range(1, len(found) + 1)) for found in versions.values()),
        lost=sum(count for unit, count in acknowledged.items() if unit not in stored),
        events=len(log),
        counted=None if document is None else int(document["body"]),
    )


@pytest.mark.parametrize("folds", [False, True], ids=["plain", "inline"])
@pytest.mark.parametrize(
    ("writers", "processes"),
    [
        (16, 1),
        (64, 4),
        pytest.param(64, 1, marks=pytest.mark.long),
        pytest.param(16, 4, marks=pytest.mark.long),
    ],
)
@pytest.mark.proves("no-gap", store="postgres")
async def test_a_reader_at_the_tail_misses_nothing(
    postgres_url: str, writers: int, processes: int, folds: bool
) -> None:
    async with open_storage(postgres_url, auto_upgrade=True):
        pass
    found = await run(postgres_url, writers, processes, folds=folds)
    assert (found.missed, found.inverted, found.holes, found.lost) == (0, 0, 0, 0)
    assert found.events > UNITS
    assert found.counted == (found.events - 1 if folds else None)


async def test_without_the_lock_the_same_check_fails(postgres_url: str) -> None:
    """So it can fail: positions are then given in another order than commits are made in."""
    async with open_storage(postgres_url, auto_upgrade=True):
        pass
    await replace_lock(postgres_url, "")
    found = await run(postgres_url, 64, 4, folds=False)
    assert found.missed or found.inverted or found.holes or found.lost


async def replace_lock(url: str, body: str) -> None:
    schema = url.rpartition("=")[2]
    server = await asyncpg.connect(url.partition("?")[0])
    function = f"{schema}.lock_store() RETURNS void LANGUAGE plpgsql"
    await server.execute(f"CREATE OR REPLACE FUNCTION {function} AS $$BEGIN {body} END$$")
    await server.close()


LOCK = "PERFORM pg_advisory_xact_lock(hashtextextended('event-workflow-engine ' || '{schema}.', 0));"


OWN_WORK = "PERFORM pg_sleep(random() * 0.005);"


@pytest.mark.parametrize("reader", [tail, tail_by_transaction], ids=["by position", "by transaction"])
async def test_paging_by_transaction_ids_the_same_check_fails(postgres_url: str, reader: Reader) -> None:
    """A transaction may have its id before it waits for the lock, as one has that wrote to users' tables first.

    Ids are then in another order than commits, while positions, which are given under the lock, are not.
    """
    async with open_storage(postgres_url, auto_upgrade=True):
        pass
    lock = LOCK.format(schema=postgres_url.rpartition("=")[2])
    await replace_lock(postgres_url, f"PERFORM pg_current_xact_id(); {OWN_WORK} {lock}")
    found = await run(postgres_url, 64, 4, folds=False, reader=reader)
    assert bool(found.inverted) == (reader is tail_by_transaction)
    assert (found.holes, found.lost) == (0, 0)
