"""What schedules run, and how it is stored: a saga's start, a registered function's call, or a command."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from event_workflow_engine.callables import called
from event_workflow_engine.codecs import JSON, Raw
from event_workflow_engine.outcomes import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.saga import Saga

__all__ = ["ScheduledTask", "StoredTask", "Task", "read_task", "triggered_prefix"]

_LONGEST_PREFIX: Final = 90


class StoredTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task as it is stored: the arguments are JSON."""

    kind: Literal["saga", "call", "command"]
    name: str
    data: Raw = Raw(b"null")
    id: str | None = None


read_task: Final = msgspec.json.Decoder(StoredTask).decode


def triggered_prefix(task_id: str) -> str:
    """What the id of a triggered run begins with, where that waits for a worker as a task of its own."""
    return f"{task_id[:_LONGEST_PREFIX]}/"


class Task:
    """What a schedule runs: a saga's start, a registered function's call, or a command.

    Attributes:
        kind: ``"saga"``, ``"call"`` or ``"command"``.
        name: The saga's, the function's, or the command type's.
    """

    __slots__ = ("_stored", "command_type", "fn", "kind", "name")

    def __init__(
        self, stored: StoredTask, *, fn: Callable[..., Any] | None = None, command_type: type | None = None
    ) -> None:
        self._stored = stored
        self.kind = stored.kind
        self.name = stored.name
        self.fn = fn
        self.command_type = command_type

    def __repr__(self) -> str:
        """What it runs."""
        return f"Task.{self.kind}({self.name!r})"

    @property
    def encoded(self) -> bytes:
        """As it is stored."""
        return msgspec.json.encode(self._stored)

    @staticmethod
    def saga(saga: Saga[Any, Any] | str, input: Any = None, *, id: str | None = None) -> Task:  # noqa: A002
        """Start a saga.

        Args:
            saga: A registered one, or its name.
            input: Its input.
            id: The saga's id; by default one for each slot, so that a slot starts its saga once.
        """
        name = saga if isinstance(saga, str) else saga.name
        return Task(StoredTask("saga", name, Raw(JSON.encode(input, f"input of saga {name!r}")), id))

    @staticmethod
    def call(fn: Callable[..., Any], *args: Any) -> Task:
        """Call a registered function with arguments that JSON knows."""
        name = called(fn)
        return Task(StoredTask("call", name, Raw(JSON.encode(args, f"arguments of {name!r}"))), fn=fn)

    @staticmethod
    def command(command: Any) -> Task:
        """Execute a command; its id is the slot's, so that a slot executes it once."""
        kind = type(command)
        name = qualified_name(kind)
        return Task(StoredTask("command", name, Raw(JSON.encode(command, f"command {name!r}"))), command_type=kind)


class ScheduledTask(msgspec.Struct, frozen=True):
    """A schedule, as `WorkflowScheduler.list` tells it.

    Attributes:
        id: The task's id.
        task: What it runs.
        next_run: When it is due next, aware, in UTC.
        paused: Whether it waits for `resume`.
        rule: When it runs, in words: ``once``, ``every 300 s``, ``0 2 * * * in Europe/Amsterdam``.
    """

    id: str
    task: Task
    next_run: datetime
    paused: bool
    rule: str = "once"
