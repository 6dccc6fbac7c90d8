"""Draws the plan that a seed stands for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from event_workflow_engine.testing.simulation.faults import Weather
from event_workflow_engine.testing.simulation.plan import (
    Code,
    Deploy,
    Fault,
    Plan,
    Request,
    SagaPlan,
    SchedulePlan,
    StepPlan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine.testing.simulation.plan import FaultKind, Outcome

__all__ = ["plan_of"]

_LASTS: Final = 20.0
"""Seconds in which everything is asked and goes wrong."""


def plan_of(seed: int) -> Plan:
    """The plan that a seed stands for."""
    chance = random.Random(f"plan {seed}")
    workers = chance.choice((1, 2, 2, 3))
    sagas = [_saga(chance, f"s{n}") for n in range(chance.choice((1, 1, 2, 2, 3, 4)))]
    asked = [one for saga in sagas for one in _requests(chance, saga)]
    asked += [
        Request(chance.random() * _LASTS, "append", f"things-{n % 2}") for n in range(chance.choice((0, 0, 1, 6)))
    ]
    sagas = [one for saga in sagas for one in _with_child(chance, saga)]
    schedules: list[SchedulePlan] = []
    if chance.random() < 0.15:
        schedules = [_schedule(chance, f"t{n}") for n in range(chance.choice((1, 1, 2)))]
        sagas += [_started_by(chance, one.saga) for one in schedules if one.saga is not None]
        asked += [request for one in schedules for request in _schedulings(chance, one)]
    deploys: list[Deploy] = []
    if chance.random() < 0.3:
        asked += _upgrades(chance, sagas)
        deploys = _deploys(chance, sagas, workers)
    requests = sorted(asked, key=lambda one: one.at)
    faults = sorted((_fault(chance, workers) for _ in range(chance.choice((0, 1, 1, 2, 2, 3)))), key=lambda one: one.at)
    weather = _weather(chance)
    if chance.random() < 0.25:
        away = chance.choice((0.0, 0.5, 5.0, 20.0))
        faults = sorted([*faults, Fault(chance.random() * _LASTS, "restart", 0, away)], key=lambda one: one.at)
    return Plan(
        seed,
        workers,
        weather,
        tuple(sagas),
        tuple(requests),
        tuple(faults),
        tuple(deploys),
        tuple(schedules),
    )


def _weather(chance: random.Random) -> Weather:
    def sometimes(most: float) -> float:
        return chance.random() * most if chance.random() < 0.3 else 0.0

    return Weather(
        latency=chance.choice((0.0005, 0.005, 0.05)),
        fsync=chance.choice((0.0, 0.005, 0.2)),
        refused=sometimes(0.1),
        lost_answer=sometimes(0.1),
        late_commit=sometimes(0.05),
        late_bell=sometimes(0.5),
        lost_read=sometimes(0.1),
        slow_read=sometimes(0.2),
    )


def _step(chance: random.Random, name: str, earlier: list[str]) -> StepPlan:
    outcomes: list[Outcome] = []
    while chance.random() < 0.25 and len(outcomes) < 2:
        outcomes.append(chance.choice(("raise", "unknown", "lost")))
    if not outcomes or chance.random() < 0.6:
        outcomes.append("ok")
    return StepPlan(
        name,
        tuple(outcomes),
        takes=chance.choice((0.0, 0.0, 0.0, 0.1, 3.0)),
        undo=chance.random() < 0.8,
        undo_fails=chance.choice((0, 0, 0, 1, 2)),
        after=tuple(one for one in earlier if chance.random() < 0.4),
        timeout=chance.choice((None, None, None, 1.0, 10.0)),
        idempotent=chance.random() < 0.85,
    )


def _saga(chance: random.Random, saga_id: str) -> SagaPlan:
    form = chance.choice(("dag", "sequential", "function", "function"))
    steps: list[StepPlan] = []
    for n in range(chance.choice((1, 2, 3, 4))):
        steps.append(_step(chance, "abcd"[n], [one.name for one in steps] if form == "dag" else []))
    common: dict[str, Any] = {
        "timeout": chance.choice((None, None, None, None, 5.0, 60.0)),
        "on_failure": chance.choice(("settle", "settle", "cancel")),
        "queued": chance.random() < 0.2,
    }
    if form != "function":
        return SagaPlan(saga_id, "dag" if form == "dag" else "sequential", tuple(steps), **common)
    stages: list[tuple[int, float | Literal["signal"]]] = []
    left = len(steps)
    while left:
        size = chance.randint(1, min(2, left))
        left -= size
        stages.append((size, chance.choice((0.0, 0.0, 1.0, 10.0, "signal"))))
    return SagaPlan(saga_id, "function", tuple(steps), tuple(stages), refuses=chance.random() < 0.25, **common)


def _requests(chance: random.Random, saga: SagaPlan) -> Iterator[Request]:
    start = chance.random() * _LASTS / 4
    yield Request(start, "start", saga.id)
    for _ in range(saga.signals):
        yield Request(start + chance.random() * _LASTS, "signal", saga.id)
    if chance.random() < 0.15:
        yield Request(start + chance.random() * 5, "cancel", saga.id)
    if chance.random() < 0.15:
        yield Request(start + chance.random() * 5, "pause", saga.id)


def _fault(chance: random.Random, workers: int) -> Fault:
    what: FaultKind = chance.choice(("kill", "kill", "stop", "freeze", "cut", "clock"))
    seconds = {"clock": chance.choice((-600.0, -5.0, 5.0, 600.0))}.get(what, chance.choice((1.0, 5.0, 20.0, 40.0)))
    return Fault(chance.random() * _LASTS, what, chance.randrange(workers), seconds)


# -- children --------------------------------------------------------------------------------------------------------


def _with_child(chance: random.Random, saga: SagaPlan) -> Iterator[SagaPlan]:
    """The saga, and maybe one that it runs behind one of its stages."""
    if saga.form != "function" or chance.random() >= 0.25:
        yield saga
        return
    child = msgspec.structs.replace(_saga(chance, f"{saga.id}-child"), queued=False, begun_by="parent")
    # Nobody knows when it is there to be sent signals.
    child = msgspec.structs.replace(child, stages=tuple((size, 0.0) for size, _ in child.stages))
    place = chance.randrange(len(saga.stages))
    size, wait = saga.stages[place]
    behind: list[tuple[int, float | str]] = [(size, child.id)]
    if wait:
        behind = [(0, child.id), (size, wait)] if chance.random() < 0.5 else [(size, child.id), (0, wait)]
    yield msgspec.structs.replace(saga, stages=(*saga.stages[:place], *behind, *saga.stages[place + 1 :]))
    yield child


# -- schedules -------------------------------------------------------------------------------------------------------


def _schedule(chance: random.Random, task: str) -> SchedulePlan:
    kind: Literal["every", "cron", "once"] = chance.choice(("every", "every", "cron", "once"))
    return SchedulePlan(
        task,
        kind,
        every={"every": chance.choice((7, 20, 60)), "cron": chance.choice((1, 5)), "once": chance.randrange(30)}[kind],
        missed=chance.choice(("once", "skip", "all")),
        saga=f"{task}-saga" if chance.random() < 0.5 else None,
    )


def _started_by(chance: random.Random, name: str) -> SagaPlan:
    steps = tuple(StepPlan("ab"[n], takes=chance.choice((0.0, 0.1))) for n in range(chance.choice((1, 2))))
    return SagaPlan(name, "sequential", steps, begun_by="schedule")


def _schedulings(chance: random.Random, schedule: SchedulePlan) -> Iterator[Request]:
    at = chance.random() * _LASTS / 2
    yield Request(at, "schedule", schedule.id)
    if schedule.kind != "once" and chance.random() < 0.2:
        yield Request(at, "schedule", schedule.id)  # as startup code does in each process
    if chance.random() < 0.2:
        yield Request(at + chance.random() * _LASTS, "unschedule", schedule.id)


# -- deploys ---------------------------------------------------------------------------------------------------------


def _upgrades(chance: random.Random, sagas: list[SagaPlan]) -> list[Request]:
    return [
        Request(chance.random() * _LASTS / 3, "upgrade", saga.id)
        for saga in sagas
        if saga.begun_by == "client" and chance.random() < 0.3
    ]


def _deploys(chance: random.Random, sagas: list[SagaPlan], workers: int) -> list[Deploy]:
    changes: dict[str, Code] = {saga.id: chance.choice(("reordered", "renamed")) for saga in sagas}
    deploys = []
    for _ in range(chance.choice((1, 2, 3))):
        codes: dict[str, Code] = {}
        for saga in sagas:
            codes.update(_code(chance, saga, changes[saga.id]))
        how: Literal["kill", "stop", "register"] = chance.choice(("kill", "stop", "stop", "register"))
        deploys.append(
            Deploy(chance.random() * _LASTS, chance.randrange(workers), how, codes, chance.choice((0.1, 1.0, 20.0)))
        )
    return sorted(deploys, key=lambda one: one.at)


def _code(chance: random.Random, saga: SagaPlan, changed: Code) -> dict[str, Code]:
    """What a process has of a saga, and of those that it runs: without them it could not be registered."""
    if saga.begun_by == "parent" or chance.random() < 0.3:
        return {}
    if saga.begun_by == "schedule":
        return {saga.id: "none"} if chance.random() < 0.3 else {}
    if saga.form == "function" and chance.random() < 0.4:
        return {saga.id: changed}
    code: Code = chance.choice(("both", "both", "new", "none"))
    return {saga.id: code, **dict.fromkeys(saga.children, code)} if code == "none" else {saga.id: code}
