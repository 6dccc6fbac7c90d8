"""What an operator sees at a glance: what sagas wait for, who lives, and what waits for people."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.integration.cli.worker import counts

from event_workflow_engine import Saga, SagaStep, WorkflowEngine, run_saga, saga, sleep, wait_for_signal, waiting
from event_workflow_engine.cli import overview
from event_workflow_engine.ids import uuid7
from event_workflow_engine.queues import Queue
from event_workflow_engine.staging import _Staged
from event_workflow_engine.storage.port import ANY_VERSION, Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    from tests.integration.cli.kit import Ewe


@saga("cli-asks")
async def asks() -> None:
    await wait_for_signal("approval", timeout=timedelta(hours=1))


@saga("cli-sleeps")
async def sleeps() -> None:
    await sleep(3600)


@saga("cli-sleeps-often")
async def sleeps_often() -> None:
    await asyncio.gather(*(sleep(3600 + n) for n in range(12)))


@saga("cli-asks-ten")
async def asks_ten() -> None:
    await asyncio.gather(*(run_saga(asks, id=f"a-{n}") for n in range(10)))


async def parked(engine: WorkflowEngine, saga_id: str) -> None:
    rang = asyncio.Event()
    remove = engine.storage.add_bell(rang.set)
    while (row := await engine.storage.get("sagas", (saga_id,))) is None or row["owner"]:
        await rang.wait()
        rang.clear()
    remove()


def test_what_a_saga_waits_for_is_shown(empty: Ewe) -> None:
    async def work(engine: WorkflowEngine) -> None:
        engine.register(asks, sleeps, sleeps_often)
        engine.queues.register(Queue("payments"))
        await engine.queues.pause("payments")
        for one, name in ((asks, "a-1"), (sleeps, "b-1"), (sleeps_often, "c-1")):
            await engine.start(one, id=name)
            await parked(engine, name)
        for n in (1, 2):
            await engine.start(sleeps, id=f"q-{n}", queue="payments")

    empty.engine(work)
    listed = {row["id"]: row["waits_for"] for row in empty.json("run", "list")["sagas"]}
    (signal,) = listed["a-1"]
    assert (signal["kind"], signal["name"]) == ("signal", "approval")
    assert signal["said"].startswith("waits for signal 'approval' until 20")
    assert signal["at"].endswith("+00:00")
    assert [one["said"] for one in listed["q-2"]] == ["waits in queue 'payments'"]
    assert listed["c-1"][8]["said"] == "and 4 more"
    assert empty.json("run", "show", "a-1")["waits_for"] == [signal]
    (place,) = empty.json("run", "show", "q-2")["waits_for"]
    assert place["said"] == "waits in queue 'payments' (place 2)"
    shown = empty("run", "show", "b-1").out.splitlines()
    assert re.fullmatch(r"sleeps until 20[-\d]+ [:\d]+Z", shown[2])
    assert re.search(r"waits for signal 'approval' until 20[-\d]+ [:\d]+Z", " ".join(empty("run", "list").out.split()))


def test_the_child_that_a_saga_waits_for_is_shown(empty: Ewe) -> None:
    seen: dict[str, Any] = {}

    async def ewe(*args: str) -> str:
        process = await asyncio.to_thread(empty.popen, *args)
        out, _ = await asyncio.to_thread(process.communicate)
        return str(out)

    async def work(engine: WorkflowEngine) -> None:
        engine.register(asks, asks_ten)
        await engine.start(asks_ten, id="p-1")
        for n in range(10):
            await parked(engine, f"a-{n}")
        seen["shown"] = await ewe("run", "show", "p-1")
        seen["plain"] = json.loads(await ewe("run", "show", "p-1", "--json"))["waits_for"]
        listed = json.loads(await ewe("run", "list", "--saga", "cli-asks-ten", "--json"))["sagas"]
        seen["listed"] = listed[0]["waits_for"]

    empty.engine(work)
    assert seen["shown"].splitlines()[2] == "waits for child saga 'a-0' (cli-asks v1, RUNNING)"
    assert seen["plain"][3] == {
        "kind": "child",
        "name": "a-3",
        "number": 1,
        "at": None,
        "saga": "cli-asks",
        "state": "RUNNING",
        "said": "waits for child saga 'a-3' (cli-asks v1, RUNNING)",
    }
    assert len(seen["plain"]) == 10
    assert seen["listed"][:8] == seen["plain"][:8]
    assert [one["said"] for one in seen["listed"][8:]] == ["and 2 more"]


def test_only_a_worker_is_shown_as_the_one_that_has_a_saga(empty: Ewe) -> None:
    """Not the queue in which it waits, nor the worker that it is given to, which has not taken it."""

    async def work(engine: WorkflowEngine) -> None:
        engine.register(sleeps)
        engine.queues.register(Queue("line"))
        await engine.queues.pause("line")
        await engine.start(sleeps, id="q-1", queue="line")
        await engine.start(sleeps, id="s-1")
        await parked(engine, "s-1")
        given = Row("sagas", "update", ("s-1",), {"owner": "given:w-1", "wake_at": engine.now() + 10**9}, {"owner": ""})
        await engine.storage.write(Unit(uuid7(), engine.now(), rows=(given,)))

    empty.engine(work)
    queued, given = empty("run", "show", "q-1").out, empty("run", "show", "s-1").out
    assert "on worker" not in queued
    assert "waits in queue 'line' (place 1)" in queued
    assert "given to worker w-1" in given
    assert "waits for a worker" in given


def test_what_runs_is_shown_from_beside(empty: Ewe) -> None:
    seen: list[Any] = []

    async def look() -> None:
        process = await asyncio.to_thread(empty.popen, "run", "show", "s-1", "--json")
        out, _ = await asyncio.to_thread(process.communicate)
        seen.extend(json.loads(out)["waits_for"])

    async def work(engine: WorkflowEngine) -> None:
        looking = Saga("looking", [SagaStep("look", look)])
        engine.register(looking)
        await engine.execute(looking, id="s-1")

    empty.engine(work)
    assert [one["said"] for one in seen] == ["runs step 'look'"]


def test_sagas_whose_code_nobody_has_are_told(ewe: Ewe, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a worker lives that could run others; without one nobody can tell what the next will have."""
    monkeypatch.setattr(waiting, "PATIENCE_US", 0)
    assert ewe.json("db", "status")["waiting_for_code"] == []
    assert "waits for a worker since" in " ".join(ewe("run", "list").out.split())

    async def work(engine: WorkflowEngine) -> None:
        engine.register(sleeps)
        async with engine:
            found = await overview.overview(engine.storage)
        (told,) = found["waiting_for_code"]
        assert {**told, "since": ""} == {"saga": "waiting", "version": 1, "sagas": 1, "at_least": False, "since": ""}
        overview.print_overview(found)

    asyncio.run(work(WorkflowEngine(ewe.url)))
    out = ewe._capture.readouterr().out
    assert re.search(
        r"1 sagas wait for code that no worker has: waiting v1, since [-\d]+ [:\d]+Z", " ".join(out.split())
    )


