# ruff: noqa: PLR2004 - the numbers are the expectation
"""Ids: the same unit again is the same unit, whatever changed since; something else under its id is a conflict."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import EventIdConflictError, OwnershipLostError, VersionConflictError
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit, WorkerRef, Written
from event_workflow_engine.testing.conformance.kit import (
    AT,
    Cases,
    append,
    events,
    record,
    row_unit,
    saga,
    unit,
    worker,
)

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage

FIRST = Unit("u1", AT, (Append("a", (record("u1"), record("u2"))), Append("b", (record("u3"),))))

OTHERS: dict[str, Unit] = {
    "data": Unit("u1", AT, (Append("a", (record("u1", data=b"[]"), record("u2"))), Append("b", (record("u3"),)))),
    "type": Unit("u1", AT, (Append("a", (record("u1", type="z"), record("u2"))), Append("b", (record("u3"),)))),
    "stream": Unit("u1", AT, (Append("z", (record("u1"), record("u2"))), Append("b", (record("u3"),)))),
    "fewer": Unit("u1", AT, (Append("a", (record("u1"), record("u2"))),)),
    "more": Unit("u1", AT, (Append("a", (record("u1"), record("u2"))), Append("b", (record("u3"), record("u4"))))),
    "order": Unit("u1", AT, (Append("a", (record("u1"), record("u3"))), Append("b", (record("u2"),)))),
    "split": Unit("u1", AT, (Append("a", (record("u1"),)), Append("a", (record("u2"),)), Append("b", (record("u3"),)))),
    "a later id first": Unit("u2", AT, (Append("a", (record("u2"),)),)),
    "a known id behind": Unit("new", AT, (Append("c", (record("new"), record("u3"))),)),
    "twice the same id": Unit("new", AT, (Append("c", (record("new"), record("new"))),)),
}


class RepeatCases(Cases):
    """Units that come again."""

    async def test_the_same_unit_again_is_the_first_one(self, storage: Storage) -> None:
        """Even when its expectation no longer holds: ids come before versions."""
        new = unit(events("a", 2, expected=0), events("b"), rows=[saga("s1")])
        first = await storage.write(new)
        await storage.write(unit(events("a", 3)))
        assert await storage.write(new) == first
        assert await storage.head("a") == 5
        assert await storage.last_position() == 6

    async def test_ids_come_before_the_worker(self, storage: Storage) -> None:
        """What landed while its worker lived is not denied to a dead one."""
        ref = WorkerRef("w1", 1)
        await storage.write(row_unit(worker()))
        new = unit(events("a"), by=ref)
        first = await storage.write(new)
        await storage.perform("bury_worker", beat=None, id="w1", incarnation=1, now=5)
        assert await storage.write(new) == first
        with pytest.raises(OwnershipLostError):
            await storage.write(unit(events("a"), by=ref))

    @pytest.mark.parametrize("case", OTHERS)
    async def test_other_content_under_a_known_id(self, storage: Storage, case: str) -> None:
        """Any difference in stream, ids, types, data or shape is a conflict, and changes nothing."""
        await storage.write(FIRST)
        with pytest.raises(EventIdConflictError):
            await storage.write(OTHERS[case])
        assert await storage.last_position() == 3

    @pytest.mark.parametrize("case", OTHERS)
    async def test_other_content_in_one_batch(self, storage: Storage, case: str) -> None:
        """The same where both come at once, beside others that land."""
        ok, first, other, fine = await asyncio.gather(
            storage.write(unit(events("ok"))),
            storage.write(FIRST),
            storage.write(OTHERS[case]),
            storage.write(unit(events("ok"))),
            return_exceptions=True,
        )
        assert isinstance(other, EventIdConflictError)
        assert isinstance(first, Written)
        assert isinstance(ok, Written)
        assert isinstance(fine, Written)
        assert await storage.last_position() == 5

    async def test_the_same_unit_in_one_batch(self, storage: Storage) -> None:
        """It is written once; all its callers get the same answer."""
        new = unit(events("a", 2), rows=[Row("slots", "insert", ("task", 1), {"done": 0})])
        only_rows = row_unit(Row("slots", "insert", ("task", 2), {"done": 0}))
        results = await asyncio.gather(*(storage.write(new) for _ in range(5)))
        await asyncio.gather(*(storage.write(only_rows) for _ in range(5)))
        assert len(set(results)) == 1
        assert await storage.last_position() == 2
        assert len(await storage.query("open_slots")) == 2

    async def test_a_losing_repetition_is_the_first_one(self, storage: Storage) -> None:
        """A repetition whose version is stale is found among others that really lose."""
        new = unit(events("a", expected=0))
        first = await storage.write(new)
        again, lost = await asyncio.gather(
            storage.write(new), storage.write(unit(events("a", expected=0))), return_exceptions=True
        )
        assert again == first
        assert isinstance(lost, VersionConflictError)

    async def test_rows_of_a_repeated_unit_are_not_applied_again(self, storage: Storage) -> None:
        """A unit of rows alone is remembered by its id, and not compared."""
        once = row_unit(Row("slots", "insert", ("task", 1), {"done": 0}))
        first = await storage.write(once)
        assert await storage.write(once) == first == Written(once.id, ())
        await storage.write(row_unit(Row("slots", "delete", ("task", 1)), unit_id="other"))
        assert await storage.write(once) == first
        assert await storage.get("slots", ("task", 1)) is None

    async def test_outcome(self, storage: Storage) -> None:
        """It tells later what a unit wrote, or that it did not land."""
        with_records = unit(events("a", 2), events("b", 3), events("a"))
        with_rows = row_unit(saga("s1"))
        written = await storage.write(with_records)
        await storage.write(with_rows)
        await storage.write(unit(events("a", 2)))
        assert await storage.outcome(with_records.id) == written
        assert await storage.outcome(with_rows.id) == Written(with_rows.id, ())
        assert await storage.outcome("never") is None
        later_record = with_records.appends[0].records[1].id
        assert await storage.outcome(later_record) is None

    async def test_ids_of_row_units_grow_old(self, storage: Storage) -> None:
        """Ids of units without records are kept for days, those of records for ever."""
        day = 24 * 3600 * 1_000_000
        recent = row_unit(saga("s1"), at=AT)
        await storage.write(recent)
        await storage.write(row_unit(saga("s2"), at=AT + 6 * day))
        assert await storage.outcome(recent.id) == Written(recent.id, ())

    async def test_a_record_is_found_by_its_id_in_any_batch_size(self, storage: Storage) -> None:
        """Many units at once, then all of them again, some changed."""
        units = [unit(append(f"s-{n % 7}", NewRecord(f"id-{n}", "t", b"%d" % n))) for n in range(300)]
        first = await asyncio.gather(*(storage.write(u) for u in units))
        changed = [
            unit(append(f"s-{n % 7}", NewRecord(f"id-{n}", "t", b"%d" % (n if n % 3 else -n - 1)))) for n in range(300)
        ]
        again = await asyncio.gather(*(storage.write(u) for u in changed), return_exceptions=True)
        for n, (was, now) in enumerate(zip(first, again, strict=True)):
            assert now == was if n % 3 else isinstance(now, EventIdConflictError)
        assert await storage.last_position() == 300
