"""The scheduler, by a clock that stands still until it is moved: durable slots, each fired once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import Saga, SagaStep, StepContext, Task, WorkflowEngine
from event_workflow_engine.errors import DefinitionError, NotRegisteredError, StorageUnavailableError
from event_workflow_engine.scheduler import WorkflowScheduler
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row, Unit
from event_workflow_engine.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage

START = datetime(2026, 1, 1, tzinfo=UTC)


class Launcher:
    """Stands where the engine does."""

    def __init__(self, *sagas: str) -> None:
        self.sagas = set(sagas)
        self.started: list[tuple[str, Any, str | None]] = []

    def knows_saga(self, name: str) -> bool:
        return name in self.sagas

    async def start(self, saga: str, input: Any = None, *, id: str | None = None) -> None:  # noqa: A002
        self.started.append((saga, input, id))

    async def run_command(self, command: Any, *, id: str) -> None:  # noqa: A002
        self.started.append(("command", command, id))


class Plan:
    """A store, a clock, and schedulers on them, each of which is a worker."""

    def __init__(self, storage: Storage, clock: VirtualClock) -> None:
        self.storage = storage
        self.clock = clock
        self.ran: list[Any] = []
        self.blocked = False
        """Whether something runs that waits for the test."""
        self.schedulers: list[WorkflowScheduler] = []
        self._stack = AsyncExitStack()

    def note(self, *args: Any) -> None:
        self.ran.append(*args or (None,))

    async def tick(self, what: str = "tick") -> None:
        self.ran.append((what, self.clock.now()))

    async def worker(
        self, name: str = "w", *, launcher: Launcher | None = None, storage: Any = None, register: bool = True
    ) -> WorkflowScheduler:
        scheduler = WorkflowScheduler(storage or self.storage, clock=self.clock)
        if register:
            scheduler.register(self.tick, name="tick")
        await scheduler.start(launcher or Launcher(), worker_id=name)
        self._stack.push_async_callback(scheduler.stop)
        self.schedulers.append(scheduler)
        await self.settle()
        return scheduler

    async def settle(self) -> None:
        """Until nobody has anything to do; or for some time, where something runs that waits for the test."""
        idle = 0
        for _ in range(100 if self.blocked else 100_000):
            for _ in range(30):
                await asyncio.sleep(0)
            # Several times: who has just gone to sleep may not have told the clock yet, and a thread may be late.
            idle = idle + 1 if all(scheduler.is_idle for scheduler in self.schedulers) else 0
            if idle == 10:  # each with a trip to the store
                return
            await self.storage.query("schedules_all")

    @property
    def times(self) -> list[timedelta]:
        return [when - START for _, when in self.ran]

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def plan(store_url: str) -> AsyncIterator[Plan]:
    async with open_storage(store_url, auto_upgrade=True) as storage:
        plan = Plan(storage, VirtualClock(START))
        plan.clock.settle = plan.settle
        yield plan
        await plan.close()


def hours(*numbers: float) -> list[timedelta]:
    return [timedelta(hours=number) for number in numbers]


async def test_a_one_off_runs_once_at_its_time_and_leaves_the_list(plan: Plan) -> None:
    scheduler = await plan.worker()
    first = await scheduler.schedule(Task.call(plan.tick), delay=timedelta(days=3))
    second = await scheduler.schedule_at(plan.tick, START + timedelta(days=1), id="second")
    listed = await scheduler.list()
    assert {one.id: one.next_run - START for one in listed} == {
        first: timedelta(days=3),
        "second": timedelta(days=1),
    }
    assert second == "second"
    assert listed[0].task.name == "tick"
    await plan.clock.advance(days=2, hours=23)
    assert plan.times == [timedelta(days=1)]
    await plan.clock.advance(days=2)
    assert plan.times == [timedelta(days=1), timedelta(days=3)]
    assert await scheduler.list() == []
    assert await plan.storage.query("open_slots") == []


async def test_every_does_not_drift_and_startup_code_may_be_repeated(plan: Plan) -> None:
    scheduler = await plan.worker()
    assert await scheduler.every(timedelta(hours=1), plan.tick) == "tick"
    await plan.clock.advance(minutes=90)
    assert await scheduler.every(3600, plan.tick) == "tick"
    await plan.clock.advance(minutes=100)
    assert plan.times == hours(1, 2, 3)
    await scheduler.every(1800, plan.tick)
    assert [one.next_run - START for one in await scheduler.list()] == hours(190 / 60 + 0.5)


async def test_cron_by_the_wall_clock(plan: Plan) -> None:
    scheduler = await plan.worker()
    await scheduler.cron("0 2 * * *", plan.tick, tz="Europe/Amsterdam")
    await plan.clock.advance(days=3)
    assert plan.times == hours(1, 25, 49)


@pytest.mark.parametrize(
    ("missed", "expected"),
    [("once", [5.5, 6, 7]), ("skip", [6, 7]), ("all", [5.5, 5.5, 5.5, 5.5, 5.5, 6, 7])],
)
@pytest.mark.parametrize("kind", ["every", "cron"])
async def test_what_was_missed_in_an_outage(plan: Plan, kind: str, missed: Any, expected: list[float]) -> None:
    scheduler = await plan.worker()
    if kind == "every":
        await scheduler.every(3600, plan.tick, missed=missed)
    else:
        await scheduler.cron("0 * * * *", plan.tick, missed=missed)
    await scheduler.stop()
    await plan.clock.advance(hours=5, minutes=30)
    await plan.worker("next")
    await plan.clock.advance(hours=2)
    assert plan.times == hours(*expected)


async def test_each_slot_fires_once_over_two_workers(plan: Plan) -> None:
    one, _ = await plan.worker("one"), await plan.worker("two")
    await one.every(60, plan.tick)
    await one.schedule(plan.tick, delay=90, id="once")
    await plan.clock.advance(minutes=10)
    assert sorted(plan.times) == sorted([timedelta(minutes=n) for n in range(1, 11)] + [timedelta(seconds=90)])


async def test_cancel_pause_resume_trigger(plan: Plan) -> None:
    scheduler = await plan.worker()
    assert await scheduler.cancel("unknown") is False
    for call in (scheduler.pause, scheduler.resume, scheduler.trigger):
        with pytest.raises(NotRegisteredError, match="no scheduled task 'unknown'"):
            await call("unknown")
    await scheduler.every(3600, plan.tick)
    await scheduler.trigger("tick")
    await scheduler.trigger("tick")
    await plan.settle()
    assert plan.times == hours(0, 0)
    assert [one.next_run - START for one in await scheduler.list()] == hours(1)
    await scheduler.pause("tick")
    await plan.clock.advance(hours=3, minutes=30)
    assert plan.times == hours(0, 0)
    (listed,) = await scheduler.list()
    assert (listed.paused, listed.next_run - START) == (True, timedelta(hours=1))
    await scheduler.resume("tick")
    await plan.clock.advance(hours=1)
    assert plan.times == hours(0, 0, 3.5, 4)
    assert await scheduler.cancel("tick") is True
    await plan.clock.advance(hours=5)
    assert len(plan.ran) == 4


async def test_a_one_off_that_runs_cannot_be_cancelled(plan: Plan) -> None:
    plan.blocked, gate = True, asyncio.Event()
    scheduler = await plan.worker()
    scheduler.register(gate.wait, name="gate")
    await scheduler.schedule(gate.wait, delay=1, id="gate")
    await plan.clock.advance(seconds=2)
    assert await scheduler.cancel("gate") is False
    gate.set()
    plan.blocked = False
    await plan.settle()
    assert await plan.storage.query("schedules_all") == []


async def test_the_same_instant_again_while_it_runs_waits_without_spinning(plan: Plan) -> None:
    plan.blocked, gate = True, asyncio.Event()
    scheduler = await plan.worker()
    scheduler.register(gate.wait, name="gate")
    await scheduler.schedule_at(gate.wait, START, id="go-live")
    await plan.settle()
    await scheduler.schedule_at(gate.wait, START, id="go-live")
    await plan.settle()
    gate.set()
    plan.blocked = False
    await plan.settle()
    assert await scheduler.list() == []
    assert await plan.storage.query("open_slots") == []


async def test_unknown_functions_wait_and_stand_in_nobodys_way(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    other = await plan.worker("other")
    other.register(plan.note, name="note")
    for number in range(250):
        await other.schedule(Task.call(plan.note, number), delay=1)
    await other.schedule(plan.tick, delay=60)
    await other.stop()
    scheduler = await plan.worker("w")
    with caplog.at_level(logging.WARNING, logger="event_workflow_engine.scheduler"):
        await plan.clock.advance(minutes=2)
    assert plan.times == [timedelta(minutes=1)]
    assert "'note' is not registered here" in caplog.text
    plan.ran.clear()
    scheduler.register(plan.note, name="note")
    for _ in range(20):
        await plan.settle()
    assert sorted(plan.ran) == list(range(250))


class Late:
    """A store on whose way what makes a schedule is held up."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def write(self, unit: Unit) -> Any:
        if any(row.table == "schedules" and "spec" in row.values for row in unit.rows):
            self.reached.set()
            await self.goes_on.wait()
        return await self._storage.write(unit)


