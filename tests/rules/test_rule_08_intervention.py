"""Rule 8: a compensation that exhausts its policy leaves the saga standing, with the rest of the plan intact."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.rules.conftest import LEASE, Cable

from event_workflow_engine import (
    EngineConfig,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    WorkflowEngine,
    WorkflowState,
)

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import Storage, Told, Unit

pytestmark = pytest.mark.proves("compensation")

TWICE = RetryPolicy(attempts=2, delay=0, jitter=0)


async def test_rule_08_an_exhausted_compensation_stands_with_the_rest_of_the_plan(lab: Lab) -> None:
    log: list[str] = []

    async def act() -> None: ...

    async def refuse() -> None:
        raise ValueError("no")

    async def undo_first() -> None:
        log.append("first")

    async def undo_second() -> None:
        log.append("second")
        raise RuntimeError("the bank is closed")

    saga = Saga(
        "s",
        [
            SagaStep("first", act, undo_first),
            SagaStep("second", act, undo_second, compensation_retry=TWICE),
            SagaStep("refuse", refuse),
        ],
        sequential=True,
    )
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError, match="the bank is closed") as failure:
            await engine.execute(saga, id="s-1")
        history = await engine.handle("s-1").history()
    assert log == ["second", "second"]
    assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
    assert failure.value.report.failed == {"second": "RuntimeError: the bank is closed"}
    assert [event.data.attempt for event in history if event.type == "compensation-failed"] == [1, 2]
    assert history[-1].type == "intervention-needed"
    (plan,) = [event.data for event in history if event.type == "rollback-planned"]
    assert [entry.step for entry in plan.plan] == ["second", "first"], "the plan still holds what is to be undone"


async def test_rule_08_a_compensation_is_retried_by_its_own_policy(lab: Lab) -> None:
    calls = 0

    async def act() -> None:
        raise ConnectionResetError

    async def undo() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RuntimeError("not yet")

    policy = RetryPolicy(attempts=3, delay=0, jitter=0)
    saga = Saga("s", [SagaStep("act", act, undo, compensation_retry=policy)])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError) as failure:
            await engine.execute(saga)
    assert (calls, failure.value.status) == (3, WorkflowState.COMPENSATED)


async def test_rule_08_a_standing_rollback_goes_on_when_it_is_resumed(lab: Lab) -> None:
    log: list[str] = []
    closed = True

    async def act() -> None: ...

    async def refuse() -> None:
        raise ValueError("no")

    async def undo_first() -> None:
        log.append("first")

    async def undo_second() -> None:
        log.append("second")
        if closed:
            raise RuntimeError("the bank is closed")

    saga = Saga(
        "s",
        [
            SagaStep("first", act, undo_first),
            SagaStep("second", act, undo_second, compensation_retry=TWICE),
            SagaStep("refuse", refuse),
        ],
        sequential=True,
    )
    async with lab.engine(saga) as engine:
        handle = await engine.start(saga, id="s-1")
        with pytest.raises(SagaFailedError, match="the bank is closed"):
            await handle.result()
        await handle.resume()
        await lab.until_fact(engine, "s-1", "intervention-needed", 2)
        assert log == ["second"] * 3, "one further attempt for each resume, and what lies behind it still waits"
        closed = False
        await handle.resume()
        await lab.until_fact(engine, "s-1", "saga-compensated")
        with pytest.raises(SagaFailedError) as failure:
            await handle.result()
        history = await handle.history()
    assert failure.value.status is WorkflowState.COMPENSATED
    assert failure.value.report.compensated == ("second", "first")
    assert log == ["second"] * 4 + ["first"]
    assert [event.data.verb for event in history if event.type == "intervention-made"] == ["retry", "retry"]


class Unparked(Cable):
    """A store that is slow to park sagas: what is said to them meanwhile comes first, and is not read any more."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.is_slow = False
        self.parks, self.spoken, self.reads = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._late: list[asyncio.Task[None]] = []

    def post(self, unit: Unit, told: Told) -> None:
        if self.is_slow and any(not append.records for append in unit.appends):
            self.parks.set()
            self._late.append(asyncio.create_task(self._post_late(unit, told)))
        else:
            super().post(unit, told)

    async def _post_late(self, unit: Unit, told: Told) -> None:
        await self.spoken.wait()
        super().post(unit, told)

    async def read_stream(self, stream: str, **params: Any) -> Any:
        if self.is_slow and stream.startswith("inbox-"):
            self.reads.set()
            await asyncio.Event().wait()  # until the engine is left
        return await self._storage.read_stream(stream, **params)


async def test_rule_08_a_saga_that_stands_is_handed_over_as_it_stands(lab: Lab) -> None:
    """Nothing of it was under way, so nothing is added to its journal behind the intervention."""

    async def undo() -> None:
        raise RuntimeError("the bank is closed")

    async def act() -> None:
        raise ConnectionResetError

    saga = Saga("s", [SagaStep("act", act, undo, compensation_retry=RetryPolicy(attempts=1))])
    store = Unparked(lab.storage)
    engine = WorkflowEngine(store, config=EngineConfig(lease=LEASE))  # type: ignore[arg-type]
    engine.register(saga)
    async with engine:
        handle = await engine.start(saga, id="s-1")
        with pytest.raises(SagaFailedError, match="the bank is closed"):
            await handle.result()
        before = await lab.facts(engine, "s-1")
        store.is_slow = True
        engine.register(Saga("other", [SagaStep("act", act)]))  # those that stand are looked at again
        await store.parks.wait()
        await handle.cancel()
        store.spoken.set()
        await store.reads.wait()
    async with lab.engine(saga) as engine:
        assert await engine.handle("s-1").status() is WorkflowState.NEEDS_INTERVENTION
        assert await lab.facts(engine, "s-1") == before


async def test_rule_08_a_cancel_changes_nothing_once_the_saga_is_being_undone(lab: Lab) -> None:
    async def act() -> None:
        raise ConnectionResetError

    async def undo() -> None:
        raise RuntimeError("the bank is closed")

    saga = Saga("s", [SagaStep("act", act, undo, compensation_retry=RetryPolicy(attempts=1))])
    async with lab.engine(saga) as engine:
        handle = await engine.start(saga, id="s-1")
        with pytest.raises(SagaFailedError, match="the bank is closed"):
            await handle.result()
        before = await lab.facts(engine, "s-1")
        await handle.cancel("enough")
    async with lab.engine(saga) as engine:
        assert await engine.handle("s-1").status() is WorkflowState.NEEDS_INTERVENTION
        assert await lab.facts(engine, "s-1") == before
