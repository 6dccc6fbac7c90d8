# ruff: noqa: PLR2004 - the numbers are the expectation
"""Reading the log: by stream, both ways, several at once, and as a whole with filters."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.storage.port import ANY_VERSION, Append, NewRecord
from event_workflow_engine.testing.conformance.kit import Cases, append, events, record, unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Record, Storage


def _last(records: list[Record]) -> list[int]:
    return [r.version for r in records]


class ReadCases(Cases):
    """Reads of what was committed."""

    async def test_a_stream_forwards_and_backwards(self, storage: Storage) -> None:
        """Behind a version, or below it; up to a limit; nothing where there is nothing."""
        await storage.write(unit(events("a", 5), events("b", 3)))
        assert _last(await storage.read_stream("a")) == [1, 2, 3, 4, 5]
        assert _last(await storage.read_stream("a", after=2, limit=2)) == [3, 4]
        assert _last(await storage.read_stream("a", after=5)) == []
        assert _last(await storage.read_stream("a", backwards=True)) == [5, 4, 3, 2, 1]
        assert _last(await storage.read_stream("a", after=3, backwards=True)) == [2, 1]
        assert _last(await storage.read_stream("a", after=9, limit=2, backwards=True)) == [5, 4]
        assert _last(await storage.read_stream("a", after=1, backwards=True)) == []
        assert _last(await storage.read_stream("a", limit=0)) == []
        assert _last(await storage.read_stream("none")) == []
        assert _last(await storage.read_stream("none", backwards=True)) == []

    async def test_packed_records_straddle(self, storage: Storage) -> None:
        """A record belongs in if any of its events does."""
        await storage.write(unit(append("a", record(count=4), record(), record(count=3))))
        assert _last(await storage.read_stream("a", after=2)) == [4, 5, 8]
        assert _last(await storage.read_stream("a", after=4)) == [5, 8]
        assert _last(await storage.read_stream("a", after=7)) == [8]
        assert _last(await storage.read_stream("a", after=3, backwards=True)) == [4]
        assert _last(await storage.read_stream("a", after=6, backwards=True)) == [5, 4]
        assert _last(await storage.read_stream("a", after=7, backwards=True)) == [8, 5, 4]
        assert [r.position for r in await storage.read_log(after=2)] == [4, 5, 8]

    async def test_long_streams_in_pages(self, storage: Storage) -> None:
        """Whatever the sizes of records, units and pages, pages join to the stream, both ways."""
        chance = random.Random(7)  # noqa: S311 - any sizes will do
        versions: dict[str, list[tuple[int, int]]] = {"a": [], "b": [], "c": []}
        heads = dict.fromkeys(versions, 0)
        for _ in range(60):
            appends = []
            for stream in chance.sample(sorted(versions), 2):
                new = [record(count=chance.choice((1, 1, 1, 2, 70))) for _ in range(chance.randint(1, 12))]
                appends.append(append(stream, *new, expected=heads[stream]))
                for one in new:
                    heads[stream] += one.count
                    versions[stream].append((heads[stream], one.count))
            await storage.write(unit(*appends))
        for stream, records in versions.items():
            for limit in (1, 7, 64, 65, 1000):
                found: list[Record] = []
                while page := await storage.read_stream(
                    stream, after=found[-1].version if found else None, limit=limit
                ):
                    assert len(page) <= limit
                    found += page
                    if len(page) < limit:
                        break
                assert [(r.version, r.count) for r in found] == records
                found = []
                below = None
                while page := await storage.read_stream(stream, after=below, limit=limit, backwards=True):
                    assert len(page) <= limit
                    found += page
                    below = page[-1].version - page[-1].count + 1
                assert [(r.version, r.count) for r in found[::-1]] == records
            for after in (0, 1, 63, 64, 65, 100, 128, 200):
                expected = [v for v, _ in records if v > after]
                assert _last(await storage.read_stream(stream, after=after, limit=5)) == expected[:5]
                below_it = [v for v, count in records if v - count + 1 < after]
                assert (
                    _last(await storage.read_stream(stream, after=after, limit=5, backwards=True)) == below_it[::-1][:5]
                )

    async def test_several_streams(self, storage: Storage) -> None:
        """All records of each, in the order asked for, each name once."""
        for _ in range(3):
            await storage.write(unit(events("a"), events("b", 2), events("c")))
        found = await storage.read_streams(["c", "none", "a", "c"])
        assert [(r.stream, r.version) for r in found] == [("c", 1), ("c", 2), ("c", 3), ("a", 1), ("a", 2), ("a", 3)]
        assert await storage.read_streams([]) == []

    async def test_the_log_in_pages(self, storage: Storage) -> None:
        """In the order of commits, behind a position, up to a limit."""
        for n in range(10):
            await storage.write(unit(events(f"s-{n % 3}", 2)))
        assert [r.position for r in await storage.read_log()] == list(range(1, 21))
        assert [r.position for r in await storage.read_log(after=7, limit=3)] == [8, 9, 10]
        assert await storage.read_log(after=20) == []

    async def test_the_log_from_what_was_seen(self, storage: Storage) -> None:
        """The record at the position comes first, whatever is filtered and beyond the limit; if it ends there."""
        assert await storage.query("log_end") == []
        assert await storage.read_log(seen=True) == []
        await storage.write(unit(events("a", 2), append("b", record(count=3)), events("c")))
        whole = await storage.read_log()
        assert [r.position for r in whole] == [1, 2, 5, 6]
        assert await storage.query("log_end") == [{"position": 6, "id": whole[-1].id}]
        assert await storage.read_log(after=0, seen=True) == whole
        assert await storage.read_log(after=1, limit=2, seen=True) == whole[:3]
        assert await storage.read_log(after=2, limit=0, seen=True) == whole[1:2]
        assert await storage.read_log(after=4, seen=True) == whole[2:]
        assert await storage.read_log(after=1, limit=1, categories=["c"], seen=True) == [whole[0], whole[3]]
        assert await storage.read_log(after=5, types=["none"], seen=True) == whole[2:3]
        assert await storage.read_log(after=6, seen=True) == whole[3:]
        assert await storage.read_log(after=9, seen=True) == []

    @pytest.mark.parametrize(
        ("types", "categories", "positions"),
        [
            (["x"], [], [1, 3]),
            (["y"], [], [2, 3]),
            (["x", "z"], [], [1, 3, 4]),
            ([], ["order"], [1, 4]),
            ([], ["order", "plain"], [1, 3, 4]),
            (["x"], ["order"], [1]),
            (["none"], [], []),
            ([], ["orde"], []),
            ([], ["order-1"], []),
            (["x' OR '1'='1"], [], []),
            ([], [""], [5]),
        ],
    )
    async def test_filters(
        self, storage: Storage, types: list[str], categories: list[str], positions: list[int]
    ) -> None:
        """By types, which packed records hold several of, and by categories: the names up to the first dash."""
        for stream, kind in (("order-1-x", "x"), ("item-1", "y"), ("plain", "x+y"), ("order-2", "z"), ("-", "xx")):
            await storage.write(unit(append(stream, record(type=kind))))
        found = await storage.read_log(types=types, categories=categories)
        assert [r.position for r in found] == positions
        limited = await storage.read_log(types=types, categories=categories, limit=1)
        assert [r.position for r in limited] == positions[:1]
        behind = await storage.read_log(types=types, categories=categories, after=2)
        assert [r.position for r in behind] == [p for p in positions if p > 2]

    async def test_a_write_that_returned_is_read(self, storage: Storage) -> None:
        """At once, by every read."""
        for n in range(1, 60):
            new = NewRecord(f"id-{n}", "t", b"%d" % n)
            await storage.write(unit(Append("a", (new,), ANY_VERSION)))
            assert await storage.head("a") == n
            assert await storage.last_position() == n
            assert [r.id for r in await storage.read_stream("a", after=n - 1)] == [new.id]
            assert [r.id for r in await storage.read_log(after=n - 1)] == [new.id]
            assert await storage.outcome(new.id) is not None
