"""Sagas made from their plans: their actions do what is planned for each attempt, and note it in the ledger."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.context import CompensationContext, StepContext, current_saga, current_step
from event_workflow_engine.errors import OutcomeUnknownError
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.saga import Saga, SagaStep, Signal, run_saga, saga, sleep, step, wait_for_signal
from event_workflow_engine.testing.simulation.codes import NEW_STEP, OTHER_NAME
from event_workflow_engine.testing.simulation.loop import process_here
from event_workflow_engine.testing.simulation.plan import StepPlan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from event_workflow_engine.testing.simulation.invariants import Invariants
    from event_workflow_engine.testing.simulation.ledger import Ledger
    from event_workflow_engine.testing.simulation.plan import SagaPlan

__all__ = ["GO", "Actions", "actions_of", "program_of"]

GO: Final = Signal("go", int)


class Actions:
    """The action and the compensation of one step of a saga, in all versions of it and in all processes."""

    def __init__(self, plan: StepPlan, ledger: Ledger, invariants: Invariants) -> None:
        self.plan = plan
        self._ledger = ledger
        self._invariants = invariants
        self._undo_failures: dict[str, int] = {}

    async def act(self, ctx: StepContext[Any], version: int) -> str:
        """Do, or do not, as this attempt is planned to; as a version of the saga has it done."""
        attempt, saga_id, key = ctx.attempt, ctx.saga_id, ctx.idempotency_key
        self._invariants.action_begins(saga_id, self.plan, attempt, version)
        outcome = self.plan.outcomes[min(attempt, len(self.plan.outcomes)) - 1]
        if outcome in ("ok", "lost"):
            self._ledger.note("did", saga_id, self.plan.name, key)
        if self.plan.takes:
            await asyncio.sleep(self.plan.takes)
        if outcome == "raise":
            raise ValueError("planned")
        if outcome != "ok":
            raise OutcomeUnknownError("planned")
        return key

    async def act_in_body(self, version: int) -> str:
        """Do it as a step of a saga function's body."""
        return await self.act(current_step(), version)

    async def undo(self, ctx: CompensationContext[Any, Any]) -> None:
        """Fail as often as is planned, then undo."""
        saga_id = ctx.saga_id
        self._invariants.compensation_begins(saga_id, self.plan.name, ctx.attempt)
        if self.plan.takes:
            await asyncio.sleep(self.plan.takes)
        failed = self._undo_failures.get(saga_id, 0)
        if failed < self.plan.undo_fails:
            self._undo_failures[saga_id] = failed + 1
            raise ValueError("planned")
        self._ledger.note("undid", saga_id, self.plan.name, ctx.idempotency_key)

    @property
    def retry(self) -> RetryPolicy:
        """As many attempts as are planned."""
        return RetryPolicy(attempts=len(self.plan.outcomes), max_interruptions=100)


def actions_of(plan: SagaPlan, ledger: Ledger, invariants: Invariants) -> dict[str, Actions]:
    """What the steps of a saga do by their names, the same in all processes: the world is one."""
    others = [StepPlan(NEW_STEP)]
    if plan.form == "function":
        others.append(msgspec.structs.replace(plan.steps[-1], name=OTHER_NAME))
    return {one.name: Actions(one, ledger, invariants) for one in (*plan.steps, *others)}


def program_of(
    plan: SagaPlan, actions: Mapping[str, Actions], children: Mapping[str, Saga[Any, Any]], invariants: Invariants
) -> Saga[Any, Any]:
    """The saga, which finds those that it runs among `children`."""
    if plan.form == "function":
        return _function(plan, actions, children, invariants)
    steps = [_declared(plan, one, actions[one.name]) for one in plan.steps]
    return Saga(
        plan.id,
        steps,
        version=plan.version,
        sequential=plan.form == "sequential",
        timeout=plan.timeout,
        on_failure=plan.on_failure,
    )


async def undo_of_function(ctx: CompensationContext[Any, Any]) -> None:
    """The compensation of every step of a saga function, which has to be found by its name."""
    await process_here().holds[current_saga().saga, ctx.step].undo(ctx)


def _declared(saga_plan: SagaPlan, plan: StepPlan, actions: Actions) -> SagaStep[Any]:
    # Methods, not functions made anew: what a function says about itself is looked at once.
    return SagaStep(
        plan.name,
        partial(actions.act, version=saga_plan.version),
        actions.undo if plan.undo else None,
        retry=actions.retry,
        after=plan.after,
        timeout=plan.timeout,
        idempotent=plan.idempotent,
    )


def _function(
    plan: SagaPlan, actions: Mapping[str, Actions], children: Mapping[str, Saga[Any, Any]], invariants: Invariants
) -> Saga[Any, Any]:
    def stepped(name: str) -> Awaitable[Any]:
        one = actions[name]
        return step(
            one.act_in_body,
            plan.version,
            name=name,
            compensation=undo_of_function if one.plan.undo else None,
            retry=one.retry,
            timeout=one.plan.timeout,
            idempotent=one.plan.idempotent,
        )

    @saga(plan.id, version=plan.version, timeout=plan.timeout, on_failure=plan.on_failure)
    async def body() -> int:
        n = 0
        for size, wait in plan.stages:
            await asyncio.gather(*(stepped(one.name) for one in plan.steps[n : n + size]))
            n += size
            if wait == "signal":
                await wait_for_signal(GO)
            elif isinstance(wait, str):
                invariants.child_returned(current_saga().saga_id, wait, await run_saga(children[wait]))
            elif wait:
                await sleep(wait)
        if plan.refuses:
            raise ValueError("planned")
        return n

    body.register_compensation(undo_of_function)
    return body
