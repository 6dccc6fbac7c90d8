"""Rule 11: code that does not match a running saga's journal parks it; it goes on when matching code registers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    CompensationContext,
    Outcome,
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    WorkflowState,
    saga,
    step,
    wait_for_signal,
)
from event_workflow_engine.errors import DefinitionError, ForeignAwaitError, NonDeterminismError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.rules.conftest import Lab

pytestmark = pytest.mark.proves("old-history")

GO = Signal("go", str)


async def book(what: str) -> str:
    return what


async def unbook(ctx: CompensationContext[None, str]) -> None: ...


UNDONE: list[tuple[Outcome, str | None]] = []


async def note_undone(ctx: CompensationContext[None, str]) -> None:
    UNDONE.append((ctx.outcome, ctx.result))


def trip_of(body: Callable[[], Awaitable[str]], version: int = 1) -> Saga[None, str]:
    async def trip() -> str:
        return await body()

    return saga("trip", version=version)(trip)


async def as_begun() -> str:
    flight = await step(book, "flight", name="flight")
    word = await wait_for_signal(GO)
    return f"{flight}-{await step(book, word, name='hotel')}"


async def renamed() -> str:
    flight = await step(book, "flight", name="plane")
    return f"{flight}-{await wait_for_signal(GO)}"


async def test_rule_11_changed_code_parks_the_saga_and_matching_code_lets_it_go_on(lab: Lab) -> None:
    begun = trip_of(as_begun)
    async with lab.engine(begun) as engine:
        handle = await engine.start(begun, id="t-1")
        await lab.until_fact(engine, "t-1", "step-succeeded")
    changed = trip_of(renamed)
    async with lab.engine(changed) as engine:
        handle = engine.handle("t-1", changed)
        await handle.signal(GO, "hotel")
        with pytest.raises(SagaFailedError, match="'flight'") as failure:
            await handle.result()
        assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
        assert isinstance(failure.value.__cause__, NonDeterminismError)
    matching = trip_of(as_begun)
    async with lab.engine() as engine:
        assert await engine.handle("t-1").status() is WorkflowState.NEEDS_INTERVENTION
        engine.register(matching)
        await lab.until_fact(engine, "t-1", "saga-completed")
        assert await engine.handle("t-1", matching).result() == "flight-hotel"


async def test_rule_11_code_that_still_does_not_match_leaves_the_journal_as_it_was(lab: Lab) -> None:
    begun = trip_of(as_begun)
    async with lab.engine(begun) as engine:
        await engine.start(begun, id="t-1")
        await lab.until_fact(engine, "t-1", "step-succeeded")
    lengths = []
    for _ in range(3):
        changed = trip_of(renamed)
        async with lab.engine(changed) as engine:
            if not lengths:
                await engine.handle("t-1").signal(GO, "x")
            with pytest.raises(SagaFailedError):
                await engine.handle("t-1", changed).result()
            lengths.append(len(await lab.facts(engine, "t-1")))
    assert len(set(lengths)) == 1


async def test_rule_11_a_saga_that_stands_can_be_cancelled_and_is_undone_without_its_body(lab: Lab) -> None:
    acting = asyncio.Event()

    async def pay() -> str:
        acting.set()
        await asyncio.Event().wait()
        return "paid"

    def version(name: str) -> Saga[None, str]:
        async def trip() -> str:
            await step(book, "seat 7", name=name, compensation=note_undone)
            return await step(pay, compensation=note_undone)

        return saga("trip")(trip)

    UNDONE.clear()

    begun = version("reserve")
    async with lab.doomed(begun) as engine:
        await engine.start(begun, id="t-1")
        await acting.wait()
    async with lab.engine(version("book")) as engine:
        handle = engine.handle("t-1")
        with pytest.raises(SagaFailedError, match="'reserve'"):
            await handle.result()
        await handle.cancel("the code is gone")
        await lab.until_fact(engine, "t-1", "saga-compensated")
        with pytest.raises(SagaFailedError) as failure:
            await handle.result()
        history = await handle.history()
    assert UNDONE == [(Outcome.UNKNOWN, None), (Outcome.SUCCEEDED, "seat 7")]
    assert failure.value.status is WorkflowState.COMPENSATED
    (made,) = [event.data for event in history if event.type == "intervention-made"]
    assert (made.verb, made.why) == ("cancel", "the code is gone")


async def test_rule_11_a_cancel_is_heard_however_it_meets_a_look_at_the_standing_saga(lab: Lab) -> None:
    changed, begun = trip_of(renamed), trip_of(as_begun)
    async with lab.engine(begun) as engine:
        for turns in range(40):
            await engine.start(begun, id=f"t-{turns}")
            await lab.until_fact(engine, f"t-{turns}", "step-succeeded")
    async with lab.engine(changed) as engine:
        for turns in range(40):
            handle = engine.handle(f"t-{turns}")
            await handle.signal(GO, "hotel")
            with pytest.raises(SagaFailedError, match="'flight'"):
                await handle.result(timeout=10)
            engine.register(saga(f"other-{turns}")(as_begun))  # code came: what stands is looked at
            for _ in range(turns):
                await asyncio.sleep(0)
            await handle.cancel()
            await lab.until_fact(engine, f"t-{turns}", "saga-cancelled")


async def test_rule_11_old_versions_stay_registered_beside_new_ones(lab: Lab) -> None:
    old, new = trip_of(as_begun), trip_of(renamed, version=2)
    async with lab.engine(old) as engine:
        await engine.start(old, id="t-old")
        await lab.until_fact(engine, "t-old", "step-succeeded")
    async with lab.engine(old, new) as engine:
        await engine.start("trip", id="t-new")
        for saga_id in ("t-old", "t-new"):
            await engine.handle(saga_id).signal(GO, "go")
        assert await engine.handle("t-old", old).result() == "flight-go"
        assert await engine.handle("t-new", new).result() == "flight-go"
        assert "plane" in str(await engine.handle("t-new").history())


async def test_rule_11_a_foreign_await_parks_the_saga_and_names_the_remedy(lab: Lab) -> None:
    async def sleeps() -> str:
        try:
            await asyncio.sleep(1)
        except Exception:
            return "swallowed"
        return "slept"

    sleepy = trip_of(sleeps)
    async with lab.engine(sleepy) as engine:
        with pytest.raises(SagaFailedError, match="make it a step") as failure:
            await engine.execute(sleepy)
    assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
    assert isinstance(failure.value.__cause__, ForeignAwaitError)


async def test_rule_11_a_second_definition_of_a_version_is_refused(lab: Lab) -> None:
    first, second = trip_of(as_begun), trip_of(renamed)
    async with lab.engine(first) as engine:
        engine.register(first)
        with pytest.raises(DefinitionError, match="version 1 is registered already"):
            engine.register(second)


async def test_rule_11_a_compensation_lost_in_a_deploy_is_named_and_nothing_is_lost(lab: Lab) -> None:
    undoing, log = asyncio.Event(), list[Any]()

    async def act() -> str:
        return "done"

    async def undo(ctx: CompensationContext[None, str]) -> None:
        undoing.set()
        if not log:
            log.append("first try")
            await asyncio.Event().wait()
        log.append(ctx.result)

    async def refuse() -> None:
        raise ValueError("no")

    def version_with(compensation: Any) -> Saga[None, Any]:
        return Saga("s", [SagaStep("act", act, compensation), SagaStep("refuse", refuse, after="act")])

    complete = version_with(undo)
    async with lab.doomed(complete) as engine:
        await engine.start(complete, id="s-1")
        await undoing.wait()
    async with lab.engine(version_with(None)) as engine:
        with pytest.raises(SagaFailedError, match="no compensation for it") as failure:
            await engine.handle("s-1").result()
        assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
    complete = version_with(undo)
    async with lab.engine(complete) as engine:
        await lab.until_fact(engine, "s-1", "saga-compensated")
    assert log == ["first try", "done"]
