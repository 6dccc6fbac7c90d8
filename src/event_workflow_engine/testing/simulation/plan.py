"""What is played: the sagas, what is asked of them, and the faults, as plain data that can be made smaller."""

from __future__ import annotations

from typing import Literal

import msgspec

from event_workflow_engine.testing.simulation.faults import Weather

__all__ = ["CallError", "Code", "Deploy", "Fault", "Plan", "Request", "SagaPlan", "SchedulePlan", "StepPlan"]

Outcome = Literal["ok", "raise", "unknown", "lost"]
"""Of an attempt: it happens; it does not and says so; it does not, or does, and nobody knows."""


FaultKind = Literal["kill", "stop", "freeze", "cut", "clock", "restart"]

Code = Literal["old", "both", "new", "none", "reordered", "renamed"]
"""What a process has of a saga: its first version, its second beside that or alone, nothing, or a first version that
was changed under its number: with steps in another order, or one under another name."""


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
        id: Of it, where a client starts it, and its definition's name.
        form: With steps side by side or one after the other, or a function.
        steps: In order. A function runs those of one stage side by side.
        stages: Of a function: how many steps each stage has, and what it waits for behind them: seconds, "signal", or
            the end of a child saga by its name.
        refuses: Whether a function raises at its end.
        timeout: Of the saga, in seconds.
        on_failure: What becomes of steps in flight when one fails.
        queued: Whether it waits its turn in the queue, which lets one saga run at a time.
        begun_by: Who starts it: a client, its parent, or a schedule, and then once for each slot.
        version: Of the definition.
    """

    id: str
    form: Literal["dag", "sequential", "function"]
    steps: tuple[StepPlan, ...]
    stages: tuple[tuple[int, float | str], ...] = ()
    refuses: bool = False
    timeout: float | None = None
    on_failure: Literal["settle", "cancel"] = "settle"
    queued: bool = False
    begun_by: Literal["client", "parent", "schedule"] = "client"
    version: int = 1

    @property
    def signals(self) -> int:
        """How many it waits for."""
        return sum(wait == "signal" for _, wait in self.stages)

    @property
    def children(self) -> tuple[str, ...]:
        """The sagas that it runs."""
        return tuple(wait for _, wait in self.stages if isinstance(wait, str) and wait != "signal")


class SchedulePlan(msgspec.Struct, frozen=True):
    """A schedule.

    Attributes:
        id: Of it.
        kind: Every so many seconds, each so many minutes by the wall clock, or once.
        every: Seconds, or minutes of a cron line, or seconds from when it is asked for.
        missed: Its policy.
        saga: What it starts; ``None``: it calls a function.
    """

    id: str
    kind: Literal["every", "cron", "once"]
    every: int
    missed: Literal["once", "skip", "all"] = "once"
    saga: str | None = None


class Request(msgspec.Struct, frozen=True):
    """What a client asks for, at some time.

    ``start``, ``signal``, ``cancel``, and ``pause`` with a resume, are for a saga; with ``upgrade`` the client has its
    second version from then on. ``append`` is for a stream so named, ``schedule`` and ``unschedule`` for a schedule.
    """

    at: float
    what: Literal["start", "signal", "cancel", "pause", "upgrade", "append", "schedule", "unschedule"]
    saga: str


class Fault(msgspec.Struct, frozen=True):
    """What happens to a process: it is killed, stopped, frozen or cut off for a while, or its clock is set.

    ``restart`` is the server's, whichever process is named: it is killed with all that is under way, and comes back.
    """

    at: float
    what: FaultKind
    worker: int
    seconds: float = 0.0


class Deploy(msgspec.Struct, frozen=True):
    """A process comes back with other code, or is given more of it while it runs.

    Attributes:
        at: When.
        worker: Whose process.
        how: It is killed, is stopped, or registers what it has not.
        codes: What it has of each saga from then on; the first version of those that are not named.
        seconds: How long it is gone.
    """

    at: float
    worker: int
    how: Literal["kill", "stop", "register"]
    codes: dict[str, Code]
    seconds: float = 0.0


class CallError(msgspec.Struct, frozen=True):
    """The n-th call that a worker's processes make of their storage goes wrong.

    Attributes:
        worker: Whose.
        call: From 1.
        how: Nothing is done; or it is done and the answer lost; or it is done after the caller was told of a failure.
    """

    worker: int
    call: int
    how: Literal["refused", "lost", "late"] = "refused"


class Plan(msgspec.Struct, frozen=True):
    """A whole run but for the order in which the processes take turns, which is the seed's.

    Attributes:
        seed: Of it.
        workers: How many processes run sagas.
        weather: Of the network, until all requests are made and all faults have happened.
        sagas: What is started.
        requests: What is asked, in order of time.
        faults: What goes wrong, in order of time.
        deploys: Of new code, in order of time.
        schedules: What can be asked to be scheduled.
        errors: Single calls that go wrong.
    """

    seed: int
    workers: int
    weather: Weather
    sagas: tuple[SagaPlan, ...]
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]
    deploys: tuple[Deploy, ...] = ()
    schedules: tuple[SchedulePlan, ...] = ()
    errors: tuple[CallError, ...] = ()
