"""`ewe schedule`: looking at schedules, and changing them, from another process."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.cli.worker import good

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.tasks import Task

if TYPE_CHECKING:
    from tests.integration.cli.kit import Ewe

    from event_workflow_engine import WorkflowEngine

WHEN = datetime(2040, 2, 29, 12, tzinfo=UTC)


@pytest.fixture
def ewe(empty: Ewe) -> Ewe:
    async def work(engine: WorkflowEngine) -> None:
        engine.register(good)
        await engine.scheduler.cron("0 2 * * *", Task.saga(good, "night"), tz="Europe/Amsterdam", id="nightly")
        await engine.scheduler.every(timedelta(minutes=90), Task.saga(good, "often"), id="often")
        await engine.scheduler.schedule_at(Task.saga(good, "leap", id="leap"), WHEN, id="once")

    empty.engine(work)
    return empty


def schedules(ewe: Ewe) -> dict[str, Any]:
    return {one["id"]: one for one in ewe.json("schedule", "ls")["schedules"]}


def test_schedules_are_listed_with_what_runs_when(ewe: Ewe) -> None:
    assert schedules(ewe)["once"] == {
        "id": "once", "kind": "saga", "name": "good", "rule": "once", "next_run": "2040-02-29T12:00:00.000+00:00",
        "paused": False,
    }  # fmt: skip
    lines = [line.split() for line in ewe("schedule", "ls").out.splitlines()]
    assert lines[0] == ["id", "runs", "when", "next"]
    assert lines[1][:9] == ["nightly", "saga", "good", "0", "2", "*", "*", "*", "in"]
    assert lines[2][:6] == ["often", "saga", "good", "every", "5400", "s"]
    assert lines[3] == ["once", "saga", "good", "once", "2040-02-29", "12:00:00Z"]


def test_a_task_rests_until_it_is_resumed(ewe: Ewe) -> None:
    assert ewe.json("schedule", "pause", "often") == {"id": "often", "paused": True}
    assert schedules(ewe)["often"]["paused"]
    assert ewe("schedule", "ls").out.splitlines()[2].split()[-1] == "paused"
    assert ewe("schedule", "resume", "often").out == "task often resumed\n"
    assert not schedules(ewe)["often"]["paused"]


def test_a_task_that_is_triggered_runs_on_a_worker_and_keeps_its_schedule(ewe: Ewe) -> None:
    before = schedules(ewe)
    assert ewe.json("schedule", "trigger", "once") == {"id": "once", "triggered": True}

    async def work(engine: WorkflowEngine) -> None:
        engine.register(good)
        async with asyncio.timeout(30), aclosing(engine.store.follow(after=0)) as events:
            async for event in events:
                if event.stream == "saga-leap":
                    break
        await engine.handle("leap", good).result()

    (left,) = (one for name, one in schedules(ewe).items() if name not in before)
    assert (left["name"], left["rule"]) == ("good", "once")
    ewe.engine(work)
    assert schedules(ewe) == before


def test_a_task_with_the_longest_id_that_is_triggered_runs(empty: Ewe) -> None:
    """The ids of its run and of its saga are made of it."""
    longest = "x" * 180

    async def schedule(engine: WorkflowEngine) -> None:
        engine.register(good)
        with pytest.raises(DefinitionError, match="1 to 180 printable characters"):
            await engine.scheduler.schedule_at(Task.saga(good, "leap"), WHEN, id=longest + "x")
        await engine.scheduler.schedule_at(Task.saga(good, "leap"), WHEN, id=longest)

    async def work(engine: WorkflowEngine) -> None:
        engine.register(good)
        async with asyncio.timeout(30), aclosing(engine.store.follow(after=0)) as events:
            async for event in events:
                if event.stream.startswith("saga-xxx") and event.type == "saga-completed":
                    return

    empty.engine(schedule)
    assert empty("schedule", "trigger", longest).code == 0
    empty.engine(work)


def test_a_task_is_forgotten(ewe: Ewe) -> None:
    assert ewe.json("schedule", "cancel", "nightly") == {"id": "nightly", "cancelled": True, "triggered": []}
    assert sorted(schedules(ewe)) == ["often", "once"]


def test_what_was_triggered_before_its_task_was_forgotten_is_named(ewe: Ewe) -> None:
    async def another(engine: WorkflowEngine) -> None:
        engine.register(good)
        await engine.scheduler.schedule_at(Task.saga(good, "other"), WHEN, id="nightly/other")

    ewe.engine(another, worker=False)
    ewe("schedule", "trigger", "nightly")
    (run,) = (name for name in schedules(ewe) if name.startswith("nightly/") and name != "nightly/other")
    assert " ".join(ewe("schedule", "cancel", "nightly").out.split()) == (
        f"task nightly cancelled; what was triggered before still runs, unless cancelled too: {run}"
    )
    assert sorted(schedules(ewe)) == [run, "nightly/other", "often", "once"]
    assert ewe("schedule", "cancel", run).out == f"task {run} cancelled\n"


@pytest.mark.parametrize("verb", ["pause", "resume", "trigger", "cancel"])
def test_a_task_that_there_is_none_of_is_named(ewe: Ewe, verb: str) -> None:
    ended = ewe("schedule", verb, "often-")
    assert ended.code == 1
    assert "there is no scheduled task 'often-'" in ended.err
