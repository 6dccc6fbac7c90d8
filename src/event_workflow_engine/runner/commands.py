"""What a script asks of the runner: the one vocabulary of declarative sagas and saga functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from event_workflow_engine.saga import StepSpec

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = ["CancelStep", "Command", "DropTimer", "Fail", "Finish", "Replay", "Script", "SetTimer", "StartStep"]


class StartStep(msgspec.Struct, frozen=True):
    """Run a step. `args` is ``None`` where the action gets its context, if anything."""

    step: str
    spec: StepSpec
    args: tuple[Any, ...] | None = None


class CancelStep(msgspec.Struct, frozen=True, gc=False):
    """Nobody waits for the step any more: cancel its action."""

    step: str


class SetTimer(msgspec.Struct, frozen=True, gc=False):
    """Set a durable timer."""

    timer: str
    seconds: float


class DropTimer(msgspec.Struct, frozen=True, gc=False):
    """Nobody waits for the timer any more."""

    timer: str


class Finish(msgspec.Struct, frozen=True):
    """The saga is done, with this result."""

    result: Any = None


class Fail(msgspec.Struct, frozen=True):
    """The saga will not be done.

    Attributes:
        error: What was raised, where it is at hand.
        failed_step: The step that is to blame, ``None`` where it is none.
        kind: ``"failed"``, ``"cancelled"`` or ``"timeout"``.
    """

    error_type: str
    message: str
    failed_step: str | None
    kind: str = "failed"
    error: BaseException | None = None


Command = StartStep | CancelStep | SetTimer | DropTimer | Finish | Fail


class Replay:
    """What is kept while a journal is replayed: the script asks for much that the journal knows already.

    Attributes:
        timers: The timers that the journal tells of.
        loose: Commands that it does not know of.
    """

    __slots__ = ("loose", "timers")

    def __init__(self, timers: frozenset[str]) -> None:
        self.timers = timers
        self.loose: list[Command] = []


class Script(Protocol):
    """Decides what a saga does next: it is told facts, in the journal's order, and says what it wants next.

    It is deterministic: the same facts give the same commands, live and in replay.
    """

    def begin(self) -> list[Command]:
        """The first commands."""
        ...

    def deliver(self, fact: Any, value: Any, error: BaseException | None) -> list[Command]:
        """Tell it a fact: a step's final outcome, a signal, a fired timer, a cancel.

        Args:
            fact: The journal's.
            value: A step's typed result.
            error: What the action raised, while it is at hand; replay has none.
        """
        ...

    def requested(self, step: str) -> StartStep | None:
        """The command that asked for an open step; ``None``: it never did."""
        ...

    def cancels(self, step: str) -> bool:
        """Whether the open step was given up."""
        ...

    @property
    def awaited_timers(self) -> Iterable[str]:
        """The timers it still waits for."""
        ...

    @property
    def awaited_signals(self) -> Iterable[tuple[str, str | None]]:
        """The signals it waits for, each with the timer that ends the wait."""
        ...

    def close(self) -> None:
        """Leave memory. Nothing of it runs afterwards."""
        ...
