"""Files that are cut, overwritten or made of anything: typed errors, and no crash, hang or damage elsewhere."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from event_workflow_engine.errors import WorkflowError
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit
from event_workflow_engine.storage.sqlite import SqliteStorage


@cache
def healthy() -> bytes:
    """A store with something in every kind of page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"

        async def fill() -> None:
            async with SqliteStorage(path) as storage:
                for n in range(120):
                    new = f"id-{n}"
                    rows = (Row("sagas", "insert", (f"s{n}",), {"owner": "", "state": "RUNNING", "wake_at": n}),)
                    await storage.write(Unit(new, n, (Append(f"s-{n % 3}", (NewRecord(new, "t", b"{}" * n),)),), rows))

        asyncio.run(fill())
        return path.read_bytes()


async def use(path: Path) -> list[Any]:
    """Everything one does to a store; what was raised."""
    raised: list[Any] = []

    async def attempt(work: Any) -> None:
        try:
            await work
        except WorkflowError as error:
            raised.append(error)

    try:
        async with asyncio.timeout(30), SqliteStorage(path) as storage:
            await attempt(storage.read_log())
            await attempt(storage.read_log(types=["t"], categories=["s"]))
            await attempt(storage.read_stream("s-1"))
            await attempt(storage.read_stream("s-1", backwards=True, limit=3))
            await attempt(storage.read_streams(["s-0", "s-2"]))
            await attempt(storage.query("sagas_page", state=None, saga=None, after="", limit=100))
            await attempt(storage.query("streams_page", prefix="", after="", limit=100))
            await attempt(storage.outcome("id-7"))
            await attempt(storage.get("sagas", ("s1",)))
            await attempt(storage.status())
            rows = (Row("sagas", "update", ("s1",), {"state": "X"}),)
            await attempt(storage.write(Unit("new", 1, (Append("s-1", (NewRecord("new", "t", b"{}"),)),), rows)))
            await attempt(storage.write(Unit("id-3", 1, (Append("s-0", (NewRecord("id-3", "t", b"x"),)),))))
            await attempt(storage.perform("claim_sagas", worker="w", now=5, limit=5, sagas="[]"))
    except WorkflowError as error:
        raised.append(error)
    return raised


def attempt_on(content: bytes, wal: bytes = b"") -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        path.write_bytes(content)
        if wal:
            Path(f"{path}-wal").write_bytes(wal)
        return asyncio.run(use(path))


def test_the_healthy_file_is() -> None:
    (error,) = attempt_on(healthy())  # only the id that is in use
    assert "other content" in str(error)


@settings(max_examples=40)
@given(st.binary(max_size=5000))
def test_any_bytes(content: bytes) -> None:
    raised = attempt_on(content)
    assert len(raised) <= 1 if content else True


@settings(max_examples=40)
@given(st.integers(0, 200_000))
def test_a_file_that_was_cut(length: int) -> None:
    attempt_on(healthy()[:length])


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.binary(min_size=1, max_size=40)), min_size=1, max_size=8))
def test_a_file_that_was_overwritten_in_places(changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(healthy())
    for place, new in changes:
        at = place % len(content)
        content[at : at + len(new)] = new[: len(content) - at]
    attempt_on(bytes(content))


@settings(max_examples=30)
@given(st.binary(max_size=20_000))
def test_any_bytes_for_a_write_ahead_log(wal: bytes) -> None:
    # SQLite takes of it only what its checksums confirm.
    raised = attempt_on(healthy(), wal)
    assert len(raised) == 1


@settings(max_examples=60)
@given(
    st.sampled_from(["events", "streams", "sagas", "units", "positions_floor", "schema_migrations"]),
    st.integers(0, 12),
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.binary(max_size=5), st.floats()),
)
def test_values_of_any_type_in_any_column(table: str, column: int, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        path.write_bytes(healthy())
        connection = sqlite3.connect(path)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        try:
            connection.execute(f"UPDATE OR REPLACE {table} SET {columns[column % len(columns)]} = ?", (value,))
            connection.commit()
        except (sqlite3.Error, UnicodeEncodeError):
            connection.rollback()
        connection.close()
        asyncio.run(use(path))
