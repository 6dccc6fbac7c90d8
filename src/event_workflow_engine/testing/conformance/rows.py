# ruff: noqa: PLR2004 - the numbers are the expectation
"""Compare-and-set rows: each operation, what it expects, and what it leaves."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.errors import DefinitionError, OwnershipLostError, RowConflictError
from event_workflow_engine.storage.port import Row, RowOp, WorkerRef
from event_workflow_engine.storage.tables import TABLES
from event_workflow_engine.testing.conformance.kit import Cases, events, row_unit, saga, unit, worker

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage


class _State(StrEnum):
    RUNNING = "RUNNING"


def _row(op: RowOp, values: dict[str, Any] | None = None, where: dict[str, Any] | None = None) -> Row:
    return Row("sagas", op, ("s1",), values or {}, where or {})


# Each: whether the row exists before, the operation, whether it may pass.
OPERATIONS: dict[str, tuple[bool, Row, bool]] = {
    "insert new": (False, _row("insert", {"state": "X"}), True),
    "insert taken": (True, _row("insert", {"state": "X"}), False),
    "update": (True, _row("update", {"state": "X"}), True),
    "update as expected": (True, _row("update", {"state": "X"}, {"owner": "", "fence": 0}), True),
    "update with nothing": (True, _row("update"), True),
    "update not as expected": (True, _row("update", {"state": "X"}, {"owner": "", "fence": 1}), False),
    "update of none": (False, _row("update", {"state": "X"}), False),
    "delete": (True, _row("delete"), True),
    "delete as expected": (True, _row("delete", {}, {"ended_at": None}), True),
    "delete not as expected": (True, _row("delete", {}, {"ended_at": 5}), False),
    "delete of none": (False, _row("delete"), False),
    "check": (True, _row("check"), True),
    "check as expected": (True, _row("check", {}, {"owner": "", "cursor": None}), True),
    "check by its key": (True, _row("check", {}, {"id": "s1"}), True),
    "check not as expected": (True, _row("check", {}, {"owner": None}), False),
    "check of none": (False, _row("check"), False),
    "upsert new": (False, _row("upsert", {"state": "X"}, {"owner": "nobody"}), True),
    "upsert": (True, _row("upsert", {"state": "X"}), True),
    "upsert as expected": (True, _row("upsert", {"state": "X"}, {"owner": ""}), True),
    "upsert not as expected": (True, _row("upsert", {"state": "X"}, {"owner": "w"}), False),
}

MALFORMED: dict[str, Row] = {
    "unknown table": Row("nowhere", "insert", ("a",)),
    "a system's table": Row("sqlite_schema", "delete", ("a",)),
    "unknown operation": Row("sagas", "replace", ("a",)),  # type: ignore[arg-type]
    "unknown column": Row("sagas", "insert", ("a",), {"color": "red"}),
    "hostile column": Row("sagas", "insert", ("a",), {"state = 'X' --": "red"}),
    "unknown column in where": Row("sagas", "upsert", ("there",), {}, {"color": "red"}),
    "a key's column in values": Row("sagas", "insert", ("a",), {"id": "b"}),
    "short key": Row("slots", "insert", ("a",)),
    "long key": Row("sagas", "insert", ("a", "b")),
    "no key": Row("sagas", "insert", ()),
    "NULL in the key": Row("slots", "insert", ("a", None)),
    "text for a number in the key": Row("slots", "insert", ("a", "b")),
    "a list in the key": Row("sagas", "insert", (["a"],)),
    "number for text": Row("sagas", "insert", ("a",), {"state": 5}),
    "text for a number": Row("sagas", "insert", ("a",), {"fence": "5"}),
    "a float for a number": Row("sagas", "insert", ("a",), {"fence": 5.0}),
    "more than 64 bits": Row("sagas", "insert", ("a",), {"fence": 2**63}),
    "text for a blob": Row("snapshots", "insert", ("a", "b"), {"state": "x"}),
    "a lone surrogate": Row("sagas", "insert", ("a",), {"state": "\ud800"}),
    "NUL in the key's text": Row("sagas", "insert", ("a\0b",)),
    "a key too long": Row("documents", "insert", ("p", 1, "x" * 2051)),
    "a lone surrogate in the key": Row("sagas", "insert", ("\ud800",)),
}


class RowCases(Cases):
    """Rows of declared tables."""

    @pytest.mark.parametrize("case", OPERATIONS)
    async def test_operation(self, storage: Storage, case: str) -> None:
        """Each passes or is a conflict; a conflict leaves the row and the unit's events out."""
        exists, row, passes = OPERATIONS[case]
        if exists:
            await storage.write(row_unit(saga("s1")))
        before = await storage.get("sagas", ("s1",))
        if not passes:
            with pytest.raises(RowConflictError) as caught:
                await storage.write(unit(events("a"), rows=[saga("s2"), row]))
            assert (caught.value.table, caught.value.key) == ("sagas", ("s1",))
            assert await storage.get("sagas", ("s1",)) == before
            assert await storage.get("sagas", ("s2",)) is None
            assert await storage.head("a") == 0
            return
        await storage.write(unit(events("a"), rows=[row]))
        after = await storage.get("sagas", ("s1",))
        if row.op == "delete":
            assert after is None
        else:
            fresh = dict.fromkeys(TABLES["sagas"].columns, None) | {"id": "s1"}
            assert after == (before or fresh) | dict(row.values)

    @pytest.mark.parametrize("case", MALFORMED)
    async def test_a_malformed_row_fails_its_unit_alone(self, storage: Storage, case: str) -> None:
        """With a typed error, beside others that land."""
        await storage.write(row_unit(saga("there")))
        ok, bad = await asyncio.gather(
            storage.write(unit(events("ok"))),
            storage.write(unit(events("a"), rows=[MALFORMED[case]])),
            return_exceptions=True,
        )
        assert not isinstance(ok, BaseException)
        assert isinstance(bad, DefinitionError)
        assert await storage.head("a") == 0
        assert await storage.head("ok") == 1

    async def test_operations_of_one_unit_see_each_other(self, storage: Storage) -> None:
        """In their order, on one row too."""
        rows = [
            _row("insert", {"fence": 1}),
            _row("update", {"fence": 2}, {"fence": 1}),
            _row("check", {}, {"fence": 2}),
            _row("delete", {}, {"fence": 2}),
            _row("insert", {"fence": 3}),
        ]
        await storage.write(row_unit(*rows))
        row = await storage.get("sagas", ("s1",))
        assert row is not None
        assert row["fence"] == 3
        with pytest.raises(RowConflictError):
            await storage.write(row_unit(_row("delete"), _row("delete")))
        assert await storage.get("sagas", ("s1",)) == row

    async def test_units_of_one_batch_see_each_other(self, storage: Storage) -> None:
        """A counter that many raise by compare-and-set misses none and doubles none."""
        await storage.write(row_unit(_row("insert", {"fence": 0})))
        steps = [row_unit(_row("update", {"fence": n + 1}, {"fence": n})) for n in range(50)]
        results = await asyncio.gather(*(storage.write(step) for step in steps), return_exceptions=True)
        assert not [r for r in results if isinstance(r, BaseException)]
        lost = await asyncio.gather(
            *(storage.write(row_unit(_row("update", {"fence": 99}, {"fence": 50}))) for _ in range(9)),
            return_exceptions=True,
        )
        assert sum(isinstance(r, RowConflictError) for r in lost) == 8

    async def test_values_are_stored_plain(self, storage: Storage) -> None:
        """A `StrEnum` is its text, a flag is 0 or 1; bytes, large numbers and NULL come back as they were."""
        values = {"state": _State.RUNNING, "fence": 2**63 - 1, "cursor": -(2**63), "owner": None, "saga": "größe"}
        await storage.write(row_unit(Row("sagas", "insert", ("s1",), values), worker(alive=True)))
        row = await storage.get("sagas", ("s1",))
        assert row is not None
        assert {column: row[column] for column in values} == values
        assert type(row["state"]) is str
        alive = await storage.query("live_workers")
        assert [(r["id"], r["alive"]) for r in alive] == [("w1", 1)]
        await storage.write(row_unit(Row("snapshots", "insert", ("a", "T"), {"state": b"\0\xff", "version": 1})))
        await storage.write(row_unit(_row("update", {"state": "X"}, {"state": _State.RUNNING})))
        snapshot = await storage.get("snapshots", ("a", "T"))
        assert snapshot is not None
        assert snapshot["state"] == b"\0\xff"

    @pytest.mark.parametrize("table", TABLES)
    async def test_every_declared_table(self, storage: Storage, table: str) -> None:
        """Inserted, changed, read and deleted, with all its columns."""
        examples: dict[str, Any] = {"text": "x", "integer": 7, "blob": b"b", "real": 0.5}
        columns = TABLES[table].columns
        row = {column: examples[kind] for column, kind in columns.items()}
        key = tuple(row[column] for column in TABLES[table].key)
        values = {column: value for column, value in row.items() if column not in TABLES[table].key}
        await storage.write(row_unit(Row(table, "insert", key, values)))
        assert await storage.get(table, key) == row
        if values:
            column = list(values)[-1]
            await storage.write(row_unit(Row(table, "update", key, {column: None}, values)))
            assert await storage.get(table, key) == row | {column: None}
            await storage.write(row_unit(Row(table, "upsert", key, values)))
        await storage.write(row_unit(Row(table, "delete", key)))
        assert await storage.get(table, key) is None

    @pytest.mark.parametrize("ref", [WorkerRef("w1", 2), WorkerRef("w2", 1), WorkerRef("gone", 1)])
    async def test_only_a_living_worker_writes(self, storage: Storage, ref: WorkerRef) -> None:
        """A dead one, an unknown one and another life of a living one are refused."""
        await storage.write(row_unit(worker("w1", 1), worker("w2", 1, alive=0)))
        ok, refused = await asyncio.gather(
            storage.write(unit(events("a"), by=WorkerRef("w1", 1))),
            storage.write(unit(events("b"), by=ref)),
            return_exceptions=True,
        )
        assert not isinstance(ok, BaseException)
        assert isinstance(refused, OwnershipLostError)
        assert await storage.head("b") == 0

    async def test_a_check_that_has_passed_is_made_anew_of_a_row_that_has_changed(self, storage: Storage) -> None:
        """A saga makes the same check with each of its units: it holds as long as the row is as it was."""
        check = Row("sagas", "check", ("s",), {}, {"fence": 1})
        await storage.write(row_unit(saga("s", fence=1)))
        for _ in range(2):
            await storage.write(unit(events("a"), rows=[check]))
        await storage.write(row_unit(Row("sagas", "update", ("s",), {"fence": 2})))
        with pytest.raises(RowConflictError):
            await storage.write(unit(events("a"), rows=[check]))
        await storage.write(row_unit(Row("sagas", "update", ("s",), {"fence": 1})))
        await storage.write(unit(events("a"), rows=[check]))
        assert await storage.head("a") == 3