async def test_a_schedule_that_two_make_at_once_is_not_set_back_to_a_slot_that_fired(plan: Plan) -> None:
    first, late = await plan.worker(), Late(plan.storage)
    second = await plan.worker("v", storage=late)
    making = asyncio.create_task(second.every(3600, plan.tick))
    await late.reached.wait()
    await first.every(3600, plan.tick)
    await plan.clock.advance(minutes=90)
    late.goes_on.set()
    assert await making == "tick"
    await plan.settle()
    assert plan.times == hours(1)
    assert [one.next_run - START for one in await first.list()] == hours(2)


class Dying:
    """A store whose worker dies between a slot's claim and its end."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def write(self, unit: Unit) -> Any:
        def ends(row: Row) -> bool:
            return row.table == "slots" and row.op == "delete"

        if any(map(ends, unit.rows)):
            raise StorageUnavailableError("the worker is gone")
        return await self._storage.write(unit)


@pytest.mark.parametrize("late", [False, True])
async def test_a_slot_that_a_dead_worker_claimed_is_run_at_the_next_start(plan: Plan, late: bool) -> None:
    dead = await plan.worker("dead", storage=Dying(plan.storage))
    await dead.schedule(plan.tick, delay=60, id="once")
    await dead.every(3600, plan.tick)
    await plan.clock.advance(hours=1)
    await dead.stop()
    # What it could not write it may have run again, where it was slow to die.
    assert set(plan.times) == {timedelta(minutes=1), timedelta(hours=1)}
    plan.ran.clear()
    scheduler = await plan.worker("next", register=not late)
    if late:
        assert plan.ran == []
        scheduler.register(plan.tick, name="tick")
        await plan.settle()
    assert plan.times == hours(1, 1)
    assert await plan.storage.query("open_slots") == []
    assert [one.id for one in await scheduler.list()] == ["tick"]


async def test_a_slot_that_a_dead_worker_claimed_is_run_when_another_hears_of_its_death(plan: Plan) -> None:
    other = await plan.worker("other", register=False)
    dead = await plan.worker("dead", storage=Dying(plan.storage))
    await dead.every(3600, plan.tick)
    await plan.clock.advance(hours=1)
    await dead.stop()
    other.register(plan.tick, name="tick")
    await plan.settle()
    plan.ran.clear()
    await plan.storage.write(
        Unit("claimed", 1, rows=(Row("slots", "insert", ("tick", 7), {"worker": "dead", "fired_at": 7, "done": 0}),))
    )
    await plan.settle()
    assert plan.ran == [], "the bell alone says nothing of a death"
    other.look_for_slots()
    await plan.settle()
    assert len(plan.ran) == 1
    assert await plan.storage.query("open_slots") == []


async def test_an_open_slot_of_a_cancelled_task_goes(plan: Plan) -> None:
    dead = await plan.worker("dead", storage=Dying(plan.storage))
    await dead.every(3600, plan.tick)
    await plan.clock.advance(hours=1)
    assert await dead.cancel("tick") is True
    await dead.stop()
    plan.ran.clear()
    await plan.worker("next")
    assert plan.ran == []
    assert await plan.storage.query("open_slots") == []


async def test_what_raises_is_logged_and_the_schedule_goes_on(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        plan.note(("fail", plan.clock.now()))
        raise RuntimeError("on purpose")

    scheduler = await plan.worker()
    scheduler.register(fail, name="fail")
    await scheduler.every(3600, fail)
    ran = asyncio.Event()
    scheduler.register(ran.set, name="ran")
    await plan.clock.advance(hours=1)
    while "task fail raised" not in caplog.text:
        await plan.settle()
    await plan.clock.advance(hours=1)
    while len(plan.ran) < 2:
        await plan.settle()
    assert plan.times == hours(1, 2)


async def test_sagas_wait_for_their_code_and_get_their_slots_id(plan: Plan) -> None:
    launcher = Launcher()
    scheduler = await plan.worker(launcher=launcher)
    await scheduler.every(60, Task.saga("later", {"n": 1}), id="sagas")
    await plan.clock.advance(seconds=61)
    assert launcher.started == []
    launcher.sagas.add("later")
    scheduler.code_came()
    await plan.settle()
    due = int((START + timedelta(seconds=60)).timestamp() * 1e6)
    assert launcher.started == [("later", {"n": 1}, f"sagas@{due}")]


@dataclass(frozen=True)
class Order:
    number: int


async def test_a_saga_by_schedule_starts_once_over_two_engines(tmp_path: Any) -> None:
    clock, runs = VirtualClock(START), list[int]()

    async def ship(ctx: StepContext[Order]) -> None:
        runs.append(ctx.input.number)

    saga = Saga("scheduler-test-ship", [SagaStep("ship", ship)])
    url = f"sqlite:///{tmp_path}/two.db"
    async with WorkflowEngine(url, clock=clock) as one, WorkflowEngine(url, clock=clock) as two:
        one.register(saga)
        two.register(saga)
        await one.scheduler.schedule(Task.saga(saga, Order(7), id="the-order"), delay=60)
        await one.scheduler.schedule(Task.saga(saga, Order(8)), delay=60, id="slot")
        await clock.advance(seconds=61)
        async with asyncio.timeout(20):
            slot = int((START + timedelta(seconds=60)).timestamp() * 1e6)
            for saga_id in ("the-order", f"slot@{slot}"):
                rang = asyncio.Event()
                remove = one.storage.add_bell(rang.set)
                while await one.storage.get("sagas", (saga_id,)) is None:
                    await rang.wait()
                    rang.clear()
                remove()
                await one.handle(saga_id, saga).result()
    assert sorted(runs) == [7, 8]


async def test_what_is_wrong_is_refused_at_once(plan: Plan) -> None:
    scheduler = await plan.worker()
    wrong = [
        scheduler.schedule(plan.tick, delay=-1),
        scheduler.schedule(plan.tick, delay=float("nan")),
        scheduler.schedule(plan.tick, delay=1, id=""),
        scheduler.schedule(plan.tick, delay=1, id="x" * 201),
        scheduler.schedule(plan.tick, delay=1, id="a\nb"),
        scheduler.schedule(7, delay=1),  # type: ignore[arg-type]
        scheduler.schedule_at(plan.tick, datetime(2026, 1, 1)),  # noqa: DTZ001
        scheduler.every(0, plan.tick),
        scheduler.every(1, plan.tick, missed="twice"),  # type: ignore[arg-type]
        scheduler.cron("nonsense", plan.tick),
        scheduler.cron("* * * * *", plan.tick, tz="Mars/Base"),
    ]
    for call in wrong:
        with pytest.raises(DefinitionError):
            await call
    with pytest.raises(NotRegisteredError, match="is not registered"):
        await scheduler.schedule(test_what_is_wrong_is_refused_at_once, delay=1)
    with pytest.raises(DefinitionError, match="registered already"):
        scheduler.register(plan.note, name="tick")
    assert await scheduler.list() == []
