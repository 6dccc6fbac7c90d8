"""Rule 9: the rollback plan is an event before it runs, and rollback never replays the body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import CompensationContext, Saga, SagaFailedError, SagaStep, saga, step
from event_workflow_engine.history import decode_facts
from event_workflow_engine.journal import saga_stream

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

pytestmark = pytest.mark.proves("compensation")


class World:
    def __init__(self) -> None:
        self.bodies = 0
        self.undone: list[object] = []
        self.undoing = asyncio.Event()
        self.go = asyncio.Event()


WORLDS: list[World] = []


async def book(name: str) -> str:
    return name.upper()


async def unbook(ctx: CompensationContext[None, str]) -> None:
    world = WORLDS[-1]
    world.undoing.set()
    await world.go.wait()
    world.undone.append(ctx.result)


@saga("trip")
async def trip() -> None:
    WORLDS[-1].bodies += 1
    await step(book, "flight", compensation=unbook)
    await step(book, "hotel", compensation=unbook)
    raise RuntimeError("no taxi")


async def test_rule_09_a_rollback_resumes_from_its_plan_without_the_body(lab: Lab) -> None:
    world = World()
    WORLDS.append(world)
    async with lab.doomed(trip) as engine:
        await engine.start(trip, id="t-1")
        await world.undoing.wait()
        facts = await lab.facts(engine, "t-1")
        assert facts.index("rollback-planned") < facts.index("compensation-started")
    world.go.set()
    async with lab.engine(trip) as engine:
        with pytest.raises(SagaFailedError, match="no taxi") as failure:
            await engine.handle("t-1", trip).result()
    assert world.bodies == 1
    assert world.undone == ["HOTEL", "FLIGHT"]
    assert failure.value.report.compensated == ("book#2", "book")


@pytest.mark.parametrize("turns", range(12))
async def test_rule_09_a_rollback_that_begins_while_a_start_goes_to_disk_waits_for_its_plan(
    lab: Lab, turns: int
) -> None:
    planned: list[bool] = []
    booked = asyncio.Event()

    async def reserve() -> None:
        booked.set()

    async def release(ctx: CompensationContext[None, None]) -> None:
        records = await lab.storage.read_stream(saga_stream(ctx.saga_id))
        kinds = [type(fact).__name__ for record in records for fact in decode_facts(record.data)]
        planned.append("RollbackPlanned" in kinds and "CompensationStarted" in kinds)

    async def check() -> None:
        await booked.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        raise ValueError("no")

    async def never() -> None:
        await asyncio.Event().wait()

    after = SagaStep("pack", never, after=("reserve",), timeout=1)
    plan = Saga("s", [SagaStep("reserve", reserve, release), SagaStep("check", check), after], on_failure="cancel")
    async with lab.engine(plan) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(plan)
    assert planned == [True]