def test_a_glance_tells_workers_queues_projections_and_what_waits_for_people(empty: Ewe) -> None:
    async def work(engine: WorkflowEngine) -> None:
        engine.register(sleeps)
        engine.projections.register(counts)
        engine.queues.register(Queue("payments", limit=2))
        await engine.queues.pause("payments")
        await engine.start(sleeps, id="q-1", queue="payments")
        await engine.storage.write(
            Unit(uuid7(), 1, rows=(Row("dead_letters", "insert", ("d",), {"subscription": "s"}), refused("t-1", "why")))
        )
        process = await asyncio.to_thread(empty.popen, "db", "status", "--json")
        out, _ = await asyncio.to_thread(process.communicate)
        found.update(json.loads(out))

    found: dict[str, Any] = {}
    empty.engine(work)
    (worker,) = found["workers"]
    assert (worker["silent"], worker["last_heartbeat_at"]) == (False, None)
    (queue,) = found["queues"]
    assert (queue["name"], queue["paused"], queue["waiting"]) == ("payments", True, 1)
    assert [(one["name"], one["parked"]) for one in found["projections"]] == [("cli-counts", 0)]
    assert (found["dead_letters"], found["refused"], found["staged"], found["parked_events"]) == (1, 1, 0, 0)
    assert found["sagas_by_state"] == {"PENDING": 1}
    out = " ".join(empty("db", "status").out.split())
    for said in ("schema version 4", "worker none is alive", "queue payments paused, 1 waiting", "dead letters 1",
                 "projection cli-counts async v1, ", "staged and refused (ewe db staged) 1"):  # fmt: skip
        assert said in out, said


