"""The named reads of queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.storage.port import Row
from event_workflow_engine.testing.conformance.kit import Cases, row_unit, saga, worker

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Rows, Storage

TRIPS = '[["trip",1],["trip",2]]'
EARLY, WAITING, ADMITTED, RETURNED = range(4)
STANDING = "NEEDS_INTERVENTION"


def _queue(name: str = "q", **values: Any) -> Row:
    return Row("queues", "insert", (name,), {"rev": 1, "paused": 0, "config": "{}", "recent": "[]", **values})


def _queued(saga_id: str, partition: str = "", *, state: int = WAITING, of: dict[str, Any] | None = None,
            **values: Any) -> tuple[Row, Row]:  # fmt: skip
    """A saga and its place in a queue."""
    default = {"queue": "q", "partition": partition, "priority": 0, "enqueued_at": 1, "state": state}
    row = Row("queued", "insert", (saga_id,), {**default, **values})
    return (saga(saga_id, **{"owner": f"queue:{values.get('queue', 'q')}", "wake_at": None, **(of or {})}), row)


async def _write(storage: Storage, *rows: Row | tuple[Row, Row]) -> None:
    await storage.write(row_unit(*(one for row in rows for one in (row if isinstance(row, tuple) else (row,)))))


def _named(rows: Rows) -> list[str]:
    return [row["saga"] for row in rows]


class QueueCases(Cases):
    """Who waits, who runs, and what there is to do."""

    async def test_a_queues_owner_keeps_its_sagas(self, storage: Storage) -> None:
        """No worker claims them by their times, and the death of a worker does not free them."""
        await _write(storage, worker("w1"), _queue(), _queued("a", of={"wake_at": 1}), saga("free"))
        claimed = await storage.perform("claim_sagas", worker="w1", now=100, limit=9, sagas=TRIPS)
        assert [row["id"] for row in claimed] == ["free"]
        assert await storage.query("next_wake", sagas=TRIPS) in ([], [{"wake_at": None}])
        (row,) = await storage.query("woken_sagas", worker="queue:q")
        assert (row["id"], row["owner"], row["fence"]) == ("a", "queue:q", 0)

    async def test_queues_and_their_counts(self, storage: Storage) -> None:
        """By name; what stands is told apart, where it was admitted."""
        assert await storage.query("queues_all") == []
        assert await storage.query("queue_counts") == []
        stands = {"state": STANDING}
        await _write(
            storage, _queue("b"), _queue("a", paused=1, config='{"limit":1}', recent="[[1,2]]", rev=7),
            _queued("s1", queue="a"), _queued("s2", queue="a"), _queued("s3", queue="a", state=EARLY, not_before=5),
            _queued("s4", queue="a", state=ADMITTED), _queued("s5", queue="a", state=ADMITTED, of=stands),
            _queued("s6", queue="a", state=RETURNED, of=stands), _queued("s7", queue="b", state=RETURNED),
        )  # fmt: skip
        first, second = await storage.query("queues_all")
        assert first == {"name": "a", "rev": 7, "paused": 1, "config": '{"limit":1}', "recent": "[[1,2]]"}
        assert second["name"] == "b"
        counts = [(row["queue"], row["state"], row["n"]) for row in await storage.query("queue_counts")]
        assert counts == [("a", -1, 2), ("a", EARLY, 1), ("a", WAITING, 2), ("a", ADMITTED, 1), ("b", RETURNED, 1)]

    async def test_what_there_is_to_do(self, storage: Storage) -> None:
        """For each queue: the next that is early, and whether some wait, came back, or were spoken to."""
        await _write(
            storage, _queue("early"), _queue("idle"), _queue("returned"), _queue("waiting"), _queue("woken"),
            _queued("e1", queue="early", state=EARLY, not_before=9), _queued("i1", queue="idle", state=ADMITTED),
            _queued("e2", queue="early", state=EARLY, not_before=7), _queued("r1", queue="returned", state=RETURNED),
            _queued("w1", queue="waiting"), _queued("k1", queue="woken", state=ADMITTED, of={"wake_at": 3}),
            _queued("k2", queue="idle", state=ADMITTED, of={"wake_at": 3, "owner": "w1"}),
        )  # fmt: skip
        work = await storage.query("queue_work")
        assert [(row["name"], row["early"], row["waiting"], row["returned"], row["woken"]) for row in work] == [
            ("early", 7, 0, 0, 0), ("idle", None, 0, 0, 0), ("returned", None, 0, 1, 0), ("waiting", None, 1, 0, 0),
            ("woken", None, 0, 0, 1),
        ]  # fmt: skip
        assert work[0].keys() >= {"rev", "paused", "config", "recent"}

    async def test_those_whose_time_has_come(self, storage: Storage) -> None:
        """By their times, up to a limit, of one queue."""
        times = {"a": 9, "b": 3, "c": 10, "late": 11}
        rows = [_queued(name, state=EARLY, not_before=at) for name, at in times.items()]
        await _write(storage, _queue(), _queue("r"), *rows, _queued("other", queue="r", state=EARLY, not_before=1))
        assert _named(await storage.query("queue_early", queue="q", now=10, limit=9)) == ["b", "a", "c"]
        assert _named(await storage.query("queue_early", queue="q", now=10, limit=2)) == ["b", "a"]
        assert await storage.query("queue_early", queue="q", now=2, limit=9) == []

    async def test_the_first_of_each_partition(self, storage: Storage) -> None:
        """The highest priority first, then the oldest, then by id; only of sagas that are registered."""
        rows = [
            _queued("old", "x", enqueued_at=1), _queued("new", "x", enqueued_at=9), _queued("top", "x", priority=2),
            _queued("low", "x", priority=-1), _queued("b", "", enqueued_at=5), _queued("a", "", enqueued_at=5),
            _queued("foreign", "y", of={"saga": "order"}), _queued("newer", "y", of={"saga_version": 3}),
            _queued("second", "y", of={"saga_version": 2, "fence": 4}), _queued("running", "y", state=ADMITTED),
            _queued("early", "y", state=EARLY, not_before=1), _queued("elsewhere", "y", queue="r"),
        ]  # fmt: skip
        await _write(storage, _queue(), _queue("r"), *rows)

        async def heads(each: int = 9, most: int = 99, sagas: str = TRIPS) -> Rows:
            return await storage.query("queue_heads", queue="q", sagas=sagas, each=each, most=most)

        all_ = await heads()
        assert _named(all_) == ["a", "b", "top", "old", "new", "low", "second"]
        assert [(row["partition"], row["fence"], row["each"]) for row in all_[-2:]] == [("x", 0, 9), ("y", 4, 9)]
        assert _named(await heads(each=2)) == ["a", "b", "top", "old", "second"]
        assert await heads(sagas="[]") == []
        shared = await heads(most=6)
        assert _named(shared) == ["a", "b", "top", "old", "second"], "three partitions: two each"
        assert {row["each"] for row in shared} == {2}
        assert _named(await heads(most=1)) == ["a", "top", "second"], "one each at least"
        assert await storage.query("queue_heads", queue="none", sagas=TRIPS, each=9, most=9) == []

    async def test_the_place_of_one(self, storage: Storage) -> None:
        """How many of its partition go before it: in the order in which they are admitted."""
        rows = [
            _queued("b", enqueued_at=5), _queued("c", enqueued_at=5), _queued("a", enqueued_at=6),
            _queued("top", priority=2, enqueued_at=9), _queued("low", priority=-1), _queued("other", "x", priority=9),
            _queued("running", state=ADMITTED), _queued("early", state=EARLY, not_before=1),
            _queued("elsewhere", queue="r"),
        ]  # fmt: skip
        await _write(storage, _queue(), _queue("r"), *rows)
        order = ["top", "b", "c", "a", "low"]
        for place, name in enumerate(order):
            row = await storage.get("queued", (name,))
            assert row is not None
            asked = {column: row[column] for column in ("queue", "partition", "priority", "enqueued_at", "saga")}
            assert await storage.query("queue_place", **asked) == [{"n": place}], name

    async def test_those_that_came_back(self, storage: Storage) -> None:
        """The oldest first, up to a limit, of sagas that are registered."""
        rows = [_queued(name, state=RETURNED, enqueued_at=at) for name, at in {"c": 5, "a": 9, "b": 5}.items()]
        others = [_queued("w"), _queued("n", state=ADMITTED), _queued("f", state=RETURNED, of={"saga": "order"})]
        await _write(storage, _queue(), *rows, *others)
        found = await storage.query("queue_returned", queue="q", sagas=TRIPS, limit=9)
        assert _named(found) == ["b", "c", "a"]
        assert {row["fence"] for row in found} == {0}
        assert _named(await storage.query("queue_returned", queue="q", sagas=TRIPS, limit=1)) == ["b"]

    async def test_who_runs(self, storage: Storage) -> None:
        """By partition, and how many of them stand."""
        rows = [
            _queued("a", "x", state=ADMITTED), _queued("b", "x", state=RETURNED), _queued("w", "x"),
            _queued("s", "x", state=ADMITTED, of={"state": STANDING}), _queued("n", "", state=ADMITTED),
            _queued("e", "z", state=EARLY, not_before=1), _queued("o", "x", queue="r", state=ADMITTED),
        ]  # fmt: skip
        await _write(storage, _queue(), _queue("r"), *rows)
        running = await storage.query("queue_running", queue="q")
        assert [(row["partition"], row["running"], row["standing"]) for row in running] == [("", 1, 0), ("x", 3, 1)]
