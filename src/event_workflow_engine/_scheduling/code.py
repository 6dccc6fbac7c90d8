"""What schedules can run in this process: functions, commands, and the sagas of an engine."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from event_workflow_engine.callables import call_info
from event_workflow_engine.codecs import JSON
from event_workflow_engine.errors import DefinitionError, NotRegisteredError
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.tasks import read_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from event_workflow_engine.tasks import StoredTask

__all__ = ["Code", "Launcher"]

_log: Final = logging.getLogger("event_workflow_engine.scheduler")


class Launcher(Protocol):
    """What the scheduler asks of the engine."""

    async def start(self, saga: str, input: Any = None, *, id: str | None = None) -> object:  # noqa: A002
        """Start a saga by name; the same id is the same saga."""
        ...

    def knows_saga(self, name: str) -> bool:
        """Whether a saga of that name is registered."""
        ...

    async def run_command(self, command: Any, *, id: str) -> object:  # noqa: A002
        """Execute a command; the same id is the same command."""
        ...


class Code:
    """The code that is registered here.

    Attributes:
        launcher: Starts sagas and executes commands; ``None`` before the scheduler is started.
    """

    def __init__(self) -> None:
        self.launcher: Launcher | None = None
        self._functions: dict[str, Callable[..., Any]] = {}
        self._commands: dict[str, type] = {}
        self._told: set[str] = set()

    def came(self) -> None:
        """Something was registered: what waits for code that is still missing is told of again."""
        self._told.clear()

    def add_function(self, fn: Callable[..., Any], name: str) -> None:
        """Let schedules call a function.

        Raises:
            DefinitionError: Another function has the name.
        """
        known = self._functions.get(name)
        if known is not None and known != fn:
            raise DefinitionError(f"a function named {name!r} is registered already: register this one with name=")
        self._functions[name] = fn

    def add_command(self, command: type) -> bool:
        """Let schedules execute commands of a type; whether it is new."""
        name = qualified_name(command)
        if self._commands.get(name) is command:
            return False
        self._commands[name] = command
        return True

    def name_of(self, fn: Callable[..., Any], name: str) -> str:
        """Under which name a function is registered: `name`, where it is under that one, too.

        Raises:
            NotRegisteredError: It is not.
        """
        # Bound methods are made anew each time that they are looked up, and are then equal, not the same.
        if self._functions.get(name) == fn:
            return name
        names = [other for other, known in self._functions.items() if known == fn]
        if not names:
            raise NotRegisteredError(f"function {name!r} is not registered: call scheduler.register(…) first")
        return names[0]

    def can_run(self, row: Mapping[str, Any]) -> bool:
        """Whether what a row of ``schedules`` is for is registered here. The log says once what is not."""
        task = read_task(row["task"])
        missing = (task.kind == "call" and task.name not in self._functions) or (
            task.kind == "command" and task.name not in self._commands
        )
        if task.kind == "saga":
            missing = self.launcher is None or not self.launcher.knows_saga(task.name)
        if missing and row["id"] not in self._told:
            self._told.add(row["id"])
            _log.warning("task %s waits: %s %r is not registered here", row["id"], task.kind, task.name)
        return not missing

    async def run(self, task: StoredTask, task_id: str, run_id: str, pool: Executor | None) -> None:
        """Run a task, which is registered; it raises what that raises.

        Args:
            task: The task.
            task_id: Its id, for errors.
            run_id: Of this run: the same id is the same saga or command.
            pool: For sync functions.
        """
        assert self.launcher is not None, "only a scheduler that was started runs tasks"
        if task.kind == "saga":
            value = JSON.decode(task.data, Any, f"input of task {task_id!r}")
            await self.launcher.start(task.name, value, id=task.id or run_id)
        elif task.kind == "command":
            command = JSON.decode(task.data, self._commands[task.name], f"command of task {task_id!r}")
            await self.launcher.run_command(command, id=run_id)
        else:
            await self._call(task, pool)

    async def _call(self, task: StoredTask, pool: Executor | None) -> None:
        fn = self._functions[task.name]
        arguments = JSON.decode(task.data, tuple[Any, ...], f"arguments of {task.name!r}")
        if call_info(fn).is_async:
            await fn(*arguments)
            return
        context = contextvars.copy_context()
        result = await asyncio.get_running_loop().run_in_executor(pool, context.run, fn, *arguments)
        if inspect.isawaitable(result):
            await result
