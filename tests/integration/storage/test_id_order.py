"""In whatever order ids come, each is stored once and found again; those that come in order are in no index."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_workflow_engine.errors import EventIdConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.judging.landed import KnownIds
from event_workflow_engine.storage.port import ANY_VERSION, Append, NewRecord, Unit
from event_workflow_engine.storage.sqlite import SqliteStorage
from event_workflow_engine.storage.sqlite.connection import open_writer
from event_workflow_engine.storage.sqlite.id_order import IdOrder
from event_workflow_engine.storage.sqlite.log_lookup import StoredIds
from event_workflow_engine.storage.sqlite.migrate import MIGRATIONS, migrate
from event_workflow_engine.storage.sqlite.queries import QUERIES

if TYPE_CHECKING:
    from pathlib import Path

NOW_US = 1_800_000_000_000_000
LANDMARK, LOOSE = 1, 2


def id_at(place: int) -> str:
    """As an id made so many milliseconds after a certain time."""
    text = f"{NOW_US // 1000 + place:012x}"
    return f"{text[:8]}-{text[8:]}-7000-8000-000000000000"


def opened() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, ":memory:", auto_upgrade=True)
    connection.execute("INSERT INTO streams VALUES (1, 'a', 0, 0)")
    return connection


class Log:
    """Writes as the writer does, and says what is to be found."""

    def __init__(self) -> None:
        self.connection = opened()
        self.order = IdOrder()
        self.order.load(self.connection)
        self.stored: dict[str, int] = {}
        self.end = 0

    def write(self, batch: list[tuple[str, int, int]]) -> None:
        """Insert one transaction's records; what holds an id twice must be refused, and nothing else."""
        ids = [record_id for record_id, _, _ in batch]
        repeats = len(set(ids)) < len(ids) or any(record_id in self.stored for record_id in ids)
        records: list[Any] = []
        places: dict[str, int] = {}
        end = self.end
        for record_id, count, later_ms in batch:
            end += count
            places[record_id] = end
            records += (end, 1, end, count, 0, 0, record_id, "t", 1, b"{}", b"", NOW_US + later_ms * 1000, None)
        self.connection.execute("BEGIN")
        try:
            self.order.insert(self.connection, records)
        except sqlite3.IntegrityError:
            assert repeats, "all of it was new"
            self.connection.execute("ROLLBACK")
            self.load()
        else:
            assert not repeats, "an id is stored twice"
            self.connection.execute("COMMIT")
            self.stored |= places
            self.end = end

    def load(self) -> None:
        """As after another process's commit."""
        self.order = IdOrder()
        self.order.load(self.connection)

    def check(self, ids: list[str]) -> None:
        """Exactly what is stored is found, by one id and by many."""
        for record_id in ids:
            found = self.connection.execute(QUERIES["unit_start"].sql, {"id": record_id}).fetchall()
            assert [place for place, _ in found] == ([self.stored[record_id]] if record_id in self.stored else [])
        assert known(self.connection, ids) == self.stored.keys() & set(ids)

    def delete(self, position: int) -> None:
        """By hand, as somebody might."""
        self.connection.execute("DELETE FROM events WHERE position = ?", (position,))
        self.stored = {record_id: place for record_id, place in self.stored.items() if place != position}
        self.load()


def known(connection: sqlite3.Connection, ids: list[str]) -> set[str]:
    """Those of `ids` that are found together."""
    found = KnownIds(set(), set())
    new = tuple(NewRecord(one, "t", b"{}") for one in ids)
    StoredIds(connection).find([Unit(ids[0], NOW_US, (Append("a", new),))], found)
    return found.records


IDS = [id_at(place + minute * 60_000) for minute in range(3) for place in range(20)]
IDS += ["order-7", "0", id_at(10**9), id_at(-(10**9))]
records = st.tuples(
    st.sampled_from(IDS), st.sampled_from([1, 1, 2, 13, 30, 63, 64, 65]), st.sampled_from([0, 0, 10, 60_010])
)
rising = st.lists(records, min_size=1, max_size=12).map(sorted)
batches = st.one_of(rising, st.lists(records, min_size=1, max_size=12))
does = st.one_of(batches, st.just("load"), st.integers(0, 11))


