"""A saga that has ended is gone from memory, however it ended."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest

from event_workflow_engine import Saga, SagaFailedError, SagaStep, WorkflowEngine, saga, step
from event_workflow_engine.runner.execution import Attempt
from event_workflow_engine.runner.forward import Forward
from event_workflow_engine.runner.run import SagaRun


class Thing:
    """What a saga was given, and knows the saga's engine, as things do."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self.engine = engine


GIVEN: list[Thing] = []


async def refuse() -> None:
    raise ValueError("no")


async def take(thing: Any) -> None:
    GIVEN.append(thing)


@saga("body-fails")
async def body_fails() -> None:
    await step(refuse)


@saga("body-is-done")
async def body_is_done() -> None:
    await step(take, Thing(ENGINES[-1]))


async def take_nothing() -> None:
    return


ENGINES: list[WorkflowEngine] = []
SAGAS = [body_fails, body_is_done, Saga("steps-fail", [SagaStep("refuse", refuse)])]


@pytest.mark.parametrize("one", SAGAS, ids=lambda one: one.name)
async def test_an_engine_that_ended_a_saga_is_collected(one: Saga[Any, Any]) -> None:
    engine = WorkflowEngine("memory://")
    ENGINES.append(engine)
    engine.register(one)
    async with engine:
        with suppress(SagaFailedError):
            await engine.execute(one)
    left = weakref.ref(engine)
    del engine
    ENGINES.clear()
    GIVEN.clear()
    gc.collect()
    assert left() is None


def in_memory(*kinds: type) -> int:
    return sum(type(one) in kinds for one in gc.get_objects())


@pytest.mark.parametrize(
    "one", [body_is_done, Saga("steps-are-done", [SagaStep("take", take_nothing)])], ids=lambda one: one.name
)
async def test_a_saga_that_is_done_leaves_nothing_to_the_garbage_collector(one: Saga[Any, Any]) -> None:
    async with WorkflowEngine("memory://") as engine:
        ENGINES.append(engine)
        engine.register(one)
        await engine.execute(one)
        await asyncio.sleep(0)  # its last task is let go of
        gc.collect()
        gc.disable()
        before = in_memory(SagaRun, Forward, Attempt)
        try:
            await engine.execute(one)
            await asyncio.sleep(0)
            assert in_memory(SagaRun, Forward, Attempt) == before
        finally:
            gc.enable()
    ENGINES.clear()
    GIVEN.clear()
