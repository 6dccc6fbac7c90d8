"""What a saga waits for: as it is kept in its row while no worker has it, and in words. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from event_workflow_engine.clock import from_micros, told
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from event_workflow_engine.journal import Journal

__all__ = ["Wait", "first_waits", "kept_waits", "open_waits", "read_waits", "said"]

_MOST: Final = 8
"""A saga may wait for thousands of things at once; its row tells so many, those that come first."""

Kind = Literal[
    "signal", "sleep", "attempt", "undo", "deadline", "more",
    "step", "compensation", "child", "worker", "code", "queue", "not-before", "resume", "decision",
]  # fmt: skip


_SAID: Final[dict[Kind, tuple[str, str]]] = {
    "signal": ("waits for signal {name!r}", " until {at}"),
    "sleep": ("sleeps", " until {at}"),
    "attempt": ("waits for attempt {number} of step {name!r}", " at {at}"),
    "undo": ("waits for attempt {number} to undo step {name!r}", " at {at}"),
    "deadline": ("has time", " until {at}"),
    "more": ("and {number} more", ""),
    "step": ("runs step {name!r}", ""),
    "compensation": ("undoes step {name!r}", ""),
    "child": ("waits for child saga {name!r} ({saga} v{number}, {state})", ""),
    "worker": ("waits for a worker", " since {at}"),
    "code": ("waits for code that no worker has: {name} v{number}", ""),
    "queue": ("waits in queue {name!r}", ""),
    "not-before": ("waits in queue {name!r}", " until {at}"),
    "resume": ("is paused: waits for a resume", ""),
    "decision": ("needs intervention: waits for a decision", ""),
}
"""Each kind in words, and what is added where its time is known."""


class Wait(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that a saga waits for, or that it does.

    Attributes:
        kind: ``signal`` `name`, until `at` where it has a timeout; ``sleep`` until `at`; ``attempt`` `number` of step
            `name` at `at`; ``undo``: the same of its compensation; ``deadline``: its own, at `at`; ``more``: `number`
            further things; ``step`` and ``compensation``: attempt `number` of that of step `name` runs; ``child``: it
            waits for the end of the child saga with the id `name`, which is of version `number` of the definition
            `saga` and in `state`; ``worker``: it is due since `at`, or given to a worker, and none has taken it yet;
            ``code``: it could go on, and no living worker has version `number` of the saga `name`; ``queue`` `name`,
            where `number` of its partition is first served, 1 is next; ``not-before`` `at`, in the queue `name`;
            ``resume``: it is paused; ``decision``: it needs intervention.
        name: Of a signal, a step, a queue or a saga; the id of a child saga.
        number: Which attempt, place or version, or how many.
        at: When.
        saga: Of a child saga: its definition's name.
        state: Of a child saga: its state. Where that is an end, or ``NEEDS_INTERVENTION``, this saga is about to go on.
    """

    kind: Kind
    name: str = ""
    number: int | None = None
    at: datetime | None = None
    saga: str = ""
    state: str = ""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    kind: Kind
    name: str
    number: int | None
    at: int | None


def kept_waits(journal: Journal, timers: Iterable[str], signals: Iterable[tuple[str, str | None]]) -> str | None:
    """What a saga's row says while it is out of memory; ``None``: the row's state says it all.

    Args:
        journal: The saga's.
        timers: Those that its body waits for, a signal's own among them.
        signals: Those that it waits for, each with the timer that ends the wait.
    """
    waits = _open(journal, timers, signals)
    if not waits:
        return None
    kept = waits[:_MOST]
    if len(waits) > _MOST:
        kept.append(_Kept("more", "", len(waits) - _MOST, None))
    return msgspec.json.encode(kept).decode()


def first_waits(waits: list[Wait]) -> list[Wait]:
    """So many of them as a saga's row would tell, and how many more there are; what was read of a row is that."""
    if len(waits) <= _MOST or waits[-1].kind == "more":
        return waits
    return [*waits[:_MOST], Wait("more", number=len(waits) - _MOST)]


def open_waits(journal: Journal, timers: Iterable[str], signals: Iterable[tuple[str, str | None]]) -> list[Wait]:
    """The same, all of it, of a saga in memory. What runs of it is not in there."""
    return _read(_open(journal, timers, signals))


def _open(journal: Journal, timers: Iterable[str], signals: Iterable[tuple[str, str | None]]) -> list[_Kept]:
    """In the order of their times."""
    forward = journal.state is WorkflowState.RUNNING
    waits: list[_Kept] = []
    if journal.ended or not (forward or journal.state is WorkflowState.COMPENSATING):
        return waits
    limits = set()
    for name, timer in signals:
        limits.add(timer)
        waits.append(_Kept("signal", name, None, None if timer is None else journal.timers.get(timer)))
    waits += [_Kept("sleep", "", None, journal.timers.get(timer)) for timer in timers if timer not in limits]
    for step, due in journal.retries.items():
        attempt = journal.steps[step].attempt if not journal.failing else journal.compensations[step].attempt
        waits.append(_Kept("undo" if journal.failing else "attempt", step, attempt + 1, due))
    if journal.deadline is not None and not journal.deadline_passed and not journal.failing:
        waits.append(_Kept("deadline", "", None, journal.deadline))
    waits.sort(key=lambda wait: (wait.at is None, wait.at or 0))
    return waits


def read_waits(row: Mapping[str, Any]) -> list[Wait]:
    """What the row of a saga says; of what a later version may have written, what this one knows."""
    try:
        kept = msgspec.json.decode(row["waits_for"] or "[]", type=list[_Kept])
    except msgspec.DecodeError:
        return []
    return _read(kept)


def _read(kept: Iterable[_Kept]) -> list[Wait]:
    return [Wait(one.kind, one.name, one.number, None if one.at is None else from_micros(one.at)) for one in kept]


def said(wait: Wait, *, decimals: int = 0) -> str:
    """A wait in words; its time is in UTC.

    Args:
        wait: The wait.
        decimals: So many of the second of its time; see `event_workflow_engine.clock.told`.

    Example:
        >>> print(said(Wait("attempt", "ship", 3)))
        waits for attempt 3 of step 'ship'
    """
    text, with_time = _SAID[wait.kind]
    said = text.format(name=wait.name, number=wait.number, saga=wait.saga, state=wait.state)
    if wait.kind in ("step", "compensation") and (wait.number or 1) > 1:
        said += f" (attempt {wait.number})"
    if wait.kind == "queue" and wait.number:
        said += f" (place {wait.number})"
    return said if wait.at is None else said + with_time.format(at=told(wait.at, decimals=decimals))