def test_a_glance_costs_the_same_however_long_the_log_is(empty: Ewe, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement goes over the log or over all sagas: SQLite's own count of its steps says so."""
    empty.engine(_nothing)
    path = empty.url.removeprefix("sqlite:///")
    costs: list[int] = []
    steps = 0
    connect = sqlite3.connect

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counting(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made = connect(*args, **kwargs)
        made.set_progress_handler(step, 100)
        return made

    for size in (1_000, 50_000):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            fill(connection, size)
            connection.commit()
        steps = 0
        monkeypatch.setattr(sqlite3, "connect", counting)
        monkeypatch.setattr(overview, "COUNTED_TO", 500)
        status = empty.json("db", "status")
        monkeypatch.undo()
        assert status["sagas_by_state"] == {"COMPLETED": 500}
        assert status["more_than_counted"] == ["COMPLETED"]
        assert status["estimates"]["sagas"] >= size
        costs.append(steps)
    assert costs[1] < costs[0] * 1.5 + 10, costs


async def _nothing(engine: WorkflowEngine) -> None:
    pass


def fill(connection: sqlite3.Connection, size: int) -> None:
    rows = [(n, f"s{n}") for n in range(1, size + 1)]
    connection.executemany("INSERT OR IGNORE INTO streams VALUES (?, ?, 1, ?)", [(n, name, n) for n, name in rows])
    connection.executemany(
        "INSERT OR IGNORE INTO events VALUES (?, ?, 1, 1, 0, 0, ?, 't', 1, '{}', '', 1, 2)",
        [(n, n, f"e{n}") for n, _ in rows],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO sagas (id, saga, saga_version, state, owner, fence, ended_at) "
        "VALUES (?, 'trip', 1, 'COMPLETED', '', 1, 5)",
        [(name,) for _, name in rows],
    )


# -- what was staged and refused -------------------------------------------------------------------------------------


def refused(staged_id: str, why: str | None) -> Row:
    record = NewRecord(uuid7(), "placed", b"{}")
    unit = Unit(record.id, 1, (Append("order-1", (record,), ANY_VERSION),))
    body = msgspec.json.encode(_Staged(unit, False)).decode()
    return Row("staged", "insert", (staged_id,), {"body": body, "staged_at": 1_000_000, "refused": why})


@pytest.fixture
def refusing(empty: Ewe) -> Ewe:
    async def work(engine: WorkflowEngine) -> None:
        rows = tuple(refused(f"t-{n}", f"because {n}") for n in (1, 2, 3))
        await engine.storage.write(Unit(uuid7(), 1, rows=rows))

    empty.engine(work)
    return empty


def test_what_was_refused_is_listed_a_page_at_a_time(refusing: Ewe) -> None:
    page = refusing.json("db", "staged", "-n", "2")
    assert [(one["id"], one["reason"]) for one in page["refused"]] == [("t-1", "because 1"), ("t-2", "because 2")]
    assert page["refused"][0]["what"] == "1 events for stream 'order-1'"
    page = refusing.json("db", "staged", "list", "--after", page["next"])
    assert ([one["id"] for one in page["refused"]], page["next"]) == (["t-3"], None)
    assert "because 2" in refusing("db", "staged").out


def test_what_was_refused_is_dropped_or_tried_again(refusing: Ewe) -> None:
    assert refusing("db", "staged", "drop", "t-1").out == "1 dropped\n"
    assert refusing.json("db", "staged", "retry", "--all") == {"ids": ["t-2", "t-3"], "retry": True}
    waiting_ = refusing.json("db", "staged")
    assert (waiting_["refused"], waiting_["waiting"]) == ([], 2)
    assert "2 staged and not refused" in refusing("db", "staged").out

    async def moved(engine: WorkflowEngine) -> None:
        rang = asyncio.Event()
        engine.storage.add_bell(rang.set)
        while await engine.store.head("order-1") < 2:
            await rang.wait()
            rang.clear()

    refusing.engine(moved)
    assert refusing.json("stream", "show", "order-1")["events"][1]["version"] == 2


@pytest.mark.parametrize("verb", ["retry", "drop"])
def test_staged_ids_that_are_wrong_or_missing_are_told(refusing: Ewe, verb: str) -> None:
    for arguments, said in ((["t-9"], "see ewe db staged"), ([], "or --all"), (["t-1", "--all"], "or --all")):
        ended = refusing("db", "staged", verb, *arguments)
        assert (ended.code, ended.out) == (1, "")
        assert said in ended.err
        assert len(ended.err.splitlines()) == 1
