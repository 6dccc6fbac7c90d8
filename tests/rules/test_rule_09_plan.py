"""Rule 9: the rollback plan is an event before it runs, and rollback never replays the body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import CompensationContext, SagaFailedError, saga, step

if TYPE_CHECKING:
    from tests.rules.conftest import Lab


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
