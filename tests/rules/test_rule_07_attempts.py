"""Rule 7: every attempt's start is on disk before its action, and the counters are durable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import (
    CompensationContext,
    Outcome,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    StepContext,
)
from event_workflow_engine.history import decode_facts
from event_workflow_engine.journal import saga_stream

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

NOW = RetryPolicy(attempts=3, delay=0, jitter=0)


async def test_rule_07_an_attempts_start_is_on_disk_before_its_action(lab: Lab) -> None:
    seen: list[list[str]] = []

    async def look(ctx: StepContext[None]) -> None:
        records = await lab.storage.read_stream(saga_stream(ctx.saga_id))
        facts = [fact for record in records for fact in decode_facts(record.data)]
        seen.append([f"{fact.step}:{fact.attempt}" for fact in facts if type(fact).__name__ == "StepStarted"])
        if len(seen) == 1:
            raise ValueError("again")

    saga = Saga("s", [SagaStep("look", look, retry=NOW), SagaStep("again", look)], sequential=True)
    async with lab.engine(saga) as engine:
        await engine.execute(saga)
    assert seen == [["look:1"], ["look:1", "look:2"], ["look:1", "look:2", "again:1"]]


@pytest.mark.parametrize("turns", range(12))
async def test_rule_07_a_start_that_comes_up_while_a_unit_is_in_flight_waits_for_its_own(lab: Lab, turns: int) -> None:
    on_disk: dict[str, bool] = {}
    opened = asyncio.Event()

    async def first() -> None:
        opened.set()

    async def second() -> None:
        await opened.wait()
        for _ in range(turns):
            await asyncio.sleep(0)

    async def look(ctx: StepContext[None]) -> None:
        records = await lab.storage.read_stream(saga_stream(ctx.saga_id))
        facts = [fact for record in records for fact in decode_facts(record.data)]
        on_disk[ctx.step] = any(type(one).__name__ == "StepStarted" and one.step == ctx.step for one in facts)

    behind = [SagaStep("behind-first", look, after=("first",)), SagaStep("behind-second", look, after=("second",))]
    saga = Saga("s", [SagaStep("first", first), SagaStep("second", second), *behind])
    async with lab.engine(saga) as engine:
        await engine.execute(saga)
    assert on_disk == {"behind-first": True, "behind-second": True}


async def test_rule_07_attempts_are_counted_over_crashes(lab: Lab) -> None:
    attempts: list[int] = []
    hang = asyncio.Event()

    async def fail(ctx: StepContext[None]) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) == 2:
            hang.set()
            await asyncio.Event().wait()
        raise ValueError("no")

    saga = Saga("s", [SagaStep("fail", fail, retry=NOW)])
    async with lab.doomed(saga) as engine:
        await engine.start(saga, id="s-1")
        await hang.wait()
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError):
            await engine.handle("s-1", saga).result()
    assert attempts == [1, 2, 2, 3], "the crash is no attempt of its own"


async def crashing(lab: Lab, limit: int, *, in_good_order: bool, times: int) -> tuple[int, list[Outcome]]:
    """Interrupt a step again and again; how often it was run, and what its compensation was told."""
    runs, told = 0, list[Outcome]()
    begun = asyncio.Event()

    async def act() -> None:
        nonlocal runs
        runs += 1
        begun.set()
        if runs <= times:
            await asyncio.Event().wait()

    async def undo(ctx: CompensationContext[None, None]) -> None:
        told.append(ctx.outcome)

    saga = Saga("s", [SagaStep("act", act, undo, retry=RetryPolicy(attempts=1, max_interruptions=limit))])
    for n in range(times):
        begun.clear()
        leave = lab.engine(saga, shutdown_timeout=0) if in_good_order else lab.doomed(saga)
        async with leave as engine:
            if n == 0:
                await engine.start(saga, id="s-1")
            ended = asyncio.ensure_future(engine.handle("s-1", saga).result())
            first = asyncio.ensure_future(begun.wait())
            await asyncio.wait((ended, first), return_when=asyncio.FIRST_COMPLETED)
            done = ended.done()
            ended.cancel()
            first.cancel()
            await asyncio.gather(ended, first, return_exceptions=True)
            if done:
                break
    async with lab.engine(saga) as engine:
        try:
            await engine.handle("s-1", saga).result()
        except SagaFailedError:
            assert told
    return runs, told


async def test_rule_07_a_step_that_kills_its_worker_is_given_up_as_unknown(lab: Lab) -> None:
    assert await crashing(lab, 2, in_good_order=False, times=5) == (3, [Outcome.UNKNOWN])


async def test_rule_07_a_hand_over_is_no_interruption(lab: Lab) -> None:
    assert await crashing(lab, 1, in_good_order=True, times=4) == (5, [])


async def test_rule_07_types_that_are_never_retried(lab: Lab) -> None:
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise LookupError("gone")

    saga = Saga("s", [SagaStep("fail", fail, retry=RetryPolicy(delay=0, never=(LookupError,)))])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(saga)
    assert calls == 1
