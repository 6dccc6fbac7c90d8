"""Given, when, then; and that each of them fails when it should."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    Aggregate,
    DocumentProjection,
    RetryPolicy,
    Saga,
    SagaStep,
    Signal,
    WorkflowState,
    event,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.errors import DefinitionError, SagaEndedError
from event_workflow_engine.testing import UnusedFakeWarning, VirtualClock, given, raises, returns
from event_workflow_engine.testing.telling import waits_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine import WorkflowEngine
    from event_workflow_engine.testing import Effects
    from event_workflow_engine.testing.scenarios import SagaScenario


@event("scenario-deposited")
@dataclass(frozen=True)
class Deposited:
    account: str
    cents: int


@dataclass
class Account(Aggregate[Deposited], category="scenario"):
    cents: int = 0

    def apply(self, deposited: Deposited, /) -> None:
        self.cents += deposited.cents


class PoorError(Exception):
    pass


async def withdraw(account: Account, cents: int) -> list[Deposited]:
    if account.cents < cents:
        raise PoorError
    return [Deposited("a", -cents)]


@dataclass
class Balance:
    cents: int = 0


@pytest.fixture(params=["inline", "async"])
def balances(request: pytest.FixtureRequest) -> DocumentProjection[Balance]:
    made = DocumentProjection("balances", Balance, mode=request.param)

    @made.on(Deposited, key=lambda deposited: deposited.account)
    def add(document: Balance | None, deposited: Deposited) -> Balance | None:
        if deposited.cents == 13:
            raise ValueError("unlucky")
        cents = (document or Balance()).cents + deposited.cents
        return Balance(cents) if cents else None

    return made


async def test_what_an_aggregate_decides() -> None:
    await given(Account, Deposited("a", 5)).when(withdraw, 3).then(Deposited("a", -3))
    await given(Account, Deposited("a", 5)).when(lambda _: []).then()
    await given(Account).when(withdraw, 3).then_raises(PoorError)
    with pytest.raises(AssertionError, match=r"decided was \[Deposited.*-3.*expected \[\]"):
        await given(Account, Deposited("a", 5)).when(withdraw, 3).then()
    with pytest.raises(AssertionError, match="expected was a PoorError"):
        await given(Account, Deposited("a", 5)).when(withdraw, 3).then_raises(PoorError)
    with pytest.raises(DefinitionError, match="says what is decided"):
        await given(Account).then()


async def test_what_a_projection_folds(balances: DocumentProjection[Balance]) -> None:
    past = (Deposited("a", 5), Deposited("b", 1), Deposited("a", 2), Deposited("b", -1))
    await given(balances, *past).then({"a": Balance(7), "b": None})
    await given(balances).then({"a": None})
    with pytest.raises(AssertionError, match="expected"):
        await given(balances, *past).then({"a": Balance(6)})
    with pytest.raises(AssertionError, match="1 events could not be folded"):
        await given(balances, Deposited("a", 13)).then({"a": None})


GO = Signal("go", str)


async def book(what: str) -> str:
    return f"booked {what}"


async def free() -> None: ...


@saga("scenario-trip")
async def trip(what: str) -> str:
    booked = await step(book, what, compensation=free)
    word = await wait_for_signal(GO, timeout=timedelta(days=3))
    return f"{booked}, {word}"


@saga("scenario-gift")
async def gift(_: str) -> str:
    return await wait_for_signal(GO)


@saga("scenario-nap")
async def nap(_: str) -> None:
    await sleep(1.5)


@saga("scenario-again")
async def again(what: str) -> str:
    return await step(book, what, retry=RetryPolicy(attempts=3, delay=60, factor=1, jitter=0))


async def test_how_a_saga_ends() -> None:
    running, done, undone = WorkflowState.RUNNING, WorkflowState.COMPLETED, WorkflowState.COMPENSATED
    await given(trip, "a room").then(running, standing=["book"])
    went = given(trip, "a room").faking(book, returns("got it")).passes(days=2).signalled(GO, "gone").passes(days=2)
    await went.then(done, result="got it, gone", standing=["book"], undone=[])
    await given(trip, "a room").passes(days=3).then(undone, standing=[], undone=["book"])
    await given(trip, "a room").cancelled().then(undone, undone=["book"])
    await given(trip, "a room").faking(book, raises(ValueError("full"))).then(WorkflowState.FAILED, undone=[])


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"state": WorkflowState.COMPLETED}, "the saga is COMPENSATED, expected COMPLETED: .*SignalTimeoutError"),
        ({"state": WorkflowState.COMPENSATED, "undone": []}, r"\['book'\] are undone, expected \[\]"),
        ({"state": WorkflowState.COMPENSATED, "standing": ["book"]}, r"\[\] stand, expected \['book'\]"),
    ],
)
async def test_a_saga_that_ends_otherwise_is_told(expected: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await given(trip, "a room").passes(days=3).then(**expected)


@pytest.mark.parametrize(
    ("scenario", "waits"),
    [
        (given(trip, "a"), "waits for signal 'go' until 2026-01-04 00:00:00Z"),
        (given(gift, "a"), "waits for signal 'go'"),
        (given(nap, "a"), "sleeps until 2026-01-01 00:00:01.5Z"),
        (
            given(again, "a").faking(book, raises(ConnectionError("engaged"))),
            "waits for attempt 2 of step 'book' at 2026-01-01 00:01:00Z (attempt 1 raised ConnectionError: engaged)",
        ),
    ],
)
async def test_a_saga_that_has_not_ended_is_told_with_what_it_waits_for(scenario: SagaScenario, waits: str) -> None:
    with pytest.raises(AssertionError) as told:
        await scenario.then(WorkflowState.COMPLETED)
    assert str(told.value) == f"the saga is RUNNING, expected COMPLETED: it {waits}"


async def test_a_saga_that_runs_a_step_is_told_with_the_step(engine: WorkflowEngine) -> None:
    inside, out = asyncio.Event(), asyncio.Event()

    async def busy() -> None:
        inside.set()
        await out.wait()

    declared = Saga("busy", [SagaStep("busy", busy)])
    engine.register(declared)
    handle = await engine.start(declared)
    await inside.wait()
    assert await waits_in_words(engine, handle.id) == "runs step 'busy'"
    out.set()
    await handle.result()


async def test_a_saga_that_has_not_ended_has_no_result() -> None:
    with pytest.raises(AssertionError, match=r"^the saga has returned nothing so far: it waits for signal 'go'$"):
        await given(gift, "a").then(WorkflowState.RUNNING, result="gone")


async def test_a_signal_behind_the_end_is_refused() -> None:
    with pytest.raises(SagaEndedError):
        await given(trip, "a room").passes(days=3).signalled(GO, "gone").then(WorkflowState.COMPENSATED)


async def test_another_result_is_told() -> None:
    with pytest.raises(AssertionError, match="the saga returned 'booked a, gone', expected 'other'"):
        await given(trip, "a").signalled(GO, "gone").then(WorkflowState.COMPLETED, result="other")


def test_what_is_no_subject_is_refused() -> None:
    with pytest.raises(DefinitionError, match="a class derived from Aggregate"):
        given(withdraw)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="one input at most, not 2"):
        given(trip, "a", "b")


async def test_a_fake_for_what_a_declared_saga_does_not_call_is_refused() -> None:
    async def nothing() -> None: ...

    declared = Saga("declared", [SagaStep("nothing", nothing, free)])
    given(declared).faking(nothing, returns()).faking(free, returns())
    with pytest.raises(DefinitionError, match=r"faking\(withdraw\): saga 'declared' has no such action"):
        given(declared).faking(withdraw, returns())
    with pytest.raises(DefinitionError, match="a fake is no async function"):
        given(declared).faking(nothing, free)  # type: ignore[arg-type]


async def test_a_fake_that_a_saga_function_never_comes_to_is_told() -> None:
    with pytest.warns(UnusedFakeWarning, match=r"^the fake of withdraw was never called: ") as told:
        await given(trip, "a").faking(book, returns("got it")).faking(withdraw, returns()).then(WorkflowState.RUNNING)
    assert len(told) == 1
    undoable = given(trip, "a").faking(free, returns())  # of a step that was done
    await undoable.then(WorkflowState.RUNNING)
    with pytest.warns(UnusedFakeWarning, match="the fake of free was never called"):
        await given(gift, "a").faking(free, returns()).then(WorkflowState.RUNNING)


@pytest.mark.parametrize("by", [-5, float("nan"), float("inf"), True, "5", timedelta(seconds=-1)])
async def test_a_virtual_clock_goes_on_only(by: Any) -> None:
    clock = VirtualClock()
    before = clock.now()
    with pytest.raises(ValueError, match="seconds or a timedelta, from zero"):
        await clock.advance(by)
    assert clock.now() == before


async def test_a_virtual_clock_goes_by_seconds_as_by_a_timedelta() -> None:
    clock = VirtualClock()
    before = clock.now()
    await clock.advance(1.5)
    await clock.advance(timedelta(seconds=1))
    assert clock.now() == before + timedelta(seconds=2.5)


def deposit_one(_: Account, cents: int) -> Deposited:
    return Deposited("a", cents)


async def deposit_later(_: Account, cents: int) -> Deposited:
    return Deposited("a", cents)


def deposit_each(_: Account, *cents: int) -> Iterator[Deposited]:
    for each in cents:
        yield Deposited("a", each)


def deposit_nothing(_: Account) -> None: ...


async def test_what_is_decided_is_all_that_a_commands_handler_may_decide() -> None:
    await given(Account).when(deposit_one, 3).then(Deposited("a", 3))
    await given(Account).when(deposit_later, 3).then(Deposited("a", 3))
    await given(Account).when(deposit_each, 3, 4).then(Deposited("a", 3), Deposited("a", 4))
    await given(Account).when(deposit_nothing).then()


RELEASED = threading.Event()


def wait_for_the_release(_: str) -> bool:
    return RELEASED.wait(timeout=60)


@saga("released")
async def released(what: str) -> bool:
    waited = await step(wait_for_the_release, what)
    await sleep(timedelta(days=1))
    return waited


async def test_a_plain_function_in_a_thread_is_waited_for() -> None:
    RELEASED.clear()
    # Later than the loop has been turned for all that needs no thread.
    asyncio.get_running_loop().call_later(0.1, RELEASED.set)
    await given(released, "a").passes(days=1).then(WorkflowState.COMPLETED, result=True)


async def test_a_plain_function_that_waits_for_the_test_holds_its_clock_up_once(
    engine: WorkflowEngine, clock: VirtualClock, effects: Effects
) -> None:
    RELEASED.clear()
    effects.threads.patience = 0.2
    engine.register(released)
    handle = await engine.start(released, "a")
    try:
        before = asyncio.get_running_loop().time()
        for _ in range(50):
            await clock.advance(seconds=1)
        assert asyncio.get_running_loop().time() - before < 50 * effects.threads.patience
    finally:
        RELEASED.set()
    await clock.advance(days=1)
    assert await handle.result()