@settings(max_examples=500, deadline=None)
@given(st.lists(does, max_size=14))
def test_ids_in_any_order_are_stored_once_and_found(program: list[Any]) -> None:
    log = Log()
    with closing(log.connection):
        for do in program:
            if do == "load":
                log.load()
            elif isinstance(do, int):
                for position in sorted(log.stored.values())[do : do + 1]:
                    log.delete(position)
            else:
                log.write(do)
        log.check(IDS)


# -- in a store --------------------------------------------------------------------------------------------------------


def unit(record_id: str = "", *, data: bytes = b"{}", after_s: float = 0) -> Unit:
    """One event, of now or a little later."""
    new = record_id or uuid7()
    at = time.time_ns() // 1000 + int(after_s * 1e6)
    return Unit(new, at, (Append("a", (NewRecord(new, "t", data),), ANY_VERSION),))


def standing(path: Path) -> dict[int, int]:
    """How many records' ids stand how."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT id_order, count(*) FROM events GROUP BY id_order").fetchall())


async def test_what_comes_in_order_is_in_an_index_once_in_64_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    for _ in range(2):
        async with SqliteStorage(path) as storage:
            for _ in range(200):
                await storage.write(unit())
    stand = standing(path)
    assert LOOSE not in stand
    assert stand[LANDMARK] == 7  # at 1, 65, 129 … 385
    assert sum(stand.values()) == 400


async def test_ids_of_other_kinds_and_from_the_future_loosen_no_others(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    year = 365 * 24 * 3600 * 1000
    async with SqliteStorage(path) as storage:
        for odd in ("order-7", "~", id_at(100 * year), "f47ac10b-58cc-4372-a567-0e02b2c3d479", "0"):
            await storage.write(unit())
            await storage.write(unit(odd))
            for _ in range(20):
                await storage.write(unit())
    assert standing(path)[LOOSE] == 5


async def test_an_id_that_was_ahead_of_its_time_is_not_stored_again_when_that_has_come(tmp_path: Path) -> None:
    ahead = id_at(time.time_ns() // 1_000_000 - NOW_US // 1000 + 120_000)
    async with SqliteStorage(tmp_path / "a.db") as storage:
        await storage.write(unit())
        first = await storage.write(unit(ahead))
        await storage.write(unit(after_s=119))
        assert await storage.write(unit(ahead, after_s=121)) == first
        with pytest.raises(EventIdConflictError, match="other content"):
            await storage.write(unit(ahead, data=b"[]", after_s=121))
        assert await storage.outcome(ahead) == first


async def test_ids_of_a_file_from_before_are_found(tmp_path: Path) -> None:
    path = str(tmp_path / "a.db")
    old = ["order-7", *(uuid7() for _ in range(100))]
    connection = open_writer(path, lambda uri: sqlite3.connect(uri, uri=True, isolation_level=None))
    with closing(connection):
        migrate(connection, path, auto_upgrade=True, migrations=MIGRATIONS[:3])
        connection.execute("INSERT INTO streams VALUES (1, 'a', ?, ?)", (len(old), len(old)))
        connection.executemany(
            "INSERT INTO events VALUES (?, 1, ?, 1, 0, ?, ?, 't', 1, x'7b7d', x'', ?)",
            [(place, place, place - 1, one, time.time_ns() // 1000) for place, one in enumerate(old, 1)],
        )
    async with SqliteStorage(path, auto_upgrade=True) as storage:
        await storage.write(unit())
        for place, one in enumerate(old, 1):
            first = await storage.outcome(one)
            assert first is not None
            assert first.appended[0].position == place
            assert await storage.write(unit(one)) == first
        with pytest.raises(EventIdConflictError):
            await storage.write(unit(old[50], data=b"[]"))
    assert standing(tmp_path / "a.db") == {LANDMARK: 1, LOOSE: 101}
