"""Inline folds: rows made from records, in the same commit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import VersionConflictError
from event_workflow_engine.storage.port import Record, Row
from event_workflow_engine.testing.conformance.kit import Cases, append, events, record, row_unit, saga, unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.port import RowReader, Storage, Unit


class _Counter:
    """Counts a stream's events in a document, and refuses what has the type "poison"."""

    def __init__(self) -> None:
        self.seen: list[Record] = []

    def __call__(self, _unit: Unit, records: Sequence[Record], rows: RowReader, /) -> Sequence[Row]:
        out: dict[str, int] = {}
        for each in records:
            if each.type == "poison":
                raise LookupError("poison")
            while self.seen and self.seen[-1].position >= each.position:
                self.seen.pop()  # it is folded again, and only the last time counts
            self.seen.append(each)
            if each.stream not in out:
                row = rows.get("documents", ("count", 1, each.stream))
                out[each.stream] = int(row["body"]) if row else 0
            out[each.stream] += each.count
        return [Row("documents", "upsert", ("count", 1, key), {"body": str(n)}) for key, n in out.items()]


class FoldCases(Cases):
    """Folding inside the commit."""

    async def _body(self, storage: Storage, key: str) -> str | None:
        row = await storage.get("documents", ("count", 1, key))
        return None if row is None else row["body"]

    async def test_units_of_one_batch_are_folded_in_order(self, storage: Storage) -> None:
        """Each over what the ones before it left: no update is lost, no unit loses for it."""
        fold = _Counter()
        storage.set_inline_folder(fold)
        await asyncio.gather(*(storage.write(unit(events("a", n % 3 + 1))) for n in range(60)))
        await storage.write(unit(append("a", record(count=5)), events("b", 2)))
        assert await self._body(storage, "a") == "125"
        assert await self._body(storage, "b") == "2"
        assert [r.position for r in fold.seen] == [r.position for r in await storage.read_log(limit=1000)]

    async def test_it_sees_records_as_they_are_stored(self, storage: Storage) -> None:
        """With the positions and versions that they have for good."""
        fold = _Counter()
        storage.set_inline_folder(fold)
        await storage.write(unit(append("a", record(count=2, data=b"\x00x")), events("b", 2), events("a")))
        assert fold.seen == await storage.read_log()

    async def test_a_raising_fold_fails_its_unit_alone(self, storage: Storage) -> None:
        """With what it raised; nothing of the unit stays, and its positions go to the next."""
        storage.set_inline_folder(_Counter())
        ok, bad, fine = await asyncio.gather(
            storage.write(unit(events("a"))),
            storage.write(unit(events("a"), append("b", record(type="poison")), rows=[saga("s1")])),
            storage.write(unit(events("a"))),
            return_exceptions=True,
        )
        assert isinstance(bad, LookupError)
        assert not isinstance(ok, BaseException)
        assert not isinstance(fine, BaseException)
        assert [r.position for r in await storage.read_log()] == [1, 2]
        assert await self._body(storage, "a") == "2"
        assert await storage.get("sagas", ("s1",)) is None

    async def test_losing_and_repeated_units_leave_no_trace(self, storage: Storage) -> None:
        """A document counts what was committed, once."""
        storage.set_inline_folder(_Counter())
        new = unit(events("a", expected=0))
        await storage.write(new)
        await storage.write(new)
        with pytest.raises(VersionConflictError):
            await storage.write(unit(events("a", expected=0)))
        assert await self._body(storage, "a") == "1"

    async def test_units_without_records_are_not_folded(self, storage: Storage) -> None:
        """There is nothing to fold."""
        fold = _Counter()
        storage.set_inline_folder(fold)
        await storage.write(row_unit(saga("s1")))
        await storage.write(unit(append("a", expected=0)))
        assert fold.seen == []

    async def test_it_can_be_removed(self, storage: Storage) -> None:
        """Then nothing is folded any more."""
        storage.set_inline_folder(_Counter())
        await storage.write(unit(events("a")))
        storage.set_inline_folder(None)
        await storage.write(unit(events("a")))
        assert await self._body(storage, "a") == "1"

    async def test_a_unit_may_write_what_the_fold_reads(self, storage: Storage) -> None:
        """The fold sees the rows of its own unit, which come before it."""
        storage.set_inline_folder(_Counter())
        seed = Row("documents", "insert", ("count", 1, "a"), {"body": "10"})
        await storage.write(unit(events("a", 2), rows=[seed]))
        assert await self._body(storage, "a") == "12"
