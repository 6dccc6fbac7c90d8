"""What a saga waits for is told while it waits, wherever it is, and so is that nobody has its code."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    RetryPolicy,
    Saga,
    SagaStep,
    WorkflowEngine,
    run_saga,
    saga,
    sleep,
    step,
    wait_for_signal,
    waiting,
)
from event_workflow_engine.errors import SagaNotFoundError, StepFailedError
from event_workflow_engine.queues import Queue
from event_workflow_engine.runner import codeless
from event_workflow_engine.runner.codeless import CodeWatch
from event_workflow_engine.waits import said

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import Unit, Written

LONG = timedelta(hours=1)


async def refuse() -> None:
    raise ValueError("not now")


async def nothing() -> None:
    pass


@saga("waits-for-two")
async def two() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_for_signal("approval"))
        group.create_task(wait_for_signal("parcel", timeout=LONG))
        group.create_task(sleep(2 * LONG))


@saga("waits-once")
async def once() -> str:
    got: str = await wait_for_signal("approval", timeout=LONG)
    await sleep(LONG)
    return got


@saga("waits-for-many")
async def many() -> None:
    await asyncio.gather(*(sleep(LONG + timedelta(seconds=n)) for n in range(100)))


@saga("waits-own")
async def named() -> None:
    await wait_for_signal("approval")


@saga("asks-one")
async def asks_one() -> None:
    await run_saga(named, id="own-id")


@saga("asks-two")
async def asks() -> None:
    await asyncio.gather(run_saga(once), run_saga(named, id="own-id"))


later = RetryPolicy(attempts=3, delay=LONG, jitter=0)
flaky = Saga("flaky", [SagaStep("ship", refuse, retry=later)], timeout=3 * LONG)
stuck = Saga(
    "stuck",
    [SagaStep("book", nothing, refuse, compensation_retry=later), SagaStep("pay", refuse)],
    sequential=True,
)


def kinds(waits: Any) -> list[tuple[str, str, int | None, bool]]:
    return [(one.kind, one.name, one.number, one.at is not None) for one in waits]


async def parked(lab: Lab, engine: WorkflowEngine, saga: Saga[Any, Any]) -> list[tuple[str, str, int | None, bool]]:
    handle = await engine.start(saga, id="s-1")
    await lab.until_row("s-1", owner="")
    return kinds(await handle.waits_for())


async def test_signals_and_times_are_told_in_the_order_in_which_they_end(lab: Lab) -> None:
    async with lab.engine(two) as engine:
        assert await parked(lab, engine, two) == [
            ("signal", "parcel", None, True),
            ("sleep", "", None, True),
            ("signal", "approval", None, False),
        ]
        first, second, third = map(said, await engine.handle("s-1").waits_for())
        due = datetime.now(UTC) + LONG
        assert first.startswith(f"waits for signal 'parcel' until {due:%Y-%m-%d %H}")
        assert second.startswith("sleeps until ")
        assert third == "waits for signal 'approval'"


async def test_what_came_is_told_no_longer(lab: Lab) -> None:
    async with lab.engine(once) as engine:
        assert await parked(lab, engine, once) == [("signal", "approval", None, True)]
        await engine.handle("s-1").signal("approval", "yes")
        await lab.until_fact(engine, "s-1", "timer-set", 2)
        await lab.until_row("s-1", owner="")
        assert kinds(await engine.handle("s-1").waits_for()) == [("sleep", "", None, True)]
        await engine.handle("s-1").cancel()
        await lab.until_row("s-1", state="CANCELLED")
        assert await engine.handle("s-1").waits_for() == []
        assert (await lab.storage.get("sagas", ("s-1",)) or {})["waits_for"] is None
        with pytest.raises(SagaNotFoundError):
            await engine.handle("nobody").waits_for()


async def test_of_many_the_first_are_told_and_how_many_more(lab: Lab) -> None:
    async with lab.engine(many) as engine:
        told = await parked(lab, engine, many)
        assert told == [("sleep", "", None, True)] * 8 + [("more", "", 92, False)]
        assert len((await lab.storage.get("sagas", ("s-1",)) or {})["waits_for"]) < 500


async def test_attempts_and_the_deadline_are_told(lab: Lab) -> None:
    async with lab.engine(flaky) as engine:
        assert await parked(lab, engine, flaky) == [("attempt", "ship", 2, True), ("deadline", "", None, True)]
        assert said((await engine.handle("s-1").waits_for())[0]).startswith("waits for attempt 2 of step 'ship' at 20")


async def test_attempts_to_undo_are_told(lab: Lab) -> None:
    async with lab.engine(stuck) as engine:
        assert await parked(lab, engine, stuck) == [("undo", "book", 2, True)]


async def test_states_that_wait_for_people_say_so(lab: Lab) -> None:
    async with lab.engine(once) as engine:
        await parked(lab, engine, once)
        await engine.handle("s-1").pause()
        await lab.until_row("s-1", state="PAUSED", owner="")
        assert kinds(await engine.handle("s-1").waits_for()) == [("resume", "", None, False)]
        await engine.handle("s-1").resume()
        await lab.until_row("s-1", state="RUNNING", owner="")
        assert kinds(await engine.handle("s-1").waits_for()) == [("signal", "approval", None, True)]


async def test_what_runs_is_told_while_it_runs(lab: Lab) -> None:
    inside, out = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        inside.set()
        await out.wait()

    busy = Saga("busy", [SagaStep("first", nothing), SagaStep("work", work, after=["first"])])
    async with lab.engine(busy) as engine:
        handle = await engine.start(busy, id="s-1")
        await inside.wait()
        assert [said(one) for one in await handle.waits_for()] == ["runs step 'work'"]
        out.set()
        await handle.result()
        assert await handle.waits_for() == []


async def test_a_child_is_told_by_its_id_with_its_state(lab: Lab) -> None:
    async with lab.engine(worker=False) as onlooker, lab.engine(once, named, asks) as engine:
        handle = await engine.start(asks, id="s-1")
        await lab.until_row("s-1/~run:waits-once", owner="")
        await lab.until_row("own-id", owner="")
        for looking in (engine, onlooker):
            waits = await looking.handle("s-1").waits_for()
            assert {said(one) for one in waits} == {
                "waits for child saga 's-1/~run:waits-once' (waits-once v1, RUNNING)",
                "waits for child saga 'own-id' (waits-own v1, RUNNING)",
            }
            (child,) = [one for one in waits if one.name == "own-id"]
            assert (child.kind, child.saga, child.number, child.state) == ("child", "waits-own", 1, "RUNNING")
        await engine.handle("own-id").pause()
        await lab.until_row("own-id", state="PAUSED", owner="")
        assert "waits for child saga 'own-id' (waits-own v1, PAUSED)" in map(said, await handle.waits_for())
        await engine.handle("own-id").resume()
        await engine.handle("own-id").signal("approval")
        await lab.until_fact(engine, "s-1", "step-succeeded")
        (left,) = map(said, await handle.waits_for())
        assert left == "waits for child saga 's-1/~run:waits-once' (waits-once v1, RUNNING)"


async def test_a_child_is_told_of_where_its_parent_was_taken_over(lab: Lab) -> None:
    async with lab.doomed(named, asks_one) as engine:
        await engine.start(asks_one, id="s-1")
        await lab.until_row("own-id", owner="")
    async with lab.engine(named, asks_one) as engine:
        await lab.until_fact(engine, "s-1", "step-started", 2)
        told = ["waits for child saga 'own-id' (waits-own v1, RUNNING)"]
        assert [said(one) for one in await engine.handle("s-1").waits_for()] == told


async def test_a_child_that_is_not_in_the_store_yet_is_a_step_that_runs(lab: Lab) -> None:
    inside, out = asyncio.Event(), asyncio.Event()

    async def not_yet(*_: Any) -> None:
        inside.set()
        await out.wait()

    engine = WorkflowEngine(lab.storage)
    engine.register(named, asks_one)
    engine.intercept(lambda _: not_yet)
    async with engine:
        handle = await engine.start(asks_one, id="s-1")
        await inside.wait()
        assert [said(one) for one in await handle.waits_for()] == ["runs step '~run:waits-own'"]
        out.set()
        await handle.result()


@pytest.mark.parametrize("bad", ["", "\ud800", "x" * 201, 7])
async def test_an_id_that_is_none_fails_the_step_and_is_not_kept(lab: Lab, bad: Any) -> None:
    @saga("asks-badly")
    async def badly() -> str:
        with pytest.raises(StepFailedError, match="printable characters"):
            await run_saga(named, id=bad)
        return "went on"

    async with lab.engine(named, badly) as engine:
        assert await engine.execute(badly, id="s-1") == "went on"
        (started,) = [event.data for event in await engine.handle("s-1").history() if event.type == "step-started"]
        assert started.child is None


async def test_of_sagas_in_a_list_only_short_journals_of_those_that_run_are_read(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, out = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        inside.set()
        await out.wait()

    async def read(saga_id: str) -> list[Any] | None:
        return await waiting.short_journal(lab.storage, await lab.storage.get("sagas", (saga_id,)) or {})

    busy = Saga("busy", [SagaStep("work", work)])
    async with lab.engine(busy, once) as engine:
        await parked(lab, engine, once)
        handle = await engine.start(busy, id="s-2")
        await inside.wait()
        facts = [event.data for event in await handle.history()]
        assert await read("s-1") is None
        monkeypatch.setattr(waiting, "_SHORT", len(facts))
        assert await read("s-2") == facts
        monkeypatch.setattr(waiting, "_SHORT", len(facts) - 1)
        assert await read("s-2") is None
        out.set()


async def test_the_place_in_a_queue_is_told(lab: Lab) -> None:
    async with lab.engine(once) as engine:
        engine.queues.register(Queue("payments"))
        await engine.queues.pause("payments")
        for n, priority in enumerate((0, 0, 5)):
            await engine.start(once, id=f"q-{n}", queue="payments", priority=priority)
        late = datetime.now(UTC) + LONG
        await engine.start(once, id="q-3", queue="payments", not_before=late)
        told = [[said(one) for one in await engine.handle(f"q-{n}").waits_for()] for n in range(4)]
        assert told == [
            ["waits in queue 'payments' (place 2)"],
            ["waits in queue 'payments' (place 3)"],
            ["waits in queue 'payments' (place 1)"],
            [f"waits in queue 'payments' until {late:%Y-%m-%d %H:%M:%S}Z"],
        ]


async def test_no_step_writes_it(lab: Lab) -> None:
    """Only the unit that parks a saga does, and that writes its row anyway."""
    written: list[dict[str, Any]] = []

    def note(batch: list[tuple[Unit, Written]]) -> None:
        written.extend(dict(row.values) for unit, _ in batch for row in unit.rows if row.table == "sagas")

    @saga("ten-steps")
    async def ten() -> None:
        for _ in range(10):
            await step(nothing)
        await sleep(LONG)

    async with lab.engine(ten) as engine:
        remove = lab.storage.add_commit_hook(note)  # type: ignore[arg-type]
        await engine.start(ten, id="s-1")
        await lab.until_row("s-1", owner="")
        remove()
    (parking,) = [values for values in written if "waits_for" in values]
    assert parking["owner"] == ""


# -- code ------------------------------------------------------------------------------------------------------------


def watch(engine: WorkflowEngine) -> CodeWatch:
    return CodeWatch(engine._keeper.kit, engine._definitions)


async def test_that_no_worker_has_the_code_is_said_once_until_it_has_come(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.engine(once, worker=False) as onlooker:
        for n in range(3):
            await onlooker.start(once, id=f"s-{n}")
    async with lab.engine(flaky) as engine:
        looks = watch(engine)
        await looks.look()
        assert "wait for code" not in caplog.text, "in a deployment a worker that has it may be about to come"
        assert kinds(await engine.handle("s-0").waits_for()) == [("worker", "", None, True)]
        monkeypatch.setattr(waiting, "PATIENCE_US", 0)
        for _ in range(3):
            await looks.look()
        assert caplog.text.count("3 sagas wait for code that no living worker has: waits-once v1, since ") == 1
        assert [said(one) for one in await engine.handle("s-0").waits_for()] == [
            "waits for code that no worker has: waits-once v1"
        ]
        async with lab.engine(once) as other:
            await lab.until_row("s-2", owner="", wake_at=(await _wake(lab, other, "s-2")))
            await looks.look()
            assert kinds(await engine.handle("s-0").waits_for()) == [("signal", "approval", None, True)]
        assert caplog.text.count("wait for code") == 1


async def _wake(lab: Lab, engine: WorkflowEngine, saga_id: str) -> int:
    await lab.until_fact(engine, saga_id, "timer-set")
    for n in range(3):
        await lab.until_row(f"s-{n}", owner="", state="RUNNING")
    wake: int = (await lab.storage.get("sagas", (saga_id,)) or {})["wake_at"]
    return wake


async def test_nothing_is_said_while_a_worker_has_not_told_what_it_can_run(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that registers behind entering tells with its next look; one of an older version never does."""
    monkeypatch.setattr(waiting, "PATIENCE_US", 0)
    async with lab.engine(once, worker=False) as onlooker:
        await onlooker.start(once, id="s-1")
    async with lab.engine(flaky) as engine, lab.engine() as late:
        await watch(engine).look()
        assert "wait for code" not in caplog.text
        late.register(two)
        worker = late._keeper.kit.worker.id

        async def told() -> bool:
            return (await lab.storage.get("workers", (worker,)) or {})["runs"] == '[["waits-for-two",1]]'

        await lab.until(told)
        await watch(engine).look()
        assert "1 sagas wait for code that no living worker has: waits-once v1" in caplog.text


async def test_a_worker_looks_by_itself(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codeless, "_LOOK_S", 0.01)
    monkeypatch.setattr(waiting, "PATIENCE_US", 0)
    async with lab.engine(once, worker=False) as onlooker:
        await onlooker.start(once, id="s-1")
    heard = asyncio.Event()
    monkeypatch.setattr(codeless._log, "warning", lambda *said: heard.set() if "wait for code" in said[0] else None)
    async with lab.engine(flaky), asyncio.timeout(10):
        await heard.wait()


async def test_those_that_wait_in_a_queue_wait_for_code_too(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_US", 0)
    async with lab.engine(once, worker=False) as onlooker:
        onlooker.queues.register(Queue("payments"))
        await onlooker.start(once, id="s-1", queue="payments")
    async with lab.engine(flaky) as engine:
        await watch(engine).look()
        assert "1 sagas wait for code" in caplog.text
        assert [said(one) for one in await engine.handle("s-1").waits_for()] == [
            "waits in queue 'payments' (place 1)",
            "waits for code that no worker has: waits-once v1",
        ]
