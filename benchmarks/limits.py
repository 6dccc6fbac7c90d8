"""Raw limits: what this machine, SQLite and asyncio give without any engine on top.

Each function is one measurement: it takes an empty folder on the disk under test and its sizes, and returns figures by
name. Each runs in a fresh process, right before and after the engine's own measurements (see `benchmarks.child`).
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import statistics
import threading
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from event_workflow_engine._measuring.disk import fsync
from event_workflow_engine._measuring.timing import in_turn, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from event_workflow_engine._measuring.timing import Taken

__all__ = ["fsync"]
"""What is measured here and made elsewhere."""

PAYLOAD = json.dumps({"order": "o-000001", "sku": "lamp", "cents": 1299, "note": "x" * 240}).encode()
"""About 300 bytes, the size of a small event."""

TABLE = "CREATE TABLE log(position INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, version INTEGER, data BLOB)"
INSERT = "INSERT INTO log(stream, version, data) VALUES (?, ?, ?)"


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode with ``synchronous=FULL``, as the engine's own."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def one_row_commits(folder: Path, *, seconds: float = 1.0) -> dict[str, float]:
    """One row a transaction, from one thread: what a sequence of durable steps can reach without an engine."""
    connection = _connect(folder / "limit.db")
    connection.execute(TABLE)

    async def commit(n: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT, ("s", n, PAYLOAD))
        connection.execute("COMMIT")

    taken = asyncio.run(in_turn(commit, seconds=seconds))
    connection.close()
    return {"commits_per_s": taken.per_s}


class BareCommitter:
    """The least that commits the rows of many tasks together: a list, a thread, a transaction a hop."""

    def __init__(self, path: Path, *, rows_a_statement: int = 100) -> None:
        self._rows_a_statement = rows_a_statement
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[None]]] = []
        self._busy = False
        self._batches: queue.SimpleQueue[list[tuple[tuple[Any, ...], asyncio.Future[None]]] | None] = (
            queue.SimpleQueue()
        )
        self._connection = _connect(path)
        self._connection.execute(TABLE)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def write(self, *row: Any) -> None:
        """Return when the row is on disk."""
        future = self._loop.create_future()
        self._waiting.append((row, future))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._send)
        await future

    def close(self) -> None:
        """End the thread."""
        self._batches.put(None)
        self._thread.join()
        self._connection.close()

    def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        self._busy = bool(batch)
        if batch:
            self._batches.put(batch)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._connection.execute("BEGIN IMMEDIATE")
            for first in range(0, len(batch), self._rows_a_statement):
                part = [row for row, _ in batch[first : first + self._rows_a_statement]]
                values = ", ".join(["(?, ?, ?)"] * len(part))
                sql = INSERT.replace("(?, ?, ?)", values)
                self._connection.execute(sql, [value for row in part for value in row])
            self._connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._done, batch)

    def _done(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[None]]]) -> None:
        for _, future in batch:
            future.set_result(None)
        # The tasks just woken write first, so that their next rows share a transaction.
        self._loop.call_soon(self._send)


def group_commit(
    folder: Path, *, clients: int = 1000, writes: int = 5, rounds: int = 3, rows_a_statement: int = 100
) -> dict[str, float]:
    """Tasks that each write a few rows, one after another, all sharing transactions: the limit for concurrent sagas."""

    async def main() -> float:
        committer = BareCommitter(folder / "limit.db", rows_a_statement=rows_a_statement)

        async def rate(turn: str, clients: int) -> float:
            taken = await side_by_side(
                lambda client, version: committer.write(f"{turn}-{client}", version, PAYLOAD),
                callers=clients,
                each=writes,
            )
            return taken.per_s

        await rate("warm", min(clients, 50))
        rates = [await rate(f"s-{turn}", clients) for turn in range(rounds)]
        committer.close()
        return statistics.median(rates)

    return {"writes_per_s": asyncio.run(main())}


def hop_latency(folder: Path, *, samples: int = 300, writes: int = 4) -> dict[str, float]:
    """Four rows, each committed before the next: the least a saga of three steps (start, and each step) can take."""

    async def main() -> Taken:
        committer = BareCommitter(folder / "limit.db")

        async def rows(n: int) -> None:
            for version in range(writes):
                await committer.write(f"s-{n}", version, PAYLOAD)

        taken = await in_turn(rows, count=samples, warm=30)
        committer.close()
        return taken

    taken = asyncio.run(main())
    return {"p50_ms": taken.ms(50), "p99_ms": taken.ms(99)}


def asyncio_tasks(folder: Path, *, tasks: int = 50_000) -> dict[str, float]:
    """``await create_task(…)`` of a coroutine that does nothing."""
    del folder

    async def nothing() -> None:
        pass

    async def main() -> float:
        begun = perf_counter()
        for _ in range(tasks):
            await asyncio.create_task(nothing())
        return tasks / (perf_counter() - begun)

    return {"tasks_per_s": asyncio.run(main())}


class _Note(msgspec.Struct):
    order: str
    sku: str
    cents: int
    note: str


def msgspec_round_trip(folder: Path, *, rounds: int = 100_000) -> dict[str, float]:
    """Decoding and encoding 300 bytes of JSON, as a plain dict and as a typed struct."""
    del folder
    encode = msgspec.json.Encoder().encode
    plain, typed = msgspec.json.Decoder().decode, msgspec.json.Decoder(_Note).decode

    def rate(decode: Callable[[bytes], Any]) -> float:
        begun = perf_counter()
        for _ in range(rounds):
            encode(decode(PAYLOAD))
        return rounds / (perf_counter() - begun)

    return {"dict_per_s": rate(plain), "struct_per_s": rate(typed)}


@dataclass
class _Tally:
    events: int = 0
    cents: int = 0


@dataclass(frozen=True)
class _Changed:
    order: str
    cents: int


def _fill(path: Path, events: int, streams: int) -> sqlite3.Connection:
    connection = _connect(path)
    connection.execute(TABLE)
    connection.execute("CREATE INDEX by_stream ON log(stream, version)")
    connection.execute("CREATE TABLE documents(key TEXT PRIMARY KEY, data BLOB)")
    encode = msgspec.json.encode
    rows = [(f"a-{n % streams}", n // streams + 1, encode(_Changed(f"o-{n}", n % 100))) for n in range(events)]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(INSERT, rows)
    connection.execute("COMMIT")
    return connection


def bare_load(folder: Path, *, events: int = 10_000, rounds: int = 5) -> dict[str, float]:
    """Reading a stream, decoding each payload into a frozen dataclass and folding it: the limit for an aggregate."""
    connection = _fill(folder / "limit.db", events, 1)
    decode = msgspec.json.Decoder(_Changed).decode
    taken = []
    for _ in range(rounds):
        begun = perf_counter()
        tally = _Tally()
        for (data,) in connection.execute("SELECT data FROM log WHERE stream = 'a-0' ORDER BY version"):
            tally.cents += decode(data).cents
            tally.events += 1
        taken.append((perf_counter() - begun) * 1000)
        if tally.events != events:
            raise AssertionError(f"read {tally.events} of {events}")
    return {"load_ms": statistics.median(taken)}


def bare_fold(folder: Path, *, events: int = 30_000, keys: int = 100, batch: int = 1000) -> dict[str, float]:
    """Folding a log into documents in batches, each committed with its checkpoint: the limit for a projection."""
    connection = _fill(folder / "limit.db", events, keys)
    decode, encode = msgspec.json.Decoder(_Changed).decode, msgspec.json.encode
    upsert = "INSERT INTO documents VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET data = excluded.data"
    documents: dict[str, _Tally] = {}
    position, begun = 0, perf_counter()
    while True:
        page = connection.execute(
            "SELECT position, stream, data FROM log WHERE position > ? ORDER BY position LIMIT ?", (position, batch)
        ).fetchall()
        if not page:
            break
        touched = set()
        for _, stream, data in page:
            tally = documents.setdefault(stream, _Tally())
            tally.cents += decode(data).cents
            tally.events += 1
            touched.add(stream)
        position = page[-1][0]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(upsert, [(key, encode(documents[key])) for key in touched])
        connection.execute(upsert, ("checkpoint", encode(position)))
        connection.execute("COMMIT")
    return {"events_per_s": events / (perf_counter() - begun)}
