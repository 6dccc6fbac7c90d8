"""Sagas go to workers that hold clearly fewer (decision 0010): between steps, with nothing cut off or run again."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EngineConfig, RetryPolicy, Saga, SagaStep, StepContext, WorkflowEngine, saga, step
from event_workflow_engine.clock import SystemClock
from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.history import SagaHandedOver, StepStarted
from event_workflow_engine.runner.balance import Tolerance
from event_workflow_engine.storage.tables import GIVEN
from event_workflow_engine.workers import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import Storage, Told, Unit, WorkerRef

SOON = Tolerance(stays=0, quick=0.02, slow=0.02, takes=5)
SAGAS = 12
GATES: dict[str, asyncio.Event] = {}
RAN: Counter[tuple[str, str]] = Counter()


@pytest.fixture(autouse=True)
def anew() -> None:
    GATES.clear()
    RAN.clear()
    for name in ("first", "second"):
        GATES[name] = asyncio.Event()


async def act(ctx: StepContext[Any]) -> str:
    RAN[ctx.saga_id, ctx.step] += 1
    if ctx.step in GATES:
        await GATES[ctx.step].wait()
    return ctx.step


async def blind(name: str, saga_id: str) -> None:
    RAN[saga_id, name] += 1
    await GATES[name].wait()


async def fails_twice(ctx: StepContext[Any]) -> int:
    RAN[ctx.saga_id, f"attempt {ctx.attempt}"] += 1
    if ctx.attempt < 3:
        raise ValueError("not yet")
    return ctx.attempt


pair = Saga(
    "pair", [SagaStep("first", act, idempotent=False), SagaStep("second", act, idempotent=False)], sequential=True
)
again = Saga("again", [SagaStep("first", act), SagaStep("second", act)], sequential=True)
retried = Saga("retried", [SagaStep("try", fails_twice, retry=RetryPolicy(attempts=3, delay=0.9, factor=1, jitter=0))])
side_by_side = Saga(
    "side-by-side", [SagaStep("first", act), SagaStep("second", act), SagaStep("c", act, after=["first"])]
)


@saga("pair-as-function")
async def function(saga_id: str) -> None:
    await step(blind, "first", saga_id, name="first", idempotent=False)
    await step(blind, "second", saga_id, name="second", idempotent=False)


@asynccontextmanager
async def joined(
    lab: Lab, *sagas: Saga[Any, Any], tolerance: Tolerance = SOON, storage: Any = None
) -> AsyncIterator[WorkflowEngine]:
    """An engine that moves its sagas soon."""
    engine = WorkflowEngine(lab.storage if storage is None else storage, config=EngineConfig(lease=15))
    engine.balance(tolerance)
    engine.register(*sagas)
    async with engine:
        yield engine


async def held(lab: Lab) -> list[int]:
    return [row["held"] - row["given"] for row in await lab.storage.query("worker_loads")]


async def hold(lab: Lab, *expected: int) -> None:
    async with asyncio.timeout(10):
        while await held(lab) != [*expected]:  # noqa: ASYNC110 - claims ring no bell
            await asyncio.sleep(0)


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


def gives(engine: WorkflowEngine) -> bool:
    return engine._keeper.kit.giving is not None


@pytest.mark.parametrize("one", [pair, function], ids=lambda one: one.name)
async def test_sagas_leave_between_two_steps_and_no_step_runs_twice(lab: Lab, one: Saga[Any, Any]) -> None:
    """Also steps that may not run twice: what comes next has not begun, so nobody takes it for unknown."""
    async with joined(lab, one) as first:
        handles = [await first.start(one, *([f"s-{n}"] if one is function else []), id=f"s-{n}") for n in range(SAGAS)]
        await soon(lambda: len(RAN) == SAGAS)
        async with joined(lab, one):
            await soon(lambda: gives(first))
            assert await held(lab) == [SAGAS, 0], "their actions run, and are not cut off"
            GATES["first"].set()
            await hold(lab, SAGAS // 2, SAGAS // 2)
            await soon(lambda: len(RAN) == 2 * SAGAS)
            GATES["second"].set()
            await asyncio.gather(*(handle.result() for handle in handles))
        assert set(RAN.values()) == {1}
        moved = 0
        for handle in handles:
            kinds = [event.type for event in await handle.history()]
            assert kinds.count("step-started") == kinds.count("step-succeeded") == 2
            if "saga-handed-over" in kinds:
                place = kinds.index("saga-handed-over")
                assert (kinds[place - 1], kinds[place + 1]) == ("step-succeeded", "step-started")
                moved += 1
        assert moved == SAGAS // 2


async def test_a_move_is_no_attempt_and_no_interruption(lab: Lab) -> None:
    """They wait for their next attempts, and leave at once."""
    async with joined(lab, retried) as first:
        handles = [await first.start(retried, id=f"s-{n}") for n in range(SAGAS)]
        await soon(lambda: len(RAN) == SAGAS)
        async with joined(lab, retried):
            await hold(lab, SAGAS // 2, SAGAS // 2)
            assert [(await handle.result())["try"] for handle in handles] == [3] * SAGAS
        assert set(RAN.values()) == {1}
        moved = 0
        for handle in handles:
            facts = [event.data for event in await handle.history()]
            starts = [(fact.attempt, fact.interruptions) for fact in facts if isinstance(fact, StepStarted)]
            assert starts == [(1, 0), (2, 0), (3, 0)]
            moved += any(isinstance(fact, SagaHandedOver) for fact in facts)
        assert moved >= SAGAS // 2


async def test_a_step_begins_at_once_while_another_runs(lab: Lab) -> None:
    """A saga that is wanted elsewhere is not held up until all that it does side by side has ended."""
    async with joined(lab, side_by_side) as first:
        handles = [await first.start(side_by_side, id=f"s-{n}") for n in range(SAGAS)]
        await soon(lambda: len(RAN) == 2 * SAGAS)
        async with joined(lab, side_by_side):
            await soon(lambda: gives(first))
            GATES["first"].set()
            await soon(lambda: len(RAN) == 3 * SAGAS)
            assert await held(lab) == [SAGAS, 0]
            GATES["second"].set()
            await asyncio.gather(*(handle.result() for handle in handles))
        assert set(RAN.values()) == {1}


class Keeping:
    """A store as one worker sees it: nothing can be given away, and nothing claimed where the test says so."""

    def __init__(self, storage: Storage, *, claims: bool) -> None:
        self._storage = storage
        self._claims = claims

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def post(self, unit: Unit, told: Told) -> None:
        if any(str(row.values.get("owner")).startswith(GIVEN) for row in unit.rows):
            asyncio.get_running_loop().call_soon(told, StorageUnavailableError("refused"))
        else:
            self._storage.post(unit, told)

    async def perform(self, name: str, **params: Any) -> Any:
        return await self._storage.perform(name, **params) if self._claims or name != "claim_sagas" else []


async def test_who_was_given_nothing_for_want_of_the_store_is_not_said_to_have_taken_nothing(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """The sagas come back, as those do that a worker has not taken in time."""
    stores = [Keeping(lab.storage, claims=claims) for claims in (True, False)]
    async with joined(lab, again, storage=stores[0]) as first:
        handles = [await first.start(again, id=f"s-{n}") for n in range(SAGAS)]
        await soon(lambda: len(RAN) == SAGAS)
        async with joined(lab, again, storage=stores[1]):
            await soon(lambda: gives(first))
            GATES["first"].set()
            await soon(lambda: "could not be written" in caplog.text)
        GATES["second"].set()
        await asyncio.gather(*(handle.result() for handle in handles))
    assert "did not take" not in caplog.text


async def test_only_a_worker_that_can_run_them_is_given_sagas(lab: Lab) -> None:
    """Such as one of another service, or of an older release."""
    async with joined(lab, pair) as first, joined(lab, retried) as other:
        handles = [await first.start(pair, id=f"s-{n}") for n in range(SAGAS)]
        await soon(lambda: len(RAN) == SAGAS)
        other.register(side_by_side)
        GATES["first"].set()
        await soon(lambda: len(RAN) == 2 * SAGAS)
        assert not gives(first)
        assert await held(lab) == [SAGAS, 0]
        GATES["second"].set()
        await asyncio.gather(*(handle.result() for handle in handles))
        assert "saga-handed-over" not in [fact for one in handles for fact in await lab.facts(first, one.id)]


class Deaf:
    """A worker that lives and says what it can run, and does nothing."""

    def offer(self) -> dict[str, Any]:
        return {"max_running": 1000, "runs": '[["pair",1]]'}

    def worker_came(self) -> None: ...
    def worker_gone(self) -> None: ...
    def worker_reborn(self, ref: WorkerRef) -> None: ...
    def worker_sure_again(self) -> None: ...


async def test_sagas_that_nobody_takes_come_back_and_are_not_given_again(lab: Lab) -> None:
    clock = SystemClock()

    def now() -> int:
        return int(clock.now().timestamp() * 1_000_000)

    impatient = Tolerance(stays=0, quick=0.02, slow=0.02, takes=0.2)
    async with joined(lab, pair, tolerance=impatient) as first:
        handles = [await first.start(pair, id=f"s-{n}") for n in range(SAGAS)]
        await soon(lambda: len(RAN) == SAGAS)
        deaf = Worker(lab.storage, lab.storage.liveness(15), now, Deaf())
        await deaf.start()
        await soon(lambda: gives(first))
        GATES["first"].set()
        await soon(lambda: len(RAN) == 2 * SAGAS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await soon(lambda: gives(first))
        GATES["second"].set()
        async with asyncio.timeout(10):
            await asyncio.gather(*(handle.result() for handle in handles))
        assert set(RAN.values()) == {1}
        counts = [(await lab.facts(first, handle.id)).count("saga-handed-over") for handle in handles]
        assert set(counts) == {0, 1}, "some went and came back, none twice"
        await deaf.stop()
