"""Queues: who begins, who waits, and what is left behind by those that were cancelled, failed or crashed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from tests.rules.conftest import Cable, Lab

from event_workflow_engine import (
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    StepContext,
    WorkflowState,
    current_saga,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.errors import (
    DefinitionError,
    DuplicateSagaError,
    NotRegisteredError,
    RowConflictError,
    SagaCancelledError,
    SagaTimeoutError,
)
from event_workflow_engine.queues import Queue, RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine import SagaHandle, WorkflowEngine
    from event_workflow_engine.storage.port import Storage, Unit
    from event_workflow_engine.testing import VirtualClock

GO = Signal("go", str)


class Gate:
    """A saga's action that tells of its coming and waits to be let through."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.order: list[str] = []
        self.most = 0
        self._open: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._came = asyncio.Condition()
        self.saga = Saga("gated", [SagaStep("pass", self.enter)])

    async def enter(self) -> str:
        saga_id = current_saga().saga_id
        async with self._came:
            self.inside.append(saga_id)
            self.order.append(saga_id)
            self.most = max(self.most, len(self.inside))
            self._came.notify_all()
        try:
            await self._open[saga_id].wait()
        finally:
            self.inside.remove(saga_id)
        return saga_id

    async def came(self, number: int) -> None:
        """Wait until so many have come in all."""
        async with asyncio.timeout(10), self._came:
            await self._came.wait_for(lambda: len(self.order) >= number)

    def open(self, *ids: str) -> None:
        for one in ids:
            self._open[one].set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@asynccontextmanager
async def serving(lab: Lab, gate: Gate, queue: Queue, **config: Any) -> AsyncIterator[WorkflowEngine]:
    async with lab.engine(gate.saga, **config) as engine:
        engine.queues.register(queue)
        yield engine


async def fill(engine: WorkflowEngine, gate: Gate, *ids: str, **options: Any) -> list[SagaHandle[Any]]:
    return [await engine.start(gate.saga, id=one, queue="q", **options) for one in ids]


async def counts(engine: WorkflowEngine) -> tuple[int, int, int, int]:
    (status,) = await engine.queues.list()
    return status.early, status.waiting, status.running, status.standing


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_no_more_run_than_the_queues_limit_and_all_run_in_the_end(lab: Lab, gate: Gate) -> None:
    names = [f"s-{n}" for n in range(6)]
    async with serving(lab, gate, Queue("q", limit=2)) as engine:
        handles = await fill(engine, gate, *names)
        await gate.came(2)
        assert await counts(engine) == (0, 4, 2, 0)
        assert [await handle.status() for handle in handles[-2:]] == [WorkflowState.PENDING] * 2
        for n, name in enumerate(names):
            gate.open(name)
            await handles[n].result()
            await gate.came(min(n + 3, 6))
        assert await counts(engine) == (0, 0, 0, 0)
    assert gate.order == names, "the oldest first"
    assert gate.most == 2


async def test_the_limit_holds_over_all_workers(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=3)) as one, serving(lab, gate, Queue("q", limit=3)) as two:
        handles = [*await fill(one, gate, "a", "b", "c", "d"), *await fill(two, gate, "e", "f", "g", "h")]
        for number in range(3, 9):
            await gate.came(number)
            gate.open(gate.order[number - 3])
        gate.open(*gate.order)
        await asyncio.gather(*(handle.result() for handle in handles))
    assert gate.most == 3
    assert sorted(gate.order) == ["a", "b", "c", "d", "e", "f", "g", "h"]


