"""The named reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.port import Row
from event_workflow_engine.testing.conformance.kit import Cases, events, row_unit, saga, unit, worker

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Rows, Storage

_TEXTS = {
    "a": "xy", "b": "x\1", "c": "x\0", "d": "x\0\0\\\0", "e": "x\\u0000", "f": "x\1\x10", "g": "x\x02", "h": "",
    "i": "x\0y", "j": "x\\\0", "k": "x\\\\u0001", "l": "x\1\0", "m": "x\0\1", "o": "x", "p": '"\0',
    "q": "\0", "r": "\1",
}  # fmt: skip
_IN_QUEUE = {"queue": "q", "partition": "", "priority": 0}
TRIPS = '[["trip",1],["trip",2]]'


def _ids(rows: Rows) -> list[Any]:
    return [next(iter(row.values())) for row in rows]


def _json(field: str | None) -> str | None:
    return None if field is None else msgspec.json.encode(field).decode()


def _document(key: str, body: Any, generation: int = 1, projection: str = "p") -> Row:
    text = body if isinstance(body, str) else msgspec.json.encode(body).decode()
    return Row("documents", "insert", (projection, generation, key), {"body": text})


class QueryCases(Cases):
    """Reads by name."""

    async def test_an_unknown_name(self, storage: Storage) -> None:
        """Says so; claims are no reads, reads no claims."""
        for name in ("nonsense", "claim_sagas", "sagas_count; --"):
            with pytest.raises(DefinitionError):
                await storage.query(name)
        with pytest.raises(DefinitionError):
            await storage.perform("sagas_count")

    async def test_what_is_staged(self, storage: Storage) -> None:
        """By id, page by page, without what was refused."""
        rows = [Row("staged", "insert", (name,), {"body": "{}", "staged_at": 1}) for name in ("c", "a", "b", "d")]
        await storage.write(row_unit(*rows))
        await storage.write(row_unit(Row("staged", "update", ("b",), {"refused": "why"}, {"refused": None})))
        (first, *others) = await storage.query("staged_page", after="", limit=9)
        assert first == {"id": "a", "body": "{}", "staged_at": 1, "refused": None}
        assert _ids(others) == ["c", "d"]
        assert _ids(await storage.query("staged_page", after="a", limit=1)) == ["c"]
        assert (await storage.get("staged", ("b",)) or {})["refused"] == "why"

    async def test_sagas(self, storage: Storage) -> None:
        """Pages by id, with filters; by ids; counts by state."""
        kinds = [("RUNNING", "trip"), ("COMPLETED", "trip"), ("RUNNING", "order")]
        rows = [saga(f"s{n}", state=kinds[n % 3][0], saga=kinds[n % 3][1]) for n in range(9)]
        await storage.write(row_unit(*rows))

        async def page(after: str = "", limit: int = 100, state: str | None = None, kind: str | None = None) -> Any:
            return _ids(await storage.query("sagas_page", state=state, saga=kind, after=after, limit=limit))

        assert await page() == [f"s{n}" for n in range(9)]
        assert await page(after="s3", limit=2) == ["s4", "s5"]
        assert await page(state="COMPLETED") == ["s1", "s4", "s7"]
        assert await page(kind="order", after="s2") == ["s5", "s8"]
        assert await page(state="RUNNING", kind="trip", limit=2) == ["s0", "s3"]
        assert await page(state="FAILED") == []
        assert _ids(await storage.query("sagas_by_ids", ids='["s8","s1","none"]')) == ["s1", "s8"]
        assert await storage.query("sagas_count") == [{"state": "COMPLETED", "n": 3}, {"state": "RUNNING", "n": 6}]
        counted = await storage.query("sagas_count_to", states='["RUNNING","FAILED","COMPLETED"]', limit=4)
        assert [(row["state"], row["n"]) for row in counted] == [("RUNNING", 4), ("FAILED", 0), ("COMPLETED", 3)]

    async def test_unclaimed_sagas(self, storage: Storage) -> None:
        """Those that could have gone on before a time, by definition; of each kind the longest due count first."""
        await storage.write(
            row_unit(
                *(saga(f"due-{n}", wake_at=n) for n in range(5)),
                saga("later", wake_at=50),
                saga("asleep", wake_at=None),
                saga("owned", owner="w", wake_at=1),
                saga("ended", ended_at=2, wake_at=1),
                saga("other", saga="order", saga_version=2, wake_at=3),
                *(saga(f"q-{n}", saga="order", saga_version=2, owner="queue:q", wake_at=None) for n in range(4)),
                Row("queues", "insert", ("q",), {"rev": 0, "paused": 0, "config": "{}", "recent": "[]"}),
                *(
                    Row("queued", "insert", (f"q-{n}",), {**_IN_QUEUE, "state": state, "enqueued_at": at})
                    for n, (state, at) in enumerate([(1, 7), (1, 50), (0, 7), (2, 7)])
                ),
            )
        )
        trip = {"saga": "trip", "saga_version": 1}
        order = {"saga": "order", "saga_version": 2}
        found = await storage.query("sagas_unclaimed", before=50, limit=100)
        assert found == [{**order, "n": 2, "since": 3}, {**trip, "n": 5, "since": 0}]
        found = await storage.query("sagas_unclaimed", before=50, limit=2)
        assert found == [{**order, "n": 1, "since": 7}, {**trip, "n": 2, "since": 0}]
        assert await storage.query("sagas_unclaimed", before=0, limit=100) == []

    async def test_what_waits_for_people(self, storage: Storage) -> None:
        """Dead letters, what was parked and what was staged, counted no further than asked for; refusals by id."""
        empty = dict.fromkeys(("dead_letters", "parked_keys", "parked_events", "staged", "refused"), 0)
        assert await storage.query("backlog_counts", limit=3) == [empty]
        rows = [Row("dead_letters", "insert", (f"d{n}",), {"subscription": "s", "parked_at": n}) for n in range(5)]
        rows += [Row("parked_keys", "insert", ("p", 1, "k"), {"error": "e"})]
        rows += [Row("parked_events", "insert", ("p", 1, "k", n), {}) for n in (1, 2)]
        for n, refused in enumerate((None, "why", "so")):
            rows.append(Row("staged", "insert", (f"t{n}",), {"body": "{}", "staged_at": n, "refused": refused}))
        await storage.write(row_unit(*rows))
        counts = {"dead_letters": 3, "parked_keys": 1, "parked_events": 2, "staged": 1, "refused": 2}
        assert await storage.query("backlog_counts", limit=3) == [counts]
        found = await storage.query("staged_refused", after="", limit=9)
        assert [(row["id"], row["refused"]) for row in found] == [("t1", "why"), ("t2", "so")]
        assert _ids(await storage.query("staged_refused", after="t1", limit=1)) == ["t2"]

    async def test_next_wake(self, storage: Storage) -> None:
        """The earliest over sagas that nobody owns, that have not ended, and whose code is here."""
        assert await storage.query("next_wake", sagas=TRIPS) == []
        await storage.write(
            row_unit(
                saga("owned", owner="w", wake_at=1),
                saga("ended", ended_at=5, wake_at=2),
                saga("foreign", saga="order", wake_at=3),
                saga("older", saga_version=3, wake_at=4),
                saga("waiting", wake_at=None),
                saga("b", wake_at=30),
                saga("a", wake_at=20, saga_version=2),
            )
        )
        assert await storage.query("next_wake", sagas=TRIPS) == [{"wake_at": 20}]
        assert await storage.query("next_wake", sagas="[]") == []

    async def test_woken_sagas(self, storage: Storage) -> None:
        """A worker's own to which somebody spoke."""
        await storage.write(
            row_unit(
                saga("b", owner="w", wake_at=1),
                saga("a", owner="w", wake_at=9),
                saga("quiet", owner="w", wake_at=None),
                saga("other", owner="v", wake_at=1),
                saga("ended", owner="w", wake_at=1, ended_at=2),
            )
        )
        assert _ids(await storage.query("woken_sagas", worker="w")) == ["a", "b"]

    async def test_workers(self, storage: Storage) -> None:
        """Those that were not declared dead."""
        await storage.write(row_unit(worker("b"), worker("a"), worker("dead", alive=0)))
        assert _ids(await storage.query("live_workers")) == ["a", "b"]

    async def test_streams(self, storage: Storage) -> None:
        """Pages by name, with a prefix, each with its version, events and last time."""
        await storage.write(unit(events("order-1", 2), events("order-2"), events("item-1"), events("orders"), at=5))
        await storage.write(unit(events("order-1"), at=9))

        async def page(prefix: str = "", after: str = "", limit: int = 100) -> Rows:
            return await storage.query("streams_page", prefix=prefix, after=after, limit=limit)

        assert _ids(await page()) == ["item-1", "order-1", "order-2", "orders"]
        assert _ids(await page(prefix="order-")) == ["order-1", "order-2"]
        assert _ids(await page(prefix="order", after="order-1", limit=2)) == ["order-2", "orders"]
        assert _ids(await page(prefix="%")) == []
        assert await page(limit=0) == []
        assert (await page(prefix="order-1"))[0] == {"stream": "order-1", "version": 3, "events": 3, "last_at": 9}

    async def test_schedules(self, storage: Storage) -> None:
        """Due ones in their order, the next one, all; slots that are open."""
        assert await storage.query("next_schedule") == []
        for name, next_run, paused in (("c", 5, 0), ("b", 9, 0), ("a", 5, 0), ("p", 1, 1), ("n", None, 0)):
            values = {"kind": "once", "next_run": next_run, "paused": paused, "task": b"{}"}
            await storage.write(row_unit(Row("schedules", "insert", (name,), values)))
        assert _ids(await storage.query("due_schedules", now=9, limit=10)) == ["a", "c", "b"]
        assert _ids(await storage.query("due_schedules", now=8, limit=1)) == ["a"]
        assert await storage.query("next_schedule") == [{"next_run": 5}]
        assert _ids(await storage.query("schedules_all")) == ["a", "b", "c", "n", "p"]
        for slot, done in ((2, 0), (1, 0), (3, 1)):
            await storage.write(row_unit(Row("slots", "insert", ("a", slot), {"done": done})))
        assert [row["slot"] for row in await storage.query("open_slots")] == [1, 2]

    async def test_checkpoints_and_projections(self, storage: Storage) -> None:
        """All of them, by name."""
        for name in ("b", "a"):
            await storage.write(row_unit(Row("checkpoints", "insert", (name,), {"position": 5})))
            await storage.write(row_unit(Row("projections", "insert", (name,), {"generation": 1})))
        assert _ids(await storage.query("checkpoints_all")) == ["a", "b"]
        assert _ids(await storage.query("projections_all")) == ["a", "b"]

    @pytest.mark.parametrize(
        ("where", "order_by", "descending", "keys"),
        [
            ({}, None, 0, ["a", "b", "c", "d", "e"]),
            ({"n": 1}, None, 0, ["a", "c"]),
            ({"n": 1.0}, None, 0, ["a", "c"]),
            ({"n": True}, None, 0, ["d"]),
            ({"n": None}, None, 0, ["e"]),
            ({"none": None}, None, 0, []),
            ({"n": 1, "s": "x"}, None, 0, ["a"]),
            ({"s": 'it\'s "q"'}, None, 0, ["c"]),
            ({"$.n": 1}, None, 0, []),
            ({'n" = 1 --': 1}, None, 0, []),
            ({"größe": "ü"}, None, 0, ["b"]),
            ({}, "n", 0, ["e", "a", "c", "d", "b"]),
            ({}, "n", 1, ["b", "a", "c", "d", "e"]),
            ({}, "s", 0, ["b", "d", "e", "c", "a"]),
            ({}, "none", 1, ["a", "b", "c", "d", "e"]),
            ({}, "n'", 0, ["a", "b", "c", "d", "e"]),
        ],
    )
    async def test_documents(
        self, storage: Storage, where: dict[str, Any], order_by: str | None, descending: int, keys: list[str]
    ) -> None:
        """Found by top-level fields, in the order of a field; fields' names are values, never SQL nor paths."""
        bodies = {
            "a": {"n": 1, "s": "x"},
            "b": {"n": 2.5, "größe": "ü"},
            "c": {"n": 1, "s": 'it\'s "q"'},
            "d": {"n": True},
            "e": {"n": None},
        }
        await storage.write(row_unit(*(_document(key, body) for key, body in bodies.items())))
        await storage.write(row_unit(_document("z", {"n": 1}, 2), _document("y", {"n": 1}, 1, "q")))
        given = {"projection": "p", "generation": 1, "where": msgspec.json.encode(where).decode()}
        given |= {"order_by": _json(order_by), "descending": descending}
        assert [r["key"] for r in await storage.query("documents_find", **given, limit=10, offset=0)] == keys
        page = await storage.query("documents_find", **given, limit=2, offset=1)
        assert [r["key"] for r in page] == keys[1:3]
        assert all(msgspec.json.decode(r["body"]) == bodies[r["key"]] for r in page)

    @pytest.mark.parametrize("order_by", [None, "s", "a", "n\0", "n\1", "n"])
    @pytest.mark.parametrize("descending", [0, 1])
    async def test_documents_with_control_characters(
        self, storage: Storage, order_by: str | None, descending: int
    ) -> None:
        """Text is compared and sorted to its end, whatever is in it: NUL, and what a database may take for one."""
        bodies: dict[str, dict[str, Any]] = {
            key: {"s": text, "a": [text], "n\0": len(text), "n\1": -ord(key)} for key, text in _TEXTS.items()
        }
        await storage.write(row_unit(*(_document(key, body) for key, body in bodies.items())))

        async def found(where: dict[str, Any]) -> list[Any]:
            given = {"where": msgspec.json.encode(where).decode(), "order_by": _json(order_by)}
            rows = await storage.query(
                "documents_find", projection="p", generation=1, descending=descending, limit=99, offset=0, **given
            )
            assert all(msgspec.json.decode(row["body"]) == bodies[row["key"]] for row in rows)
            return [row["key"] for row in rows]

        def place(key: str) -> Any:
            value = bodies[key].get(order_by or "", 0)
            return value if isinstance(value, int) else _json(value[0]) if isinstance(value, list) else value

        assert await found({}) == sorted(sorted(_TEXTS), key=place, reverse=bool(descending))
        for key, text in _TEXTS.items():
            assert await found({"s": text}) == [key]
            assert await found({"a": [text], "s": text}) == [key]
            assert await found({"n\1": -ord(key)}) == [key]
        like_b = {key for key, text in _TEXTS.items() if len(text) == len(_TEXTS["b"])}
        assert set(await found({"n\0": len(_TEXTS["b"])})) == like_b
        assert await found({"n": 1}) == await found({"n\0": 1, "n\1": 0}) == []

    async def test_parked(self, storage: Storage) -> None:
        """Keys, events in order, counts; of one generation."""
        rows = [Row("parked_keys", "insert", ("p", 1, key), {"error": "x", "parked_at": 1}) for key in ("b", "a")]
        parked = ((1, "b", 3), (1, "a", 9), (1, "b", 7), (2, "a", 1))
        rows += [Row("parked_events", "insert", ("p", gen, key, at)) for gen, key, at in parked]
        await storage.write(row_unit(*rows))
        of = {"projection": "p", "generation": 1}
        assert [r["key"] for r in await storage.query("parked_keys_page", **of)] == ["a", "b"]
        found = await storage.query("parked_events_page", **of, key=None, limit=10)
        assert [r["position"] for r in found] == [3, 7, 9]
        found = await storage.query("parked_events_page", **of, key="b", limit=1)
        assert [r["position"] for r in found] == [3]
        assert await storage.query("parked_count", **of) == [{"n": 3}]

    async def test_dead_letters(self, storage: Storage) -> None:
        """The oldest first, of one subscription if asked."""
        for name, of, at in (("a", "mail", 9), ("b", "mail", 5), ("c", "index", 7)):
            values = {"subscription": of, "event": b"{}", "error": "x", "attempts": 5, "parked_at": at}
            await storage.write(row_unit(Row("dead_letters", "insert", (name,), values)))
        assert _ids(await storage.query("dead_letters_page", subscription=None, limit=10)) == ["b", "c", "a"]
        assert _ids(await storage.query("dead_letters_page", subscription="mail", limit=1)) == ["b"]
