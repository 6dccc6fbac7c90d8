# ruff: noqa: PLR2004 - the numbers are the expectation
"""Appending: versions, positions, expectations, and that a unit lands wholly or not at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import DefinitionError, VersionConflictError, WorkflowError
from event_workflow_engine.storage.port import STREAM_EXISTS, Append, Appended, NewRecord, Unit
from event_workflow_engine.testing.conformance.kit import AT, Cases, append, events, record, saga, unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage

MALFORMED: dict[str, Unit] = {
    "empty unit id": Unit("", AT, (Append("s", (NewRecord("", "t", b"{}"),)),)),
    "id of another record": Unit("x", AT, (Append("s", (NewRecord("y", "t", b"{}"),)),)),
    "text for bytes": Unit("x", AT, (Append("s", (NewRecord("x", "t", "{}"),)),)),  # type: ignore[arg-type]
    "number for text": Unit("x", AT, (Append("s", (NewRecord("x", 5, b"{}"),)),)),  # type: ignore[arg-type]
    "number for a stream": Unit("x", AT, (Append(5, (NewRecord("x", "t", b"{}"),)),)),  # type: ignore[arg-type]
    "list for a stream": Unit("x", AT, (Append(["s"], (NewRecord("x", "t", b"{}"),)),)),  # type: ignore[arg-type]
    "no stream's name": Unit("x", AT, (Append("", (NewRecord("x", "t", b"{}"),)),)),
    "no events": Unit("x", AT, (Append("s", (NewRecord("x", "t", b"{}", count=0),)),)),
    "more events than fit": Unit("x", AT, (Append("s", (NewRecord("x", "t", b"{}", count=2**63),)),)),
    "more than 64 bits": Unit("x", AT, (Append("s", (NewRecord("x", "t", b"{}", 2**63),)),)),
    "a lone surrogate": Unit("x", AT, (Append("s", (NewRecord("x", "\ud800", b"{}"),)),)),
    "a stream's NUL": Unit("x", AT, (Append("nul\0byte", (NewRecord("x", "t", b"{}"),)),)),
    "a stream's name too long": Unit("x", AT, (Append("s" * 2001, (NewRecord("x", "t", b"{}"),)),)),
    "a stream's name too long in UTF-8": Unit("x", AT, (Append("ß" * 1001, (NewRecord("x", "t", b"{}"),)),)),
    "a stream's lone surrogate": Unit("x", AT, (Append("\ud800", (NewRecord("x", "t", b"{}"),)),)),
    "an expectation below all": Unit("x", AT, (Append("s", (NewRecord("x", "t", b"{}"),), -7),)),
}


class AppendCases(Cases):
    """Appending to streams."""

    async def test_versions_and_positions_count_from_one(self, storage: Storage) -> None:
        """Versions count within a stream, positions over the store."""
        first = await storage.write(unit(events("a", 2)))
        second = await storage.write(unit(events("b")))
        third = await storage.write(unit(events("a")))
        assert first.appended == (Appended("a", 2, 2, 2),)
        assert second.appended == (Appended("b", 1, 3, 1),)
        assert third.appended == (Appended("a", 3, 4, 1),)
        assert await storage.head("a") == 3
        assert await storage.last_position() == 4

    async def test_packed_records_advance_by_their_count(self, storage: Storage) -> None:
        """A record of several events takes as many versions and positions."""
        written = await storage.write(unit(append("a", record(count=5), record(count=2), expected=0)))
        assert written.appended == (Appended("a", 7, 7, 7),)
        assert [(r.version, r.position, r.count) for r in await storage.read_stream("a")] == [(5, 5, 5), (7, 7, 2)]

    async def test_what_was_stored_is_read(self, storage: Storage) -> None:
        """Every field comes back as it was given."""
        new = NewRecord("id-1", "größe+b", b"\x00\xff{}", schema=3, metadata=b'{"a":1}', count=2)
        await storage.write(Unit("id-1", 77, (Append("s-1", (new,)),)))
        (found,) = await storage.read_stream("s-1")
        assert (found.id, found.type, found.data, found.schema) == ("id-1", "größe+b", b"\x00\xff{}", 3)
        assert (found.metadata, found.count, found.recorded_at) == (b'{"a":1}', 2, 77)
        assert (found.stream, found.version, found.position) == ("s-1", 2, 2)

    @pytest.mark.parametrize("name", ["a", "a-b-c", "größe-\N{SNOWMAN}", "with space", "q'uo\"te", "%_*?"])
    async def test_any_text_names_a_stream(self, storage: Storage, name: str) -> None:
        """Names are values: quotes and wildcards mean nothing."""
        await storage.write(unit(events(name, 2)))
        assert await storage.head(name) == 2
        assert [r.stream for r in await storage.read_log()] == [name, name]
        assert [r.version for r in await storage.read_stream(name)] == [1, 2]

    @pytest.mark.parametrize("expected", [1, 3, 0, 99])
    async def test_a_wrong_version_is_a_conflict(self, storage: Storage, expected: int) -> None:
        """The error tells the stream, what was expected, and what is."""
        await storage.write(unit(events("a", 2)))
        with pytest.raises(VersionConflictError) as caught:
            await storage.write(unit(events("a", expected=expected)))
        assert (caught.value.stream, caught.value.actual) == ("a", 2)
        assert caught.value.expected == (expected or "no_stream")
        assert await storage.head("a") == 2

    async def test_stream_exists(self, storage: Storage) -> None:
        """`STREAM_EXISTS` wants one event at least, whichever version it has."""
        with pytest.raises(VersionConflictError):
            await storage.write(unit(events("a", expected=STREAM_EXISTS)))
        await storage.write(unit(events("a", 3, expected=0)))
        await storage.write(unit(events("a", expected=STREAM_EXISTS)))
        assert await storage.head("a") == 4

    async def test_several_appends_land_together(self, storage: Storage) -> None:
        """One unit may append to several streams, and to one several times."""
        written = await storage.write(
            unit(events("a", 2, expected=0), events("b"), events("a", 1, expected=2), append("c", expected=0))
        )
        assert [(a.stream, a.version, a.count) for a in written.appended] == [("a", 2, 2), ("b", 1, 1), ("a", 3, 1)]
        assert [r.stream for r in await storage.read_log()] == ["a", "a", "b", "a"]
        assert [r.version for r in await storage.read_stream("a")] == [1, 2, 3]

    async def test_a_losing_unit_leaves_nothing(self, storage: Storage) -> None:
        """Neither the appends before the conflict nor rows nor positions stay."""
        await storage.write(unit(events("b", 1)))
        with pytest.raises(VersionConflictError):
            await storage.write(unit(events("a", 2), events("b", 1, expected=5), rows=[saga("s1")]))
        assert await storage.head("a") == 0
        assert await storage.get("sagas", ("s1",)) is None
        assert (await storage.write(unit(events("a")))).appended[0].position == 2

    async def test_a_check_without_records(self, storage: Storage) -> None:
        """An append without records checks a version, and writes nothing to the log."""
        await storage.write(unit(events("inbox", 2)))
        written = await storage.write(unit(append("inbox", expected=2), rows=[saga("s1")]))
        assert written.appended == ()
        with pytest.raises(VersionConflictError):
            await storage.write(unit(append("inbox", expected=1), rows=[saga("s2")]))
        assert await storage.get("sagas", ("s1",)) is not None
        assert await storage.get("sagas", ("s2",)) is None
        assert await storage.last_position() == 2

    @pytest.mark.parametrize("case", MALFORMED)
    async def test_a_malformed_unit_fails_alone(self, storage: Storage, case: str) -> None:
        """With a typed error, beside others that land."""
        results = await asyncio.gather(
            storage.write(unit(events("ok"))),
            storage.write(MALFORMED[case]),
            storage.write(unit(events("ok"))),
            return_exceptions=True,
        )
        assert isinstance(results[1], DefinitionError)
        assert not isinstance(results[0], Exception)
        assert not isinstance(results[2], Exception)
        assert [r.stream for r in await storage.read_log()] == ["ok", "ok"]

    async def test_one_version_has_one_winner(self, storage: Storage) -> None:
        """Of many that expect the same version one wins; the others lose alone, and are told."""

        async def contend() -> int:
            lost = 0
            for _ in range(5):
                version = await storage.head("hot")
                try:
                    await storage.write(unit(events("hot", expected=version)))
                except VersionConflictError:
                    lost += 1
            return lost

        lost = sum(await asyncio.gather(*(contend() for _ in range(20))))
        records = await storage.read_stream("hot")
        assert [r.version for r in records] == list(range(1, 101 - lost))
        assert len({r.id for r in records}) == len(records)
        assert lost

    async def test_every_error_is_of_ours(self, storage: Storage) -> None:
        """Nothing of a driver escapes."""
        results = await asyncio.gather(*(storage.write(bad) for bad in MALFORMED.values()), return_exceptions=True)
        assert all(isinstance(result, WorkflowError) for result in results)
