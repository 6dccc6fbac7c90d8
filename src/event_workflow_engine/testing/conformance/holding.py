# ruff: noqa: PLR2004 - the numbers are the expectation
"""A store held as a whole, and copied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.errors import EngineStateError, StoreNotEmptyError
from event_workflow_engine.storage.copying import copy_store
from event_workflow_engine.storage.holding import PAGE_BYTES
from event_workflow_engine.storage.opening import open_storage
from event_workflow_engine.storage.port import (
    EVENT_COLUMNS,
    EVENTS,
    EVENTS_BY_STREAM,
    UNITS,
    Append,
    NewRecord,
    Row,
    Unit,
)
from event_workflow_engine.storage.row_images import SHAPES
from event_workflow_engine.storage.tables import TABLES
from event_workflow_engine.testing.conformance.kit import AT, Cases, append, events, record, row_unit, saga, unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import HeldStore, Storage
    from event_workflow_engine.storage.tables import ColumnType

LARGE = PAGE_BYTES * 2 // 3
AWKWARD = "ü \U0001f6b2 ' \" \\ \n \x01 \u2028 {} %s $1 :name"

VALUES: dict[ColumnType, list[Any]] = {
    "text": [AWKWARD, "", None],
    "integer": [0, -(2**63), 2**63 - 1, None],
    "blob": [bytes(range(256)), b"", None],
    "real": [0.1, -1e300, None],
}

SEVERAL = Unit(
    "several",
    AT,
    (
        Append("b", (NewRecord("several", "x", b"\0\xff"), NewRecord("second", "y", b"[]", 3, b'{"m":1}'))),
        Append(AWKWARD, (NewRecord("packed", "x+y", b"[1,2,3]", count=3),)),
        Append("b", (NewRecord("third", AWKWARD, b""),)),
    ),
)
"""Three appends, two of them to one stream; three single records and a packed one."""


def rows_of_all_tables() -> list[Row]:
    """Rows of every declared table with all kinds of values, and with none, but for those of workers."""
    made = []
    for table in TABLES.values():
        if table.name == "workers":
            continue
        kinds = [table.columns[column] for column in table.key]
        for number in range(5):
            key = tuple(f"{AWKWARD}{number}" if kind == "text" else number - 2 for kind in kinds)
            columns = [column for column in table.columns if column not in table.key]
            values = {c: VALUES[table.columns[c]][number % len(VALUES[table.columns[c]])] for c in columns}
            made.append(Row(table.name, "insert", key, values if number else {}))
    return made


async def fill(storage: Storage) -> None:
    """Streams short and long, records single and packed, units without records, rows in all tables."""
    await storage.write(unit(events("a")))
    await storage.write(SEVERAL)
    for _ in range(30):
        await storage.write(unit(append("long", record(), record(count=7), record(count=70)), events("a-1")))
    for row in rows_of_all_tables():
        await storage.write(row_unit(row))


async def everything(held: HeldStore) -> dict[str, list[tuple[Any, ...]]]:
    """All parts, read in pages of three."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for part in (EVENTS, EVENTS_BY_STREAM, UNITS, *TABLES):
        reading, found[part] = held.rows(part), []
        while page := await reading.next(3):
            assert len(page) <= 3
            found[part] += page
    return found


