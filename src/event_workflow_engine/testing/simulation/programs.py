"""Sagas made from their plans: their actions do what is planned for each attempt, and note it in the ledger."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.context import CompensationContext, StepContext, current_step
from event_workflow_engine.errors import OutcomeUnknownError
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.saga import Saga, SagaStep, Signal, saga, sleep, step, wait_for_signal
from event_workflow_engine.testing.simulation.loop import process_here

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.testing.simulation.invariants import Invariants
    from event_workflow_engine.testing.simulation.ledger import Ledger
    from event_workflow_engine.testing.simulation.plan import SagaPlan, StepPlan

__all__ = ["GO", "Actions", "actions_of", "program_of"]

GO: Final = Signal("go", int)


class Actions:
    """The action and the compensation of one step of one saga."""

    def __init__(self, saga_id: str, plan: StepPlan, ledger: Ledger, invariants: Invariants) -> None:
        self.plan = plan
        self._saga = saga_id
        self._ledger = ledger
        self._invariants = invariants
        self._undo_failures = plan.undo_fails

    async def act(self, attempt: int, key: str) -> str:
        """Do, or do not, as this attempt is planned to."""
        self._invariants.action_begins(self._saga, self.plan, attempt)
        outcome = self.plan.outcomes[min(attempt, len(self.plan.outcomes)) - 1]
        if outcome in ("ok", "lost"):
            self._ledger.note("did", self._saga, self.plan.name, key)
        if self.plan.takes:
            await asyncio.sleep(self.plan.takes)
        if outcome == "raise":
            raise ValueError("planned")
        if outcome != "ok":
            raise OutcomeUnknownError("planned")
        return key

    async def undo(self, attempt: int, key: str) -> None:
        """Fail as often as is planned, then undo."""
        self._invariants.compensation_begins(self._saga, self.plan.name, attempt)
        if self.plan.takes:
            await asyncio.sleep(self.plan.takes)
        if self._undo_failures > 0:
            self._undo_failures -= 1
            raise ValueError("planned")
        self._ledger.note("undid", self._saga, self.plan.name, key)

    @property
    def retry(self) -> RetryPolicy:
        """As many attempts as are planned."""
        return RetryPolicy(attempts=len(self.plan.outcomes), max_interruptions=100)


def actions_of(plan: SagaPlan, ledger: Ledger, invariants: Invariants) -> list[Actions]:
    """What the steps of a saga do, the same in all processes: the world is one."""
    return [Actions(plan.id, one, ledger, invariants) for one in plan.steps]


def program_of(plan: SagaPlan, actions: list[Actions]) -> Saga[Any, Any]:
    """The saga."""
    if plan.form == "function":
        return _function(plan, actions)
    steps = [_declared(one) for one in actions]
    in_order = plan.form == "sequential"
    return Saga(plan.id, steps, sequential=in_order, timeout=plan.timeout, on_failure=plan.on_failure)


async def undo_of_function(ctx: CompensationContext[Any, Any]) -> None:
    """The compensation of every step of a saga function, which has to be found by its name."""
    await process_here().holds[ctx.saga_id, ctx.step].undo(ctx.attempt, ctx.idempotency_key)


def _declared(actions: Actions) -> SagaStep[Any]:
    async def act(ctx: StepContext[Any]) -> str:
        return await actions.act(ctx.attempt, ctx.idempotency_key)

    plan = actions.plan
    return SagaStep(
        plan.name,
        act,
        _undo(actions),
        retry=actions.retry,
        after=plan.after,
        timeout=plan.timeout,
        idempotent=plan.idempotent,
    )


def _undo(actions: Actions) -> Callable[[CompensationContext[Any, Any]], Awaitable[None]] | None:
    if not actions.plan.undo:
        return None

    async def undo(ctx: CompensationContext[Any, Any]) -> None:
        await actions.undo(ctx.attempt, ctx.idempotency_key)

    return undo


def _function(plan: SagaPlan, actions: list[Actions]) -> Saga[Any, Any]:
    async def act(n: int) -> str:
        here = current_step()
        return await actions[n].act(here.attempt, here.idempotency_key)

    def stepped(n: int) -> Awaitable[Any]:
        one = actions[n]
        return step(
            act,
            n,
            name=one.plan.name,
            compensation=undo_of_function if one.plan.undo else None,
            retry=one.retry,
            timeout=one.plan.timeout,
            idempotent=one.plan.idempotent,
        )

    @saga(plan.id, timeout=plan.timeout, on_failure=plan.on_failure)
    async def body() -> int:
        n = 0
        for size, wait in plan.stages:
            await asyncio.gather(*(stepped(n + one) for one in range(size)))
            n += size
            if wait == "signal":
                await wait_for_signal(GO)
            elif wait:
                await sleep(wait)
        if plan.refuses:
            raise ValueError("planned")
        return n

    body.register_compensation(undo_of_function)
    return body
