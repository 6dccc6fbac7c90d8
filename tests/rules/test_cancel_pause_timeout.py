"""Cancel, pause, resume and the saga's own deadline: only what is journalled cancels, and compensation follows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    CompensationContext,
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    StepContext,
    WorkflowState,
    current_saga,
    current_step,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.errors import (
    DecodeError,
    EncodeError,
    OutsideSagaError,
    SagaCancelledError,
    SagaEndedError,
    SagaNotFoundError,
    SagaTimeoutError,
    SignalTimeoutError,
)

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

LOG: list[str] = []
GO = Signal("go", str)


async def book(what: str) -> str:
    LOG.append(f"book {what}")
    return what


async def unbook(ctx: CompensationContext[Any, str]) -> None:
    LOG.append(f"unbook {ctx.result}")


@saga("trip")
async def trip() -> str:
    LOG.append("body")
    await step(book, "flight", compensation=unbook)
    return await wait_for_signal(GO)


@saga("patient")
async def patient() -> str:
    return await wait_for_signal(GO)


async def test_cancelling_a_saga_that_left_memory_undoes_it(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(trip) as engine:
        handle = await engine.start(trip, id="t-1")
        await lab.until_fact(engine, "t-1", "step-succeeded")
        await handle.cancel("the customer rang")
        with pytest.raises(SagaCancelledError) as failure:
            await handle.result()
        facts = await lab.facts(engine, "t-1")
    assert failure.value.status is WorkflowState.COMPENSATED
    assert LOG[-1] == "unbook flight"
    assert "cancel-requested" in facts


async def test_cancelling_where_nothing_is_to_undo_ends_as_cancelled(lab: Lab) -> None:
    async with lab.engine(patient) as engine:
        handle = await engine.start(patient)
        await handle.cancel("never mind")
        with pytest.raises(SagaCancelledError, match="never mind") as failure:
            await handle.result()
        assert await handle.status() is WorkflowState.CANCELLED
    assert failure.value.report.compensated == ()


@saga("tidy")
async def tidy() -> str:
    try:
        return await wait_for_signal(GO)
    except asyncio.CancelledError:
        await step(book, "an apology")
        raise


async def test_a_cancelled_body_may_still_run_steps(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(tidy) as engine:
        handle = await engine.start(tidy)
        await handle.cancel()
        with pytest.raises(SagaCancelledError):
            await handle.result()
    assert LOG == ["book an apology"]


@saga("stubborn")
async def stubborn() -> str:
    try:
        return await wait_for_signal(GO)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return "went on"


async def test_a_body_that_uncancels_goes_on(lab: Lab) -> None:
    async with lab.engine(stubborn) as engine:
        handle = await engine.start(stubborn)
        await handle.cancel()
        assert await handle.result() == "went on"


async def test_a_paused_saga_starts_nothing_new_until_it_is_resumed(lab: Lab) -> None:
    begun, go, calls = asyncio.Event(), asyncio.Event(), list[str]()

    async def first() -> None:
        begun.set()
        await go.wait()

    async def second() -> None:
        calls.append("second")

    pair = Saga("pair", [SagaStep("first", first), SagaStep("second", second)], sequential=True)
    async with lab.engine(pair) as engine:
        handle = await engine.start(pair, id="p-1")
        await begun.wait()
        await handle.pause()
        await lab.until_fact(engine, "p-1", "saga-paused")
        go.set()
        await lab.until_fact(engine, "p-1", "step-succeeded")
        assert await handle.status() is WorkflowState.PAUSED
    async with lab.engine(pair) as engine:
        assert await engine.handle("p-1").status() is WorkflowState.PAUSED
        assert calls == []
        await engine.handle("p-1").resume()
        await engine.handle("p-1", pair).result()
    assert calls == ["second"]


async def test_a_paused_saga_can_be_cancelled(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(trip) as engine:
        handle = await engine.start(trip, id="t-1")
        await lab.until_fact(engine, "t-1", "step-succeeded")
        await handle.pause()
        await lab.until_fact(engine, "t-1", "saga-paused")
        await handle.cancel()
        with pytest.raises(SagaCancelledError):
            await handle.result()
    assert LOG[-1] == "unbook flight"


async def test_a_signal_to_a_paused_saga_is_taken_when_it_is_resumed(lab: Lab) -> None:
    async with lab.engine(patient) as engine:
        handle = await engine.start(patient, id="p-1")
        await handle.pause()
        await lab.until_fact(engine, "p-1", "saga-paused")
        await handle.signal(GO, "hello")
        await lab.until_fact(engine, "p-1", "signal-received")
        assert await handle.status() is WorkflowState.PAUSED
        await handle.resume()
        assert await handle.result() == "hello"


async def test_a_sagas_deadline_undoes_it(lab: Lab) -> None:
    LOG.clear()

    async def hang() -> None:
        await asyncio.Event().wait()

    async def act() -> str:
        return "x"

    late = Saga("late", [SagaStep("act", act, unbook), SagaStep("hang", hang, after="act")], timeout=0.05)
    async with lab.engine(late) as engine:
        with pytest.raises(SagaTimeoutError) as failure:
            await engine.execute(late)
    assert failure.value.status is WorkflowState.COMPENSATED
    assert LOG == ["unbook x"]


@saga("late-function", timeout=0.05)
async def late_function() -> None:
    await step(book, "x", compensation=unbook)
    await sleep(3600)


async def test_a_functions_deadline_undoes_it(lab: Lab) -> None:
    LOG.clear()
    async with lab.engine(late_function) as engine:
        with pytest.raises(SagaTimeoutError):
            await engine.execute(late_function)
    assert LOG == ["book x", "unbook x"]


@saga("impatient")
async def impatient() -> str:
    try:
        return await wait_for_signal(GO, timeout=0.02)
    except SignalTimeoutError:
        return "nobody came"


async def test_waiting_for_a_signal_has_a_durable_timeout(lab: Lab) -> None:
    async with lab.engine(impatient) as engine:
        assert await engine.execute(impatient) == "nobody came"


async def test_the_context_is_right_in_threads_and_under_concurrency(lab: Lab) -> None:
    seen: list[tuple[str, str | None, str]] = []

    def look() -> None:
        seen.append((current_saga().saga_id, current_saga().step, current_step().idempotency_key))

    async def look_async() -> None:
        await asyncio.sleep(0)
        look()
        await asyncio.gather(asyncio.to_thread(look))

    both = Saga("both", [SagaStep("thread", look), SagaStep("task", look_async)])
    # On a machine that stalls for longer than a short lease, steps would be begun again.
    async with lab.engine(both, lease=30) as engine:
        await asyncio.gather(*(engine.execute(both, id=f"b-{n}") for n in range(20)))
    expected = [(f"b-{n}", name, f"b-{n}:1:{name}") for n in range(20) for name in ("task", "task", "thread")]
    assert sorted(seen) == sorted(expected)  # type: ignore[type-var]


async def test_outside_of_a_saga_its_context_is_a_typed_error(lab: Lab) -> None:
    for ask in (current_saga, current_step, lambda: step(book, "x"), lambda: sleep(1)):
        with pytest.raises(OutsideSagaError):
            ask()

    async def act() -> None:
        await step(book, "x")

    nested = Saga("nested", [SagaStep("act", act)])
    async with lab.engine(nested) as engine:
        with pytest.raises(SagaFailedError, match="outside of the body"):
            await engine.execute(nested)


async def test_a_compensation_that_runs_on_while_its_saga_is_paused_runs_once(lab: Lab) -> None:
    undoing, go_on, log = asyncio.Event(), asyncio.Event(), list[str]()

    async def act() -> None: ...

    async def refuse() -> None:
        raise ValueError("no")

    async def undo_first() -> None:
        log.append("first")

    async def undo_second() -> None:
        log.append("second")
        undoing.set()
        await go_on.wait()

    declared = Saga(
        "s",
        [SagaStep("first", act, undo_first), SagaStep("second", act, undo_second), SagaStep("refuse", refuse)],
        sequential=True,
    )
    async with lab.engine(declared) as engine:
        handle = await engine.start(declared, id="s-1")
        await undoing.wait()
        await handle.pause()
        await lab.until_fact(engine, "s-1", "saga-paused")
        await handle.resume()
        await lab.until_fact(engine, "s-1", "saga-resumed")
        go_on.set()
        with pytest.raises(SagaFailedError) as failure:
            await handle.result(timeout=10)
    assert failure.value.status is WorkflowState.COMPENSATED
    assert log == ["second", "first"]


@pytest.mark.parametrize("form", ["function", "declared"])
async def test_what_a_step_returned_while_paused_is_there_when_the_saga_comes_back_into_memory(
    lab: Lab, form: str
) -> None:
    acting, go_on = asyncio.Event(), asyncio.Event()

    async def price() -> int:
        acting.set()
        await go_on.wait()
        return 900

    async def total(ctx: StepContext[Any]) -> int:
        return int(ctx.results["price"]) + 1

    @saga("priced")
    async def by_function() -> int:
        return await step(price) + 1

    declared: Saga[None, Any] = Saga("priced", [SagaStep("price", price), SagaStep("total", total, after="price")])
    priced: Saga[None, Any] = by_function if form == "function" else declared
    async with lab.engine(priced) as engine:
        handle = await engine.start(priced, id="p-1")
        await acting.wait()
        await handle.pause()
        await lab.until_fact(engine, "p-1", "saga-paused")
        go_on.set()
        await lab.until_fact(engine, "p-1", "step-succeeded")
    async with lab.engine(priced) as engine:
        handle = engine.handle("p-1", priced)
        await handle.resume()
        result = await handle.result()
    assert (result if form == "function" else result["total"]) == 901


async def test_a_payload_that_does_not_fit_is_refused_where_the_sender_names_the_type(lab: Lab) -> None:
    @saga("listener")
    async def listener() -> str:
        return await wait_for_signal(GO)

    async with lab.engine(listener) as engine:
        handle = await engine.start(listener, id="l-1")
        with pytest.raises(EncodeError, match=r"'l-1'.*nothing was sent"):
            await handle.signal(GO, 5)  # type: ignore[arg-type]
        await handle.signal(GO, "hello")
        assert await handle.result() == "hello"


async def test_a_payload_that_does_not_fit_is_raised_in_the_body_which_may_wait_again(lab: Lab) -> None:
    @saga("listener")
    async def listener() -> str:
        try:
            return await wait_for_signal(GO)
        except DecodeError as error:
            return f"{error.__class__.__name__}, then {await wait_for_signal(GO)}"

    async with lab.doomed(listener) as engine:
        handle = await engine.start(listener, id="l-1")
        await handle.signal("go", 5)
        await lab.until_fact(engine, "l-1", "signal-received")
    async with lab.engine(listener) as engine:
        handle = engine.handle("l-1", listener)
        await handle.signal("go", "hello")
        assert await handle.result() == "DecodeError, then hello"


async def test_a_body_that_does_not_catch_a_payload_that_does_not_fit_is_undone(lab: Lab) -> None:
    LOG.clear()

    @saga("listener")
    async def listener() -> str:
        await step(book, "flight", compensation=unbook)
        return await wait_for_signal(GO)

    async with lab.engine(listener) as engine:
        handle = await engine.start(listener, id="l-1")
        await handle.signal("go", 5)
        with pytest.raises(SagaFailedError, match="signal 'go'") as failure:
            await handle.result()
    assert (failure.value.status, LOG) == (WorkflowState.COMPENSATED, ["book flight", "unbook flight"])


async def test_who_speaks_to_a_saga_that_has_ended_is_told_so(lab: Lab) -> None:
    @saga("quick")
    async def quick() -> str:
        return "done"

    async with lab.engine(quick) as engine:
        await engine.execute(quick, id="q-1")
        handle = engine.handle("q-1")
        with pytest.raises(SagaEndedError, match="'q-1' has ended as COMPLETED"):
            await handle.signal("go", "hello")
        await handle.cancel()
        with pytest.raises(SagaNotFoundError, match="'nobody'"):
            await engine.handle("nobody").cancel()