class HoldCases(Cases):
    """Holding a store, and copying it."""

    async def test_held_rows(self, storage: Storage) -> None:
        """They are all there, in their orders, as the store's own reads have them."""
        await fill(storage)
        found = await storage.hold(everything)
        kept = [dict(zip(EVENT_COLUMNS, row, strict=True)) for row in found[EVENTS]]
        log = await storage.read_log(limit=1000)
        assert [{**row, "part": 0} for row in kept] == [
            {**{name: getattr(one, name, 0) for name in EVENT_COLUMNS}, "part": 0} for one in log
        ]
        # The first record of a unit has part 0; then come the number of the append, from one on.
        assert [(row["id"], row["part"]) for row in kept[1:5]] == [
            ("several", 0), ("second", 1), ("packed", 2), ("third", 3),
        ]  # fmt: skip
        assert found[EVENTS_BY_STREAM] == sorted(found[EVENTS], key=lambda row: (row[1], row[2]))
        assert len(found[UNITS]) == len(rows_of_all_tables())
        assert {at for _, at in found[UNITS]} == {AT}
        for name, table in TABLES.items():
            assert found[name] == sorted(found[name], key=lambda image: image[: len(table.key)])
            for image in found[name]:
                shape = SHAPES[name]
                assert await storage.get(name, image[: shape.width]) == shape.as_dict(image)
        assert sum(len(found[name]) for name in TABLES) == len(rows_of_all_tables())

    async def test_large_rows_come_few_at_a_time(self, storage: Storage) -> None:
        """However small those before them were: what is read at once fits into memory."""
        many = [NewRecord(f"e-{n}", "t", b"") for n in range(50)]
        large = [NewRecord(f"l-{n}", "t", b"", metadata=bytes(LARGE)) for n in range(5)]
        await storage.write(Unit("e-0", AT, (Append("a", (*many, *large)),)))
        documents = [("p", 1, f"k-{n}", "x" * (LARGE if n > 4 else 1)) for n in range(10)]

        async def sizes(held: HeldStore) -> dict[str, list[int]]:
            await held.put("documents", documents)
            found: dict[str, list[int]] = {}
            for part in (EVENTS, EVENTS_BY_STREAM, "documents"):
                reading, found[part] = held.rows(part), []
                while page := await reading.next(1000):
                    found[part].append(len(page))
            return found

        assert await storage.hold(sizes) == {EVENTS: [52, 2, 1], EVENTS_BY_STREAM: [52, 2, 1], "documents": [7, 2, 1]}

    async def test_copied_to_and_fro(self, storage: Storage) -> None:
        """A copy into memory and one out of it hold the same, and go on as the original would."""
        async with open_storage("memory://") as first, open_storage("memory://") as second:
            await fill(first)
            there = await copy_store(first, storage)
            back = await copy_store(storage, second)
            assert there.checksum == back.checksum
            assert there == back
            assert there.events == await first.last_position() == 1 + 6 + 30 * 79
            was, arrived = await first.hold(everything), await storage.hold(everything)
            assert await second.hold(everything) == arrived
            assert {part for part in was if was[part] != arrived[part]} == {"sagas", "checkpoints"}
            for store in (first, storage, second):
                # Units that landed are known as such, whole ones and those without records.
                again = await store.write(SEVERAL)
                assert [(one.stream, one.count) for one in again.appended] == [("b", 2), (AWKWARD, 3), ("b", 1)]
                assert await store.last_position() == there.events
                written = await store.write(unit(events("long", 2, expected=30 * 78)))
                assert written.appended[0].position == there.events + 2
                assert [r.version for r in await store.read_stream("long", after=2336)] == [2340, 2341, 2342]
                assert [r.version for r in await store.read_stream("long", backwards=True, limit=2)] == [2342, 2341]

    async def test_a_copy_needs_an_empty_store(self, storage: Storage) -> None:
        """Whatever is there, it is refused and stays."""
        async with open_storage("memory://") as source:
            await source.write(unit(events("a")))
            for something in (row_unit(saga("s")), unit(events("b"))):
                await storage.write(something)
                with pytest.raises(StoreNotEmptyError, match=EVENTS if something.appends else "sagas"):
                    await copy_store(source, storage)
            assert await storage.head("a") == 0
            assert (await storage.write(unit(events("b")))).appended[0].position == 2

    async def test_what_was_put_is_there_when_the_work_has_returned(self, storage: Storage) -> None:
        """Until then nobody else sees it, and it is read back inside; whoever listens hears of it."""
        rung: list[int] = []

        async def work(held: HeldStore) -> str:
            await held.put(EVENTS, [(5, "a", 2, 2, 0, "e-1", "t+u", 1, b"[]", b"", AT)])
            await held.put(EVENTS, [(7, "a", 3, 1, 0, "e-2", "t", 1, b"1", b"{}", AT + 1)])
            await held.put(UNITS, [("u-1", AT)])
            await held.move_end(9)
            assert [row[0] for row in await held.rows(EVENTS_BY_STREAM).next(10)] == [5, 7]
            assert await held.end() == 9
            assert await storage.read_log() == []
            rung.clear()
            return "done"

        storage.add_bell(lambda: rung.append(1))
        assert await storage.hold(work) == "done"
        assert rung
        assert [(r.position, r.version, r.count) for r in await storage.read_stream("a")] == [(5, 2, 2), (7, 3, 1)]
        assert await storage.outcome("u-1") is not None
        # Positions and versions go on behind them.
        appended = (await storage.write(unit(events("a", expected=3)))).appended[0]
        assert (appended.position, appended.version) == (10, 4)

    async def test_nothing_is_there_when_the_work_raises(self, storage: Storage) -> None:
        """And the store is free again."""
        await storage.write(unit(events("a")))

        async def work(held: HeldStore) -> None:
            await held.put(EVENTS, [(2, "a", 2, 1, 0, "e-1", "t", 1, b"", b"", AT)])
            await held.put("saga_ids", [("s-1", "trip", None, None)])
            raise LookupError("no")

        for _ in range(2):
            with pytest.raises(LookupError):
                await storage.hold(work)
        assert await storage.head("a") == 1
        assert await storage.get("saga_ids", ("s-1",)) is None
        assert (await storage.write(unit(append("a", record("e-1"), expected=1)))).appended[0].version == 2

    async def test_nothing_is_there_when_it_is_cancelled(self, storage: Storage) -> None:
        """And the store is free again."""
        begun = asyncio.Event()

        async def work(held: HeldStore) -> None:
            await held.put(UNITS, [("u-1", AT)])
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(storage.hold(work))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await storage.outcome("u-1") is None
        await storage.write(unit(events("a", expected=0)))

    async def test_others_wait_while_it_is_held(self, storage: Storage) -> None:
        """A unit lands behind the work; one from inside of it would wait for itself, and is refused."""
        held, go_on = asyncio.Event(), asyncio.Event()

        async def work(store: HeldStore) -> None:
            held.set()
            await go_on.wait()
            assert not await store.awaited()  # by another process
            with pytest.raises(EngineStateError):
                await storage.write(unit(events("inside")))

        holding = asyncio.create_task(storage.hold(work))
        await held.wait()
        writing = asyncio.create_task(storage.write(unit(events("a"))))
        assert await storage.head("a") == 0
        assert not writing.done()
        go_on.set()
        await asyncio.gather(holding, writing)
        assert await storage.head("a") == 1
        assert await storage.head("inside") == 0

    async def test_identity(self, storage: Storage) -> None:
        """It stays, and is that of no other store."""
        async with open_storage("memory://") as other:
            assert await storage.identity() == await storage.identity() != await other.identity()
