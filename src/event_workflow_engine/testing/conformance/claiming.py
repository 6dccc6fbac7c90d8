# ruff: noqa: PLR2004 - the numbers are the expectation
"""The named claims: who gets what, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from event_workflow_engine.errors import OwnershipLostError, RowConflictError
from event_workflow_engine.storage.port import Row, WorkerRef
from event_workflow_engine.testing.conformance.kit import Cases, events, row_unit, saga, unit, worker

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Rows, Storage

TRIPS = '[["trip",1]]'


def _ids(rows: Rows) -> list[str]:
    return [row["id"] for row in rows]


class ClaimCases(Cases):
    """Claims by name."""

    async def _claim(self, storage: Storage, limit: int = 100, by: str = "w1", now: int = 10) -> Rows:
        return await storage.perform("claim_sagas", worker=by, now=now, limit=limit, sagas=TRIPS)

    async def test_due_sagas_are_claimed_once(self, storage: Storage) -> None:
        """Those that wait longest first; owned, with a higher fence, no longer due; then nobody gets them again."""
        await storage.write(row_unit(worker("w1"), worker("w2")))
        waits = {"s1": 9, "s2": 3, "s3": 10, "late": 11, "waiting": None}
        await storage.write(row_unit(*(saga(name, wake_at=wake, fence=4) for name, wake in waits.items())))
        await storage.write(row_unit(saga("foreign", saga="order"), saga("newer", saga_version=2)))
        await storage.write(row_unit(saga("owned", owner="w2"), saga("ended", ended_at=1)))
        first = await self._claim(storage, limit=2)
        assert _ids(first) == ["s1", "s2"]
        assert {(r["owner"], r["fence"], r["wake_at"]) for r in first} == {("w1", 5, None)}
        assert _ids(await self._claim(storage, by="w2")) == ["s3"]
        assert await self._claim(storage) == []
        assert await storage.get("sagas", ("s1",)) == first[0]

    async def test_a_given_saga_is_for_one_worker_alone_until_its_time(self, storage: Storage) -> None:
        """It comes before what is due, and only where its definition is known; from its time on anybody may have it."""
        await storage.write(row_unit(worker("w1"), worker("w2"), saga("due"), saga("x", owner="queue:q", wake_at=1)))
        await storage.write(row_unit(*(saga(f"g{n}", owner="given:w1", wake_at=20 + n, fence=4) for n in range(3))))
        await storage.write(row_unit(saga("foreign", owner="given:w1", saga="order"), saga("later", wake_at=90)))
        assert (await storage.query("next_wake", sagas=TRIPS))[0]["wake_at"] == 10
        assert _ids(await self._claim(storage, by="w2")) == ["due"]
        assert await storage.query("next_wake", sagas=TRIPS) == [{"wake_at": 20}]
        assert await self._claim(storage, by="w2", now=19) == []
        (first,) = await self._claim(storage, limit=1)
        assert (first["id"], first["owner"], first["fence"], first["wake_at"]) == ("g0", "w1", 5, None)
        assert _ids(await self._claim(storage, by="w2", now=21)) == ["g1"]
        assert _ids(await self._claim(storage)) == ["g2"]
        assert await storage.query("next_wake", sagas=TRIPS) == [{"wake_at": 90}]
        await storage.write(row_unit(saga("own", owner="given:w1", wake_at=99), saga("more")))
        assert _ids(await self._claim(storage, limit=1)) == ["own"], "its own before the others, and no more than asked"

    async def test_loads_are_counted_from_rows(self, storage: Storage) -> None:
        """What a living worker owns, with what is given to it; not what has ended, waits for its turn, or is free."""
        room = Row("workers", "update", ("w1",), {"max_running": 7, "runs": TRIPS})
        await storage.write(row_unit(worker("w1"), room, worker("w2"), worker("w3", alive=0)))
        await storage.write(row_unit(*(saga(f"a{n}", owner="w1", wake_at=None) for n in range(3))))
        await storage.write(row_unit(saga("b", owner="given:w1"), saga("c", owner="w3"), saga("d", owner="queue:w1")))
        await storage.write(row_unit(saga("e", owner="w1", ended_at=3), saga("f")))
        assert await storage.query("worker_loads") == [
            {"id": "w1", "max_running": 7, "runs": TRIPS, "held": 4, "given": 1},
            {"id": "w2", "max_running": None, "runs": None, "held": 0, "given": 0},
        ]

    async def test_burial_frees_what_was_given(self, storage: Storage) -> None:
        """Nobody waits for its time: whoever would have taken it is dead."""
        await storage.write(row_unit(worker("w1"), worker("w2"), saga("a", owner="given:w1", wake_at=900)))
        await storage.write(row_unit(saga("b", owner="given:w2", wake_at=900)))
        (row,) = await storage.perform("bury_worker", beat=None, id="w1", incarnation=1, now=7)
        assert (row["id"], row["owner"], row["wake_at"]) == ("a", "", 7)
        assert _ids(await self._claim(storage, by="w2")) == ["a", "b"]

    async def test_a_worker_whose_heart_has_beaten_since_somebody_looked_lives_on(self, storage: Storage) -> None:
        """It counts on that, and begins to act; so nobody may have its sagas."""
        await storage.write(row_unit(worker("w1"), saga("a", owner="w1")))
        await storage.write(row_unit(Row("workers", "update", ("w1",), {"beat": 8})))
        assert await storage.perform("bury_worker", id="w1", incarnation=1, beat=7, now=5) == []
        assert [row["alive"] for row in await storage.query("live_workers")] == [1]
        (row,) = await storage.perform("bury_worker", id="w1", incarnation=1, beat=8, now=5)
        assert (row["id"], row["owner"]) == ("a", "")
        await storage.write(row_unit(Row("sagas", "update", ("a",), {"owner": "w1"})))
        (row,) = await storage.perform("bury_worker", id="w1", incarnation=1, beat=7, now=6)
        assert row["owner"] == "", "it was dead before"

    async def test_workers_that_are_long_dead_are_forgotten(self, storage: Storage) -> None:
        """Not those of whom anything is left; and none of its lives can write, whatever becomes of the row."""
        names = ["lives", "late", "owner", "given", "feeds", "slot", "gone"]
        await storage.write(row_unit(*(worker(name) for name in names)))
        for name in names[1:]:
            await storage.perform("bury_worker", beat=None, id=name, incarnation=1, now=9 if name == "late" else 5)
        await storage.perform("bury_worker", beat=None, id="gone", incarnation=1, now=9)  # again: it died when it did
        await storage.write(row_unit(saga("a", owner="owner"), saga("b", owner="given:given")))
        await storage.write(row_unit(Row("checkpoints", "insert", ("subscription:x",), {"owner": "feeds"})))
        await storage.write(row_unit(Row("slots", "insert", ("s", 1), {"worker": "slot", "done": 0})))
        with pytest.raises(OwnershipLostError):
            await storage.write(unit(events("x"), by=WorkerRef("gone", 1)))
        await storage.perform("prune_workers", before=9)
        left = [name for name in names if await storage.get("workers", (name,)) is not None]
        assert left == names[:-1]
        with pytest.raises(OwnershipLostError):
            await storage.write(unit(events("x"), by=WorkerRef("gone", 1)))
        await storage.write(row_unit(Row("workers", "insert", ("gone",), {"incarnation": 2, "alive": 1})))
        with pytest.raises(OwnershipLostError):
            await storage.write(unit(events("x"), by=WorkerRef("gone", 1)))
        await storage.write(unit(events("x"), by=WorkerRef("gone", 2)))

    async def test_what_a_saga_waited_for_goes_with_the_claim(self, storage: Storage) -> None:
        """It is said of those that no worker has."""
        await storage.write(row_unit(worker("w1"), *(saga(name, waits_for='[["sleep","",null,9]]') for name in "ab")))
        (row,) = await storage.perform("claim_saga", worker="w1", id="a")
        assert (row["owner"], row["waits_for"]) == ("w1", None)
        assert await self._claim(storage) == [await storage.get("sagas", ("b",))]
        assert (await storage.get("sagas", ("b",)) or {})["waits_for"] is None

    async def test_many_claim_at_once(self, storage: Storage) -> None:
        """Every saga goes to one of them."""
        names = [f"w{n}" for n in range(8)]
        await storage.write(row_unit(*(worker(name) for name in names), *(saga(f"s{n:03}") for n in range(100))))
        claimed = await asyncio.gather(*(self._claim(storage, limit=7, by=name) for name in names * 2))
        got = [row["id"] for rows in claimed for row in rows]
        assert len(got) == len(set(got)) == 100

    async def test_one_saga_is_claimed(self, storage: Storage) -> None:
        """Due or not, as long as nobody owns it and it has not ended."""
        await storage.write(row_unit(worker("w1"), saga("s1", wake_at=None), saga("s2", ended_at=1)))
        (row,) = await storage.perform("claim_saga", worker="w1", id="s1")
        assert (row["owner"], row["fence"]) == ("w1", 1)
        assert await storage.perform("claim_saga", worker="w1", id="s1") == []
        assert await storage.perform("claim_saga", worker="w1", id="s2") == []
        assert await storage.perform("claim_saga", worker="w1", id="none") == []

    async def test_the_dead_get_nothing(self, storage: Storage) -> None:
        """A worker that is dead or unknown claims nothing, for nobody would find it there."""
        await storage.write(row_unit(worker("w1", alive=0), saga("s1")))
        assert await self._claim(storage) == []
        assert await self._claim(storage, by="unknown") == []
        assert await storage.perform("claim_saga", worker="w1", id="s1") == []

    async def test_release(self, storage: Storage) -> None:
        """A worker gives its own sagas back, due at once; not those of others, nor those that ended."""
        await storage.write(row_unit(worker("w1"), saga("a", owner="w1"), saga("b", owner="w1", wake_at=None)))
        await storage.write(row_unit(saga("other", owner="w2"), saga("ended", owner="w1", ended_at=1)))
        fences = msgspec.json.encode(dict.fromkeys(["a", "b", "other", "ended", "none"], 0)).decode()
        rows = await storage.perform("release_sagas", worker="w1", fences=fences, now=7)
        assert [(r["id"], r["owner"], r["wake_at"]) for r in rows] == [("a", "", 7), ("b", "", 7)]
        assert _ids(await self._claim(storage)) == ["a", "b"]

    async def test_a_late_release(self, storage: Storage) -> None:
        """A release that comes late does not take a saga that the same worker has claimed again since."""
        await storage.write(row_unit(worker("w1"), saga("a")))
        (first,) = await storage.perform("claim_saga", worker="w1", id="a")
        late = msgspec.json.encode({"a": first["fence"]}).decode()
        assert len(await storage.perform("release_sagas", worker="w1", fences=late, now=7)) == 1
        (again,) = await storage.perform("claim_saga", worker="w1", id="a")
        assert await storage.perform("release_sagas", worker="w1", fences=late, now=7) == []
        assert await storage.query("owned_sagas", worker="w1") == [{"id": "a", "fence": again["fence"]}]

    async def test_burial(self, storage: Storage) -> None:
        """A dead worker's sagas are free and due; it can write no more; its next life can."""
        ref = WorkerRef("w1", 1)
        await storage.write(row_unit(worker("w1"), worker("w2"), saga("a", owner="w1", wake_at=None)))
        await storage.write(row_unit(saga("b", owner="w2"), saga("ended", owner="w1", ended_at=3)))
        await storage.write(unit(events("x"), by=ref))
        assert await storage.perform("bury_worker", beat=None, id="w1", incarnation=2, now=7) == []
        (row,) = await storage.perform("bury_worker", beat=None, id="w1", incarnation=1, now=7)
        assert (row["id"], row["owner"], row["wake_at"]) == ("a", "", 7)
        assert await storage.perform("bury_worker", beat=None, id="w1", incarnation=1, now=8) == []
        with pytest.raises(OwnershipLostError):
            await storage.write(unit(events("x"), by=ref))
        with pytest.raises(RowConflictError):
            await storage.write(row_unit(Row("sagas", "check", ("a",), {}, {"owner": "w1"})))
        await storage.write(row_unit(worker("w1", 2)))
        await storage.write(unit(events("x"), by=WorkerRef("w1", 2)))
        assert await storage.head("x") == 2

    async def test_a_burial_rings(self, storage: Storage) -> None:
        """Whoever waits for what the dead worker fed is woken, though it had no saga."""
        await storage.write(row_unit(worker("w1")))
        rung = asyncio.Event()
        remove = storage.add_bell(rung.set)
        rung.clear()
        assert await storage.perform("bury_worker", beat=None, id="w1", incarnation=1, now=7) == []
        assert rung.is_set()
        remove()

    async def test_claims_keep_their_place(self, storage: Storage) -> None:
        """A claim sees what was submitted before it, and is seen by what comes behind it."""
        before = storage.submit(row_unit(worker("w1"), saga("s1")))
        claim = asyncio.ensure_future(storage.perform("claim_saga", worker="w1", id="s1"))
        await asyncio.sleep(0)
        owned = {"owner": "w1", "fence": 1}
        behind = storage.submit(row_unit(Row("sagas", "check", ("s1",), {}, owned)))
        assert len(await claim) == 1
        await asyncio.gather(before, behind)

    async def test_a_cancelled_claim_is_whole(self, storage: Storage) -> None:
        """It happened or not; what waits behind it goes on."""
        await storage.write(row_unit(worker("w1"), *(saga(f"s{n}") for n in range(20))))
        for n in range(20):
            task = asyncio.create_task(storage.perform("claim_saga", worker="w1", id=f"s{n}"))
            for _ in range(n % 6):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await storage.write(unit(events("a")))
            row = await storage.get("sagas", (f"s{n}",))
            assert row is not None
            assert (row["owner"], row["fence"]) in (("", 0), ("w1", 1))

    async def test_documents_are_deleted_by_generation(self, storage: Storage) -> None:
        """With what is parked, and no other generation's."""
        keys = [("p", 1, "a"), ("p", 1, "b"), ("p", 2, "a"), ("q", 1, "a")]
        for key in keys:
            await storage.write(row_unit(Row("documents", "insert", key, {"body": "{}"})))
            await storage.write(row_unit(Row("parked_keys", "insert", key, {"error": "x"})))
            await storage.write(row_unit(Row("parked_events", "insert", (*key, 5))))
        await storage.perform("delete_documents", projection="p", generation=1)
        left = [key for key in keys if await storage.get("documents", key) is not None]
        assert left == keys[2:]
        assert [key for key in keys if await storage.get("parked_keys", key) is not None] == keys[2:]
        assert await storage.query("parked_count", projection="p", generation=1) == [{"n": 0}]
        await storage.write(row_unit(Row("documents", "insert", keys[0], {"body": "{}"})))

    @pytest.mark.parametrize(
        ("given", "swaps"),
        [({}, True), ({"position": 1}, False), ({"shadow": 3}, False), ({"name": "q"}, False)],
    )
    async def test_a_projection_is_swapped_when_level(
        self, storage: Storage, given: dict[str, Any], swaps: bool
    ) -> None:
        """The shadow goes live only if it has folded the log to its very end."""
        await storage.write(unit(events("a", 2)))
        await storage.write(
            row_unit(Row("projections", "insert", ("p",), {"generation": 1, "version": 1, "shadow": 2}))
        )
        await storage.write(row_unit(Row("checkpoints", "insert", ("projection:p@2",), {"position": 2})))
        wanted = {"name": "p", "shadow": 2, "version": 7, "position": 2} | given
        rows = await storage.perform("swap_projection", **wanted)
        row = await storage.get("projections", ("p",))
        assert row is not None
        assert rows == ([row] if swaps else [])
        expected = (2, 7, None) if swaps else (1, 1, 2)
        assert (row["generation"], row["version"], row["shadow"]) == expected

    async def test_a_shadow_that_lags_is_not_swapped(self, storage: Storage) -> None:
        """Somebody appended since it was level."""
        await storage.write(row_unit(Row("projections", "insert", ("p",), {"generation": 1, "shadow": 2})))
        await storage.write(row_unit(Row("checkpoints", "insert", ("projection:p@2",), {"position": 0})))
        await storage.write(unit(events("a")))
        assert await storage.perform("swap_projection", name="p", shadow=2, version=1, position=0) == []
