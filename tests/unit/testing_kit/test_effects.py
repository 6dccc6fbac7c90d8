"""The ledger of effects: what balances, and each way in which it does not."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    CompensationContext,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    StepContext,
    WorkflowEngine,
    current_step,
)
from event_workflow_engine.context import STEP
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.testing import Effects, StepFaker, UnbalancedEffectsError, fail_times, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def act() -> str:
    return "done"


def act_in_thread() -> str:
    return "done"


async def undo() -> None: ...


async def refuse() -> None:
    raise ValueError("no")


ONCE = RetryPolicy(attempts=3, delay=0, jitter=0)


def failing(*steps: SagaStep[Any, Any]) -> Saga[Any, Any]:
    return Saga("failing", [*steps, SagaStep("refuse", refuse)], sequential=True)


async def test_what_is_done_stands_and_what_is_undone_does_not(engine: WorkflowEngine, effects: Effects) -> None:
    done = Saga("done", [SagaStep("a", act, undo), SagaStep("b", act_in_thread, undo)], sequential=True)
    undone = failing(SagaStep("a", act, undo), SagaStep("b", act_in_thread), SagaStep("c", act_in_thread, undo))
    engine.register(done, undone)
    await engine.execute(done, id="d")
    with pytest.raises(SagaFailedError):
        await engine.execute(undone, id="u")
    assert (effects.standing("d"), effects.undone("d")) == (["a", "b"], [])
    assert (effects.standing("u"), effects.undone("u")) == (["b"], ["a", "c"])
    await effects.check(engine)


async def test_an_attempt_that_failed_is_none_and_one_of_unknown_outcome_is_undone(
    engine: WorkflowEngine, effects: Effects, fake_step: StepFaker
) -> None:
    saga = failing(SagaStep("a", act, undo, retry=ONCE), SagaStep("b", act_in_thread, undo))
    fake_step(act, fail_times(2, "done"))
    fake_step(act_in_thread, unknown())
    engine.register(saga)
    with pytest.raises(SagaFailedError):
        await engine.execute(saga, id="s")
    assert (effects.standing("s"), effects.undone("s")) == ([], ["a", "b"])
    await effects.check(engine)


class Stage:
    """The contexts of the steps of two sagas, which have ended; what they do is put on by hand."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self.effects = Effects()
        self._engine = engine
        self._contexts: dict[str, Any] = {}

    def note(self, fn: Any) -> Any:
        async def call(*args: Any) -> Any:
            context = current_step()
            self._contexts[f"{name_of(context)} {context.saga_id} {context.step}"] = context
            return await fn(*args)

        return call

    async def set_up(self) -> None:
        undone = Saga("undone", [SagaStep("a", act, undo), SagaStep("b", act, undo), SagaStep("no", refuse)])
        done = Saga("done", [SagaStep("a", act, undo)])
        self._engine.register(undone, done)
        with pytest.raises(SagaFailedError):
            await self._engine.execute(undone, id="s")
        await self._engine.execute(done, id="t")
        acted = self._contexts["do t a"]
        self._contexts["undo t a"] = CompensationContext(
            acted.in_saga(), "a", None, acted.results, acted.idempotency_key, 1, 1, None,
            result="done", outcome=Outcome.SUCCEEDED,
        )  # fmt: skip

    async def play(self, *script: str) -> None:
        for line in script:
            if line == "crash":
                self.effects.crashed()
                continue
            token = STEP.set(self._contexts[line.replace("half", "do")])
            with suppress(TimeoutError):
                await self.effects.around()(run_out_of_time if line.startswith("half") else act)()
            STEP.reset(token)

    async def check(self) -> None:
        await self.effects.check(self._engine)


def name_of(context: Any) -> str:
    return "undo" if isinstance(context, CompensationContext) else "do"


async def run_out_of_time() -> None:
    raise TimeoutError


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    engine = WorkflowEngine("memory://")
    made = Stage(engine)
    engine.intercept(made.note)
    async with engine:
        await made.set_up()
        yield made


@pytest.mark.parametrize(
    "script",
    [
        ["do s a", "do s b", "undo s b", "undo s a", "do t a"],
        ["do s a", "do s b", "undo s b", "crash", "undo s b", "undo s a", "do t a"],
        ["half t a", "do t a"],
        ["do t a", "crash", "do t a"],
    ],
)
async def test_what_balances(stage: Stage, script: list[str]) -> None:
    await stage.play(*script)
    await stage.check()


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (["do s a", "undo s a", "undo s a"], "step 'a' of saga 's': undone twice"),
        (["do s a", "undo s a", "do s a"], "step 'a' of saga 's': done after it was undone"),
        (["undo s b"], "step 'b' of saga 's': undone without being done"),
        (["half s b", "undo s b"], "step 'b' of saga 's': undone without being done"),
        (["do s a"], "step 'a' of saga 's': left as done, and its saga has ended as COMPENSATED"),
        (["half s a"], "step 'a' of saga 's': left neither done nor undone, and its saga has ended as COMPENSATED"),
        (["do t a", "undo t a"], "step 'a' of saga 't': undone, and its saga has completed"),
        (["half t a"], "step 'a' of saga 't': left neither done nor undone, and its saga has completed"),
    ],
)
async def test_what_does_not_balance_is_named(stage: Stage, script: list[str], complaint: str) -> None:
    await stage.play(*script)
    with pytest.raises(UnbalancedEffectsError) as raised:
        await stage.check()
    assert str(raised.value).splitlines()[1:] == [f"  {complaint}"]


async def test_transactional_steps_are_not_in_it_nor_are_their_compensations(
    engine: WorkflowEngine, effects: Effects
) -> None:
    async def write(_: StepContext[Any]) -> None: ...

    saga = failing(SagaStep("write", write, undo, transactional=True), SagaStep("a", act, undo))
    engine.register(saga)
    with pytest.raises(SagaFailedError):
        await engine.execute(saga, id="s")
    facts = [event.type for event in await engine.handle("s").history()]
    assert facts.count("compensation-succeeded") == 2
    assert (effects.standing("s"), effects.undone("s")) == ([], ["a"])
    await effects.check(engine)
