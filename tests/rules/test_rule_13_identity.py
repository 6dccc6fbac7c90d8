"""Rule 13 and chapter 4: the same id is the same saga, never two; an id row outlives the journal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import Saga, SagaStep, StepContext, WorkflowEngine, run_saga, saga, step
from event_workflow_engine.errors import (
    DefinitionError,
    EncodeError,
    EngineStateError,
    NotRegisteredError,
    SagaConflictError,
    SagaEndedError,
    SagaNotFoundError,
)

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

RUNS: list[int] = []


async def work(ctx: StepContext[int]) -> int:
    RUNS.append(ctx.input)
    return ctx.input * 2


double = Saga("double", [SagaStep("work", work)], input_type=int)
other = Saga("other", [SagaStep("work", work)], input_type=int)


@pytest.mark.proves("one-winner")
async def test_rule_13_the_same_id_is_the_same_saga(lab: Lab) -> None:
    RUNS.clear()
    async with lab.engine(double) as engine:
        results = await asyncio.gather(*(engine.execute(double, 4, id="d-1") for _ in range(10)))
        again = await engine.execute(double, 4, id="d-1")
    assert [result["work"] for result in (*results, again)] == [8] * 11
    assert RUNS == [4]


async def test_rule_13_the_same_id_over_a_restart(lab: Lab) -> None:
    RUNS.clear()
    for _ in range(2):
        async with lab.engine(double) as engine:
            assert (await engine.execute(double, 4, id="d-1"))["work"] == 8
    assert RUNS == [4]


@pytest.mark.proves("one-winner")
async def test_rule_13_another_input_or_saga_is_a_conflict(lab: Lab) -> None:
    async with lab.engine(double, other) as engine:
        await engine.execute(double, 4, id="d-1")
        with pytest.raises(SagaConflictError, match="another input"):
            await engine.start(double, 5, id="d-1")
        with pytest.raises(SagaConflictError, match="belongs to a saga 'double'"):
            await engine.execute(other, 4, id="d-1")


async def test_rule_13_a_start_writes_an_id_row_with_input_hash_and_expiry(lab: Lab) -> None:
    async with lab.engine(double) as engine:
        await engine.start(double, 4, id="d-1")
        row = await lab.storage.get("saga_ids", ("d-1",))
        index = await lab.storage.get("sagas", ("d-1",))
    assert row is not None
    assert index is not None
    assert len(row["input_hash"]) == 64
    assert row["expires_at"] > index["started_at"]


async def test_only_registered_sagas_run(lab: Lab) -> None:
    async with lab.engine() as engine:
        with pytest.raises(NotRegisteredError, match=r"engine\.register"):
            await engine.execute(double, 4)
        with pytest.raises(NotRegisteredError, match="no saga 'nothing'"):
            await engine.start("nothing")


@pytest.mark.parametrize("saga_id", ["", "x" * 300, "a\nb"])
async def test_ids_that_cannot_be_are_refused(lab: Lab, saga_id: str) -> None:
    async with lab.engine(double) as engine:
        with pytest.raises(DefinitionError, match="printable"):
            await engine.start(double, 1, id=saga_id)


async def test_an_input_that_is_no_json_is_refused_before_anything_is_stored(lab: Lab) -> None:
    async with lab.engine(double) as engine:
        with pytest.raises(EncodeError, match=r"input of saga 'double'"):
            await engine.start("double", object(), id="d-1")
        with pytest.raises(SagaNotFoundError):
            await engine.handle("d-1").status()


async def test_unknown_ids_are_told(lab: Lab) -> None:
    async with lab.engine(double) as engine:
        handle = engine.handle("nobody")
        for ask in (handle.status, handle.result, handle.history, handle.cancel, handle.pause):
            with pytest.raises(SagaNotFoundError, match="nobody"):
                await ask()
        with pytest.raises(SagaNotFoundError, match="nothing was sent"):
            await handle.signal("go")
        await engine.execute(double, 1, id="d-1")
        with pytest.raises(SagaEndedError, match="has ended as COMPLETED"):
            await engine.handle("d-1").signal("go")
        await engine.handle("d-1").cancel()


async def test_an_engine_that_is_not_entered_says_so(lab: Lab) -> None:
    async with lab.engine(double) as engine:
        with pytest.raises(EngineStateError, match="entered already"):
            async with engine:
                pass
    with pytest.raises(EngineStateError, match="async with"):
        await engine.execute(double, 1)


async def test_an_engine_belongs_to_the_loop_that_entered_it(lab: Lab) -> None:
    async with lab.engine(double) as engine:
        await engine.execute(double, 1, id="d-1")

        async def elsewhere() -> None:
            for call in (
                engine.__aenter__,
                lambda: engine.execute(double, 1),
                lambda: engine.start(double, 1),
                engine.handle("d-1").result,
                engine.handle("d-1").status,
                lambda: engine.bus.publish("news"),
                engine.bus.drain,
            ):
                with pytest.raises(EngineStateError, match="belongs to the event loop"):
                    await call()

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert (await engine.execute(double, 2))["work"] == 4


def test_an_engine_whose_loop_has_ended_says_so() -> None:
    engine = WorkflowEngine("memory://")
    engine.register(double)
    asyncio.run(engine.__aenter__())
    for call in (engine.__aenter__, lambda: engine.execute(double, 1)):
        with pytest.raises(EngineStateError, match="on an event loop that has ended"):
            asyncio.run(call())


async def add_one(number: int) -> int:
    return number + 1


@saga("child")
async def child(number: int) -> int:
    return await step(add_one, number)


@saga("parent")
async def parent(number: int) -> int:
    first, second = await asyncio.gather(run_saga(child, number), run_saga(child, number + 10))
    return first + second


async def test_a_child_saga_has_an_id_of_its_own_and_runs_once(lab: Lab) -> None:
    async with lab.engine(child, parent) as engine:
        assert await engine.execute(parent, 1, id="p-1") == 14
        assert await engine.handle("p-1/~run:child", child).result() == 2


@saga("parent-of-steps")
async def parent_of_steps(number: int) -> int:
    results = await run_saga(double, number)
    return results[work] + int(results["work"])


async def test_a_declarative_child_gives_its_results_by_name_and_action(lab: Lab) -> None:
    async with lab.engine(double, parent_of_steps) as engine:
        assert await engine.execute(parent_of_steps, 4) == 16