class Slow(Cable):
    """A store to which the way of the first admission is long."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.decided, self.go, self.refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def write(self, unit: Unit) -> Any:
        if self.decided.is_set() or not any(row.table == "queues" and row.op == "update" for row in unit.rows):
            return await super().write(unit)
        self.decided.set()
        await self.go.wait()
        try:
            return await super().write(unit)
        except RowConflictError:
            self.refused.set()
            raise


@pytest.mark.proves("one-winner")
async def test_of_two_workers_that_decide_by_the_same_free_place_one_decides_again(lab: Lab, gate: Gate) -> None:
    """The second sees a saga that goes first; against the first one's choice there is only the queue's row."""
    cable = Slow(lab.storage)
    lab = Lab(cable)  # type: ignore[arg-type]
    async with serving(lab, gate, Queue("q", limit=1)), serving(lab, gate, Queue("q", limit=1), worker=False) as desk:
        (low,) = await fill(desk, gate, "low")
        await cable.decided.wait()
        (high,) = await fill(desk, gate, "high", priority=9)
        async with lab.engine(gate.saga):
            await gate.came(1)
            cable.go.set()
            await cable.refused.wait()
            gate.open("high")
            await high.result()
            await gate.came(2)
            gate.open("low")
            await low.result()
    assert gate.order == ["high", "low"]


async def test_a_workers_limit_sends_the_others_elsewhere(lab: Lab, gate: Gate) -> None:
    queue = Queue("q", worker_limit=1)
    async with serving(lab, gate, queue) as one, serving(lab, gate, queue) as two:
        handles = await fill(one, gate, "a", "b", "c")
        await gate.came(2)
        rows = [await lab.storage.get("sagas", (name,)) for name in ("a", "b", "c")]
        owners = {row["owner"] for row in rows if row is not None}
        assert len(owners) == 3, "one worker each, and the third waits"
        assert "queue:q" in owners
        gate.open("a", "b", "c")
        await asyncio.gather(*(handle.result() for handle in handles))
        assert await counts(two) == (0, 0, 0, 0)
    assert gate.most == 2


async def test_a_saga_that_wakes_where_the_worker_is_full_goes_to_one_that_has_room(lab: Lab, gate: Gate) -> None:
    @saga("sleeper")
    async def sleeper() -> str:
        await wait_for_signal(GO)
        return await step(gate.enter)

    queue = Queue("q", worker_limit=1)
    async with lab.engine(gate.saga, sleeper) as one:
        one.queues.register(queue)
        asleep = await one.start(sleeper, id="sleeper", queue="q")
        await lab.until_row("sleeper", owner="")
        (busy,) = await fill(one, gate, "busy")
        await gate.came(1)
        await asleep.signal(GO, "now")
        await lab.until_row("sleeper", owner="queue:q")
        assert await counts(one) == (0, 0, 2, 0), "it keeps its place while it waits for a worker"
        async with lab.engine(gate.saga, sleeper):
            await gate.came(2)
            gate.open("sleeper", "busy")
            assert await asleep.result() == "sleeper"
            await busy.result()
    assert gate.order == ["busy", "sleeper"]


async def test_limits_of_a_later_registration_hold_for_all(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=1)) as engine:
        handles = await fill(engine, gate, "a", "b", "c")
        await gate.came(1)
        async with serving(lab, gate, Queue("q", limit=3)):
            await gate.came(3)
            gate.open("a", "b", "c")
            await asyncio.gather(*(handle.result() for handle in handles))
        (status,) = await engine.queues.list()
        assert status.queue == Queue("q", limit=3)


async def test_what_a_crashed_worker_held_is_neither_lost_nor_held_for_ever(lab: Lab, gate: Gate) -> None:
    queue = Queue("q", limit=2)
    async with lab.doomed(gate.saga) as engine:
        engine.queues.register(queue)
        await fill(engine, gate, "a", "b", "c", "d")
        await gate.came(2)
    gate.most = 0
    async with serving(lab, gate, queue) as engine:
        await gate.came(4)
        assert gate.order[2:] == ["a", "b"], "those that had begun go on; their places are not given to others"
        gate.open("a", "b", "c", "d")
        for name in ("a", "b", "c", "d"):
            await engine.handle(name, gate.saga).result()
    assert gate.most == 2


# -- order -----------------------------------------------------------------------------------------------------------


async def test_the_higher_priority_goes_first(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=1)) as engine:
        await fill(engine, gate, "first")
        await gate.came(1)
        await fill(engine, gate, "low", priority=-1)
        await fill(engine, gate, "plain")
        last = (await fill(engine, gate, "high", priority=7))[0]
        gate.open("first", "low", "plain", "high")
        await gate.came(4)
        await last.result()
    assert gate.order == ["first", "high", "plain", "low"]


async def test_no_tenant_waits_behind_the_many_of_another(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=2)) as engine:
        await fill(engine, gate, "a1", "a2", "a3", "a4", "a5", partition="a")
        await gate.came(2)
        await fill(engine, gate, "b1", partition="b")
        gate.open("a1")
        await gate.came(3)
        assert gate.order == ["a1", "a2", "b1"]
        gate.open("a2", "a3", "a4", "a5", "b1")
        for name in ("a1", "a2", "a3", "a4", "a5", "b1"):
            await engine.handle(name, gate.saga).result()


async def test_one_at_a_time_of_a_key_and_those_of_others_beside_it(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", partition_limit=1)) as engine:
        await fill(engine, gate, "a1", "a2", partition="a")
        await fill(engine, gate, "b1", "b2", partition="b")
        await gate.came(2)
        assert sorted(gate.inside) == ["a1", "b1"]
        gate.open("a1")
        await gate.came(3)
        assert sorted(gate.inside) == ["a2", "b1"]
        gate.open("a2", "b1", "b2")
        for name in ("a1", "a2", "b1", "b2"):
            await engine.handle(name, gate.saga).result()


async def test_one_that_needs_intervention_keeps_its_key_but_not_its_place(lab: Lab, gate: Gate) -> None:
    is_open = False

    async def undo() -> None:
        if not is_open:
            raise RuntimeError("the bank is closed")

    async def act() -> None:
        raise ConnectionResetError

    stuck = Saga("stuck", [SagaStep("act", act, undo, compensation_retry=RetryPolicy(attempts=1))])
    async with lab.engine(gate.saga, stuck) as engine:
        engine.queues.register(Queue("q", limit=1, partition_limit=1))
        stands = await engine.start(stuck, id="stuck", queue="q", partition="a")
        with pytest.raises(SagaFailedError, match="the bank is closed"):
            await stands.result()
        await fill(engine, gate, "a1", partition="a")
        await fill(engine, gate, "b1", partition="b")
        await gate.came(1)
        assert gate.order == ["b1"], "the queue goes on, but not for the key"
        assert await counts(engine) == (0, 1, 2, 1)
        is_open = True
        gate.open("a1", "b1")
        await engine.handle("b1", gate.saga).result()
        await stands.resume()
        await engine.handle("a1", gate.saga).result()
        assert await counts(engine) == (0, 0, 0, 0)


# -- the operator ----------------------------------------------------------------------------------------------------


async def test_nothing_begins_while_the_queue_is_paused_and_what_runs_goes_on(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=2)) as engine, lab.engine(worker=False) as desk:
        (running,) = await fill(engine, gate, "a")
        await gate.came(1)
        await desk.queues.pause("q")
        await fill(engine, gate, "b")
        gate.open("a", "b")
        await running.result()
        (status,) = await desk.queues.list()
        assert (status.paused, status.waiting, status.running) == (True, 1, 0)
        await desk.queues.resume("q")
        await engine.handle("b", gate.saga).result()
        with pytest.raises(NotRegisteredError, match="there is no queue 'none'"):
            await desk.queues.pause("none")


async def test_one_that_is_cancelled_while_it_waits_runs_nothing_and_leaves(lab: Lab) -> None:
    begun: list[str] = []

    @saga("noting")
    async def noting() -> None:
        begun.append(current_saga().saga_id)

    async with lab.engine(noting) as engine:
        engine.queues.register(Queue("q", limit=1))
        await engine.queues.pause("q")
        handle = await engine.start(noting, id="a", queue="q", dedup_key="k")
        await handle.cancel("not wanted")
        with pytest.raises(SagaCancelledError):
            await handle.result()
        assert await handle.status() is WorkflowState.CANCELLED
        assert await counts(engine) == (0, 0, 0, 0)
        await engine.start(noting, id="b", queue="q", dedup_key="k")
    assert begun == []


async def test_a_signal_to_one_that_waits_is_there_when_it_begins(lab: Lab) -> None:
    @saga("listener")
    async def listener() -> str:
        return await wait_for_signal(GO)

    async with lab.engine(listener) as engine:
        engine.queues.register(Queue("q"))
        await engine.queues.pause("q")
        handle = await engine.start(listener, id="l", queue="q")
        await handle.signal(GO, "early word")
        assert await handle.status() is WorkflowState.PENDING
        await engine.queues.resume("q")
        assert await handle.result() == "early word"


# -- starting --------------------------------------------------------------------------------------------------------


async def test_a_key_keeps_a_second_one_out_until_the_first_has_ended(lab: Lab, gate: Gate) -> None:
    other = Saga("other", [SagaStep("pass", gate.enter)])
    async with lab.engine(gate.saga, other) as engine:
        engine.queues.register(Queue("q"), Queue("r"))
        first = await engine.start(gate.saga, id="a", queue="q", dedup_key="k")
        with pytest.raises(DuplicateSagaError, match="'q' has a saga 'a' with dedup_key 'k'") as refused:
            await engine.start(gate.saga, id="b", queue="q", dedup_key="k")
        assert (refused.value.queue, refused.value.key, refused.value.saga_id) == ("q", "k", "a")
        assert await lab.storage.get("sagas", ("b",)) is None, "nothing was stored"
        joined = await engine.start(gate.saga, id="c", queue="q", dedup_key="k", on_duplicate="join")
        assert joined.id == "a"
        with pytest.raises(DuplicateSagaError):
            await engine.start(other, id="d", queue="q", dedup_key="k", on_duplicate="join")
        again = await engine.start(gate.saga, id="a", queue="q", dedup_key="k")
        assert again.id == "a", "the same id is the same saga"
        elsewhere = await engine.start(gate.saga, id="e", queue="r", dedup_key="k")
        gate.open("a", "e", "f")
        assert [dict(await one.result()) for one in (first, joined, elsewhere)] == [
            {"pass": "a"}, {"pass": "a"}, {"pass": "e"},
        ]  # fmt: skip
        free = await engine.start(gate.saga, id="f", queue="q", dedup_key="k")
        assert dict(await free.result()) == {"pass": "f"}
    assert sorted(gate.order) == ["a", "e", "f"]


@pytest.mark.proves("one-winner")
async def test_many_starts_with_one_key_at_once_begin_one_saga(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q")) as one, serving(lab, gate, Queue("q")) as two:
        starts = [
            engine.start(gate.saga, queue="q", dedup_key="k", on_duplicate="join")
            for engine in (one, two)
            for _ in range(8)
        ]
        ids = {handle.id for handle in await asyncio.gather(*starts)}
        await gate.came(1)
        gate.open(*ids)
        (only,) = ids
        await one.handle(only, gate.saga).result()
    assert gate.order == [only]


@pytest.mark.parametrize("outcome", ["fails", "is undone"])
async def test_whoever_ends_in_any_way_leaves_the_queue(lab: Lab, outcome: str) -> None:
    async def act() -> None:
        raise RuntimeError("no")

    async def undo() -> None:
        pass

    saga_ = Saga("s", [SagaStep("act", act, undo if outcome == "is undone" else None)])
    async with lab.engine(saga_) as engine:
        engine.queues.register(Queue("q", limit=1))
        for n in range(2):
            with pytest.raises(SagaFailedError):
                await engine.execute(saga_, id=f"s-{n}", queue="q", dedup_key="k", partition="p")
        assert await counts(engine) == (0, 0, 0, 0)


async def test_a_saga_of_a_process_without_workers_waits_in_the_queue_for_one(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=1), worker=False) as desk:
        (handle,) = await fill(desk, gate, "a")
        assert await counts(desk) == (0, 1, 0, 0)
        async with lab.engine(gate.saga):
            gate.open("a")
            assert dict(await handle.result()) == {"pass": "a"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"priority": 1}, "need queue="),
        ({"queue": "q", "priority": 2**31}, "priority=2147483648"),
        ({"queue": "q", "priority": True}, "priority=True"),
        ({"queue": "q", "not_before": datetime(2026, 1, 1)}, "an aware datetime"),  # noqa: DTZ001 - the mistake
        ({"queue": "q", "partition": ""}, "partition= must be non-empty"),
        ({"queue": "q", "dedup_key": "a\nb"}, "dedup_key="),
        ({"queue": "q", "on_duplicate": "replace"}, "'reject' or 'join'"),
        ({"queue": "q", "prioritty": 1}, "no option prioritty"),
    ],
)
async def test_a_wrong_option_is_refused_before_anything_is_stored(
    lab: Lab, gate: Gate, options: dict[str, Any], match: str
) -> None:
    async with serving(lab, gate, Queue("q")) as engine:
        with pytest.raises(DefinitionError, match=match):
            await engine.start(gate.saga, id="a", **options)
        with pytest.raises(NotRegisteredError, match="'none' is not registered here"):
            await engine.start(gate.saga, id="a", queue="none")
        assert await lab.storage.get("sagas", ("a",)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": True},
        {"worker_limit": -1},
        {"partition_limit": 1.5},
        {"rate": 5},
        {"name": ""},
        {"name": "a\nb"},
    ],
)
def test_a_queue_with_a_wrong_limit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Queue(**{"name": "q", **wrong})


@pytest.mark.parametrize("wrong", [(0, 1), (1, 0), (1, -1), (True, 1), (1, timedelta(days=30_000))])
def test_a_rate_out_of_range_is_refused(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(DefinitionError):
        RateLimit(*wrong)


async def test_two_queues_of_one_name_are_refused(lab: Lab, gate: Gate) -> None:
    async with serving(lab, gate, Queue("q", limit=1)) as engine:
        engine.queues.register(Queue("q", limit=1))
        with pytest.raises(DefinitionError, match="queue 'q' is registered already"):
            engine.queues.register(Queue("q", limit=2))
        with pytest.raises(NotRegisteredError):
            await engine.start(gate.saga, queue=Queue("q", limit=2))


# -- time ------------------------------------------------------------------------------------------------------------


async def test_a_rate_holds_in_every_span_however_it_is_laid(engine: WorkflowEngine, clock: VirtualClock) -> None:
    begun: list[float] = []
    start = clock.now()

    async def note() -> None:
        begun.append((clock.now() - start).total_seconds())

    noted = Saga("noted", [SagaStep("note", note)])
    engine.register(noted)
    engine.queues.register(Queue("q", rate=RateLimit(2, per=60)))
    await engine.start(noted, queue="q")
    await clock.advance(seconds=50)
    for _ in range(4):
        await engine.start(noted, queue="q")
    await clock.advance(minutes=5)
    assert begun == [0, 50, 60, 110, 120]


async def test_nothing_begins_before_its_time_and_then_at_once(engine: WorkflowEngine, clock: VirtualClock) -> None:
    begun: list[tuple[str, datetime]] = []

    async def note(ctx: StepContext[Any]) -> None:
        begun.append((ctx.saga_id, clock.now()))

    noted = Saga("noted", [SagaStep("note", note)])
    engine.register(noted)
    engine.queues.register(Queue("q", limit=1))
    start = clock.now()
    zone = timezone(timedelta(hours=2))
    late = await engine.start(noted, id="late", not_before=(start + timedelta(hours=3)).astimezone(zone))
    await engine.start(noted, id="queued", queue="q", not_before=start + timedelta(hours=1))
    await engine.start(noted, id="past", queue="q", not_before=start - timedelta(days=1))
    await clock.advance(minutes=59)
    assert [one for one, _ in begun] == ["past"]
    assert [(one.name, one.early) for one in await engine.queues.list()] == [("default", 1), ("q", 1)]
    await clock.advance(hours=3)
    assert begun[1:] == [("queued", start + timedelta(hours=1)), ("late", start + timedelta(hours=3))]
    await late.result()


async def test_a_sagas_own_time_begins_with_its_turn(engine: WorkflowEngine, clock: VirtualClock) -> None:
    @saga("slow", timeout=timedelta(hours=1))
    async def slow() -> None:
        await sleep(timedelta(hours=2))

    engine.register(slow)
    engine.queues.register(Queue("q"))
    await engine.queues.pause("q")
    handle = await engine.start(slow, queue="q")
    await clock.advance(hours=5)
    assert await handle.status() is WorkflowState.PENDING
    await engine.queues.resume("q")
    await clock.advance(minutes=59)
    assert await handle.status() is WorkflowState.RUNNING
    await clock.advance(minutes=2)
    with pytest.raises(SagaTimeoutError):
        await handle.result()
    history = [(event.type, event.data) for event in await handle.history()]
    assert history[1][0] == "saga-admitted"
    assert history[1][1].queue == "q"
