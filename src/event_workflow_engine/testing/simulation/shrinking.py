"""Making a plan that breaks something smaller, as long as it still does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from event_workflow_engine.testing.simulation.faults import Weather
from event_workflow_engine.testing.simulation.plan import Plan, StepPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from event_workflow_engine.testing.simulation.plan import SagaPlan

__all__ = ["Shrunk", "shrink"]


@dataclass(frozen=True)
class Shrunk:
    """The smallest plan that was found, and how many were tried."""

    plan: Plan
    tried: int


def shrink(plan: Plan, breaks: Callable[[Plan], bool], *, most: int = 300) -> Shrunk:
    """Take away what is not needed, one thing at a time (delta debugging, Zeller 2002).

    Args:
        plan: Breaks something.
        breaks: Whether a plan does.
        most: How many plans to try.
    """
    tried = 0
    while tried < most:
        for smaller in _smaller(plan):
            tried += 1
            if breaks(smaller):
                plan = smaller
                break
            if tried >= most:
                break
        else:
            break
    return Shrunk(plan, tried)


def _smaller(plan: Plan) -> Iterator[Plan]:
    """All plans with one thing less, the largest things first."""
    replace = msgspec.structs.replace
    yield from _fewer(plan)
    for request in plan.requests:
        if request.what not in ("start", "signal", "schedule"):
            yield replace(plan, requests=tuple(one for one in plan.requests if one is not request))
    for name, calm in msgspec.structs.asdict(Weather()).items():
        if getattr(plan.weather, name) != calm:
            yield replace(plan, weather=replace(plan.weather, **{name: calm}))
    struck: list[Any] = [*plan.faults, *plan.deploys, *plan.errors]
    if plan.workers > 1 and all(one.worker < plan.workers - 1 for one in struck):
        yield replace(plan, workers=plan.workers - 1)
    for n, saga in enumerate(plan.sagas):
        for simpler in _simpler(saga):
            yield replace(plan, sagas=(*plan.sagas[:n], simpler, *plan.sagas[n + 1 :]))


def _fewer(plan: Plan) -> Iterator[Plan]:
    """All plans with a saga, a schedule or something that goes wrong less."""
    replace = msgspec.structs.replace
    for saga in plan.sagas:
        if saga.begun_by != "parent" and len(plan.sagas) > 1 + len(saga.children):
            yield _without(plan, {saga.id, *saga.children})
    for schedule in plan.schedules:
        if schedule.saga is None:
            yield _without(plan, {schedule.id})
    for name in ("faults", "deploys", "errors"):
        for one in getattr(plan, name):
            yield replace(plan, **{name: tuple(other for other in getattr(plan, name) if other is not one)})
    for n, deploy in enumerate(plan.deploys):
        for saga_id in deploy.codes:
            if not any(saga_id in one.children for one in plan.sagas):
                gone = {saga_id, *(child for one in plan.sagas if one.id == saga_id for child in one.children)}
                fewer = replace(deploy, codes={one: code for one, code in deploy.codes.items() if one not in gone})
                yield replace(plan, deploys=(*plan.deploys[:n], fewer, *plan.deploys[n + 1 :]))


def _without(plan: Plan, names: set[str]) -> Plan:
    """A plan without some sagas or schedules."""
    schedules = tuple(one for one in plan.schedules if one.id not in names and one.saga not in names)
    gone = names | {one.id for one in plan.schedules if one not in schedules}
    deploys = [
        msgspec.structs.replace(one, codes={saga: code for saga, code in one.codes.items() if saga not in names})
        for one in plan.deploys
    ]
    return msgspec.structs.replace(
        plan,
        sagas=tuple(one for one in plan.sagas if one.id not in names),
        requests=tuple(one for one in plan.requests if one.saga not in gone),
        deploys=tuple(deploys),
        schedules=schedules,
    )


def _simpler(saga: SagaPlan) -> Iterator[SagaPlan]:
    replace = msgspec.structs.replace
    if len(saga.steps) > 1:
        if saga.form != "function":
            last = saga.steps[-1].name
            kept = tuple(
                replace(one, after=tuple(name for name in one.after if name != last)) for one in saga.steps[:-1]
            )
            yield replace(saga, steps=kept)
        else:
            size, wait = saga.stages[-1]
            rest = ((size - 1, wait),) if size > 1 else ()
            if size and (rest or not isinstance(wait, str)):
                yield replace(saga, steps=saga.steps[:-1], stages=(*saga.stages[:-1], *rest))
    for n, step in enumerate(saga.steps):
        for name, plain in msgspec.structs.asdict(StepPlan("")).items():
            if name not in ("name", "undo") and getattr(step, name) != plain:
                simpler = replace(step, **{name: plain})
                yield replace(saga, steps=(*saga.steps[:n], simpler, *saga.steps[n + 1 :]))
