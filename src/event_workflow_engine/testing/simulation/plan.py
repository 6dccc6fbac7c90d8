"""What a seed stands for: the sagas, what is asked of them, and the faults, as plain data that can be made smaller."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from event_workflow_engine.testing.simulation.faults import Weather

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Fault", "Plan", "Request", "SagaPlan", "StepPlan", "plan_of"]

Outcome = Literal["ok", "raise", "unknown", "lost"]
"""Of an attempt: it happens; it does not and says so; it does not, or does, and nobody knows."""


FaultKind = Literal["kill", "stop", "freeze", "cut", "clock"]


class StepPlan(msgspec.Struct, frozen=True):
    """A step.

    Attributes:
        name: Of it.
        outcomes: Of its attempts, of which there are so many; behind an "ok" come none.
        takes: Seconds that its action takes.
        undo: Whether it has a compensation.
        undo_fails: How often that raises before it does its work.
        after: The steps that come before it, in a saga with steps.
        timeout: Of an attempt, in seconds.
        idempotent: Whether it may be tried again when nobody knows whether it happened.
    """

    name: str
    outcomes: tuple[Outcome, ...] = ("ok",)
    takes: float = 0.0
    undo: bool = True
    undo_fails: int = 0
    after: tuple[str, ...] = ()
    timeout: float | None = None
    idempotent: bool = True


class SagaPlan(msgspec.Struct, frozen=True):
    """A saga.

    Attributes:
        id: Of it.
        form: With steps side by side or one after the other, or a function.
        steps: In order. A function runs those of one stage side by side.
        stages: Of a function: how many steps each stage has, and what it waits for behind them: seconds, or "signal".
        refuses: Whether a function raises at its end.
        timeout: Of the saga, in seconds.
        on_failure: What becomes of steps in flight when one fails.
        queued: Whether it waits its turn in the queue, which lets one saga run at a time.
    """

    id: str
    form: Literal["dag", "sequential", "function"]
    steps: tuple[StepPlan, ...]
    stages: tuple[tuple[int, float | Literal["signal"]], ...] = ()
    refuses: bool = False
    timeout: float | None = None
    on_failure: Literal["settle", "cancel"] = "settle"
    queued: bool = False

    @property
    def signals(self) -> int:
        """How many it waits for."""
        return sum(wait == "signal" for _, wait in self.stages)


class Request(msgspec.Struct, frozen=True):
    """What a client asks for, at some time.

    ``start``, ``signal``, ``cancel``, and ``pause`` with a resume, are for a saga; ``append`` is for a stream so named.
    """

    at: float
    what: Literal["start", "signal", "cancel", "pause", "append"]
    saga: str


class Fault(msgspec.Struct, frozen=True):
    """What happens to a process: it is killed, stopped, frozen or cut off for a while, or its clock is set."""

    at: float
    what: FaultKind
    worker: int
    seconds: float = 0.0


class Plan(msgspec.Struct, frozen=True):
    """A whole run but for the order in which the processes take turns, which is the seed's.

    Attributes:
        seed: Of it.
        workers: How many processes run sagas.
        weather: Of the network, until all requests are made and all faults have happened.
        sagas: What is started.
        requests: What is asked, in order of time.
        faults: What goes wrong, in order of time.
    """

    seed: int
    workers: int
    weather: Weather
    sagas: tuple[SagaPlan, ...]
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]


_LASTS: Final = 20.0
"""Seconds in which everything is asked and goes wrong."""


def plan_of(seed: int) -> Plan:
    """The plan that a seed stands for."""
    chance = random.Random(f"plan {seed}")
    workers = chance.choice((1, 2, 2, 3))
    sagas = tuple(_saga(chance, f"s{n}") for n in range(chance.choice((1, 1, 2, 2, 3, 4))))
    asked = [one for saga in sagas for one in _requests(chance, saga)]
    asked += [
        Request(chance.random() * _LASTS, "append", f"things-{n % 2}") for n in range(chance.choice((0, 0, 1, 6)))
    ]
    requests = sorted(asked, key=lambda one: one.at)
    faults = sorted((_fault(chance, workers) for _ in range(chance.choice((0, 1, 1, 2, 2, 3)))), key=lambda one: one.at)
    return Plan(seed, workers, _weather(chance), sagas, tuple(requests), tuple(faults))


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
