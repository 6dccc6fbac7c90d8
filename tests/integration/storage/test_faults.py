"""Every statement of the writer fails once: what was acknowledged is stored once, and what was not can be tried again."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.storage.kit import unit
from tests.integration.storage.pouring import attempt
from tests.integration.storage.test_processes import check_log, rest_of, start

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage.port import Row, Unit, Written
from event_workflow_engine.storage.sqlite import SqliteStorage

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from tests.guarantees.recording import Tally

    from event_workflow_engine.storage.port import SqlSession

STATEMENTS = 30
"""So many the writer runs for four units, or more."""

SOME = 12


def disk_error() -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    return error


class Fault:
    """Fails one statement of a writing connection, before or after it has been run; or all with some text."""

    def __init__(self) -> None:
        self.armed = False
        self.count = 0
        self.fail_at = -1
        self.after = False
        self.always = ""
        self.failed_at = ""

    def connect(self, uri: str) -> sqlite3.Connection:
        fault = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:  # type: ignore[override]
                if not fault.armed or "mode=ro" in uri or sql.startswith("PRAGMA"):
                    return super().execute(sql, *params)
                if fault.always and fault.always in sql:
                    if fault.after:
                        super().execute(sql, *params)
                    raise disk_error()
                fault.count += 1
                if fault.count != fault.fail_at:
                    return super().execute(sql, *params)
                fault.failed_at = sql.split("\n", maxsplit=1)[0][:40]
                if fault.after:
                    super().execute(sql, *params)
                raise disk_error()

        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Connection)


def step(name: str, number: int) -> Unit:
    """An event at an exact version, and a counter raised by compare-and-set."""
    row = Row("sagas", "update", (name,), {"fence": number + 1}, {"fence": number})
    return unit(name, expected=number, rows=(row,))


async def make(path: Path, fault: Fault, streams: Sequence[str] = ("a", "b")) -> SqliteStorage:
    storage = SqliteStorage(path, connect=fault.connect)
    await storage.__aenter__()
    for name in streams:
        insert = Row("sagas", "insert", (name,), {"fence": 0})
        await storage.write(Unit(f"seed-{name}", 1, rows=(insert,)))
    return storage


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.proves("store-errors", "doubt", store="sqlite")
async def test_every_statement_fails_once(tmp_path: Path, after: bool, tally: Tally) -> None:
    seen: set[str] = set()
    for number in range(1, 200):
        fault = Fault()
        fault.fail_at, fault.after = number, after
        path = tmp_path / f"{after}-{number}.db"
        storage = await make(path, fault)
        told: list[str] = []
        storage.add_commit_hook(lambda committed, told=told: told.extend(u.id for u, _ in committed))  # type: ignore[misc]
        fault.armed = True
        rounds = [[step("a", n), step("b", n), Unit(f"rows-{n}", 1, rows=(slot(n),))] for n in range(2)]
        acknowledged: dict[str, Written] = {}
        for units in rounds:
            await attempt([storage], units, acknowledged)
        fault.armed = False
        # Some were refused, then those behind them conflicted: all again, as a caller would who has the units at hand.
        for units in rounds:
            first = dict(acknowledged)
            await attempt([storage], units, acknowledged)
            assert {name: acknowledged[name] for name in first} == first
        assert set(acknowledged) == {one.id for units in rounds for one in units}
        for name in ("a", "b"):
            assert [record.version for record in await storage.read_stream(name)] == [1, 2]
            row = await storage.get("sagas", (name,))
            assert row is not None
            assert row["fence"] == 2
        assert len(await storage.query("open_slots")) == 2
        # Also of what landed although its commit raised, and once.
        assert sorted(told) == sorted(acknowledged)
        await storage.__aexit__(None, None, None)
        if not fault.failed_at:
            tally.count(runs=number, faults=number - 1)
            break
        seen.add(fault.failed_at.split()[0])
    else:
        pytest.fail("the scenario never ran without a fault")
    assert {"BEGIN", "INSERT", "UPDATE", "COMMIT"} <= seen


@pytest.mark.slow
@pytest.mark.proves("store-errors", "doubt", store="sqlite-shared")
async def test_a_statement_fails_beside_a_process_that_goes_on(
    tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    """The other process commits all the time, and is killed at the end: nobody takes its commits for ours."""
    path = tmp_path / "a.db"
    other = await start(path, "pour", "other")
    mine: set[str] = set()
    failed = 0
    for turn, number in enumerate(rng.sample(range(1, STATEMENTS), SOME)):
        fault = Fault()
        fault.fail_at, fault.after = number, rng.random() < 0.5
        streams = f"a{turn}", f"b{turn}"
        storage = await make(path, fault, streams)
        told: list[str] = []
        storage.add_commit_hook(lambda committed, told=told: told.extend(u.id for u, _ in committed))  # type: ignore[misc]
        acknowledged: dict[str, Written] = {}
        rounds = [[step(name, n) for name in streams] for n in range(2)]
        fault.armed = True
        for units in rounds:
            await attempt([storage], units, acknowledged)
        fault.armed = False
        for units in rounds:
            await attempt([storage], units, acknowledged)
        assert sorted(told) == sorted(acknowledged) == sorted(one.id for units in rounds for one in units)
        mine |= set(acknowledged)
        failed += fault.failed_at != ""
        await storage.__aexit__(None, None, None)
    other.kill()
    await check_log(path, [*mine, *await rest_of(other)])
    tally.count(runs=SOME, faults=failed, kills=1)
    assert failed > SOME // 2


def slot(number: int) -> Row:
    return Row("slots", "insert", ("task", number), {"done": 0})


@pytest.mark.parametrize("text", ["COMMIT", "INSERT INTO events", "BEGIN"])
@pytest.mark.proves("store-errors", store="sqlite", faults=1)
async def test_a_disk_that_fails_for_good_and_comes_back(tmp_path: Path, text: str) -> None:
    fault = Fault()
    storage = await make(tmp_path / "a.db", fault)
    fault.always, fault.armed = text, True
    results = await asyncio.gather(*(storage.write(step("a", n)) for n in range(3)), return_exceptions=True)
    assert isinstance(results[0], StorageUnavailableError)
    assert "disk I/O error" in str(results[0])
    assert not [result for result in results if isinstance(result, Written)]
    fault.armed = False
    await storage.write(step("a", 0))
    assert await storage.head("a") == 1
    await storage.__aexit__(None, None, None)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.proves("doubt", store="sqlite", faults=1)
async def test_a_commit_in_doubt_of_exclusive_work(tmp_path: Path, after: bool) -> None:
    fault = Fault()
    storage = await make(tmp_path / "a.db", fault)

    async def work(session: SqlSession) -> None:
        await session.execute("CREATE TABLE IF NOT EXISTS own (a)", {})
        await session.execute("INSERT INTO own VALUES (1)", {})
        fault.armed, fault.always, fault.after = True, "COMMIT", after

    one = step("a", 0)
    if after:
        written = await storage.exclusive(one, work)
        assert written == await storage.outcome(one.id)
        assert await storage.fetch("SELECT * FROM own", {}) == [{"a": 1}]
    else:
        with pytest.raises(StorageUnavailableError):
            await storage.exclusive(one, work)
        assert await storage.outcome(one.id) is None
    fault.armed = False
    await storage.write(step("b", 0))
    await storage.__aexit__(None, None, None)


@pytest.mark.proves("store-errors", store="sqlite", faults=3)
async def test_a_claim_that_fails_changes_nothing(tmp_path: Path) -> None:
    fault = Fault()
    storage = await make(tmp_path / "a.db", fault)
    rows = (
        Row("workers", "insert", ("w",), {"alive": 1, "incarnation": 1}),
        Row("sagas", "insert", ("s",), {"owner": ""}),
    )
    await storage.write(Unit("more", 1, rows=rows))
    for text in ("BEGIN", "UPDATE sagas", "COMMIT"):
        fault.always, fault.armed = text, True
        with pytest.raises(StorageUnavailableError):
            await storage.perform("claim_saga", worker="w", id="s")
        fault.armed = False
        row = await storage.get("sagas", ("s",))
        assert row is not None
        assert row["owner"] == ""
    assert len(await storage.perform("claim_saga", worker="w", id="s")) == 1
    await storage.__aexit__(None, None, None)


async def test_a_known_id_in_a_batch_costs_the_others_one_more_round(tmp_path: Path) -> None:
    commits: list[str] = []

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:  # type: ignore[override]
            if sql in ("COMMIT", "ROLLBACK"):
                commits.append(sql)
            return super().execute(sql, *params)

    def connect(uri: str) -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Connection)

    async with SqliteStorage(tmp_path / "a.db", connect=connect) as storage:
        known = unit("a")
        await storage.write(known)
        commits.clear()
        await asyncio.gather(*(storage.write(one) for one in [unit("b"), known, *(unit("c") for _ in range(50))]))
        assert commits == ["ROLLBACK", "COMMIT"]
