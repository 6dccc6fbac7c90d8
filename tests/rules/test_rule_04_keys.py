"""Rule 4: a started step without an outcome runs again with the same key; a completed one never runs again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import (
    CompensationContext,
    Outcome,
    Saga,
    SagaFailedError,
    SagaStep,
    StepContext,
    current_step,
    saga,
    step,
)

if TYPE_CHECKING:
    from tests.rules.conftest import Lab


class World:
    """What actions did, and a step that hangs until it is let go."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int, int]] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def first(self, ctx: StepContext[None]) -> str:
        self.calls.append(("first", ctx.idempotency_key, ctx.attempt, ctx.fence))
        return "one"

    async def second(self, ctx: StepContext[None]) -> str:
        self.calls.append(("second", ctx.idempotency_key, ctx.attempt, ctx.fence))
        self.begun.set()
        await self.go.wait()
        return f"{ctx.results['first']}-two"


async def test_rule_04_an_interrupted_step_runs_again_with_the_same_key_and_a_higher_fence(lab: Lab) -> None:
    world = World()
    pair = Saga("pair", [SagaStep("first", world.first), SagaStep("second", world.second)], sequential=True)
    async with lab.doomed(pair) as engine:
        await engine.start(pair, id="p-1")
        await world.begun.wait()
    world.go.set()
    async with lab.engine(pair) as engine:
        results = await engine.handle("p-1", pair).result()
    assert results["second"] == "one-two"
    assert [call[0] for call in world.calls] == ["first", "second", "second"], "a completed step never runs again"
    (_, key, attempt, fence), (_, key_again, attempt_again, fence_again) = world.calls[1:]
    assert key == key_again == "p-1:1:second"
    assert (attempt, attempt_again) == (1, 1)
    assert fence_again > fence


async def test_rule_04_what_was_interrupted_in_a_paused_saga_runs_again_when_it_is_resumed(lab: Lab) -> None:
    world = World()
    pair = Saga("pair", [SagaStep("first", world.first), SagaStep("second", world.second)], sequential=True)
    async with lab.doomed(pair) as engine:
        handle = await engine.start(pair, id="p-1")
        await world.begun.wait()
        await handle.pause()
        await lab.until_fact(engine, "p-1", "saga-paused")
    world.go.set()
    async with lab.engine(pair) as engine:
        await lab.until_row("p-1", owner="")  # it was looked at, and sleeps
        assert [call[0] for call in world.calls] == ["first", "second"], "it is paused"
        handle = engine.handle("p-1", pair)
        await handle.resume()
        assert (await handle.result())["second"] == "one-two"
    assert [call[:3] for call in world.calls[1:]] == [("second", "p-1:1:second", 1)] * 2


async def test_rule_04_a_step_that_is_not_idempotent_never_runs_again_blindly(lab: Lab) -> None:
    world = World()
    told: list[Outcome] = []

    async def undo(ctx: CompensationContext[None, str]) -> None:
        told.append(ctx.outcome)

    pair = Saga("pair", [SagaStep("first", world.first), SagaStep("second", world.second, undo, idempotent=False)])
    async with lab.doomed(pair) as engine:
        await engine.start(pair, id="p-1")
        await world.begun.wait()
        await lab.until_fact(engine, "p-1", "step-succeeded")
    async with lab.engine(pair) as engine:
        with pytest.raises(SagaFailedError, match="not idempotent"):
            await engine.handle("p-1", pair).result()
    assert [call[0] for call in world.calls].count("second") == 1
    assert told == [Outcome.UNKNOWN]


async def charge(cents: int) -> str:
    world = WORLDS[-1]
    world.calls.append(("charge", current_step().idempotency_key, cents, 0))
    if len(world.calls) == 2:
        world.begun.set()
        await asyncio.Event().wait()
    return current_step().idempotency_key


WORLDS: list[World] = []


@saga("two-charges")
async def two_charges(cents: int) -> list[str]:
    return [await step(charge, cents), await step(charge, cents * 2)]


async def test_rule_04_in_a_function_each_call_of_a_step_has_a_key_of_its_own(lab: Lab) -> None:
    world = World()
    WORLDS.append(world)
    async with lab.doomed(two_charges) as engine:
        await engine.start(two_charges, 5, id="c-1")
        await world.begun.wait()
    async with lab.engine(two_charges) as engine:
        assert await engine.handle("c-1", two_charges).result() == ["c-1:1:charge", "c-1:1:charge#2"]
    charged = [(key, cents) for _, key, cents, _ in world.calls]
    assert charged == [("c-1:1:charge", 5), ("c-1:1:charge#2", 10), ("c-1:1:charge#2", 10)]
