"""`WorkflowScheduler`: durable one-off timers, intervals and cron lines, each slot fired once over all workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from event_workflow_engine._scheduling.code import Code, Launcher
from event_workflow_engine._scheduling.firing import Firing, read_spec
from event_workflow_engine.callables import called
from event_workflow_engine.clock import Clock, Duration, SystemClock, from_micros, micros, to_micros
from event_workflow_engine.errors import DefinitionError, NotRegisteredError, RowConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.saga import Saga
from event_workflow_engine.storage.port import Row, Unit
from event_workflow_engine.tasks import ScheduledTask, Task, read_task, triggered_prefix
from event_workflow_engine.triggers import check_cron, check_interval, next_cron, rule_in_words

if TYPE_CHECKING:
    from datetime import datetime

    from event_workflow_engine.storage.port import Storage

__all__ = ["Launcher", "ScheduledTask", "Task", "WorkflowScheduler"]

F = TypeVar("F", bound=Callable[..., Any])
Missed = Literal["once", "skip", "all"]

_MAX_ID: Final = 180  # a saga's id is made of it and a slot, and may have 200


class WorkflowScheduler:
    """Runs sagas, commands and registered functions at their time; durable, on whichever worker is there.

    A slot fires once over all workers: the row that claims it and the schedule's next run are one unit. A saga or
    command gets an id from its slot, so that it runs once even when a worker dies in between; a function runs at least
    once.
    What a function raises is logged with the task's id, and its schedule goes on. Runs of one task may overlap.

    Args:
        storage: Where schedules are kept.
        clock: Where time comes from.
        threads: For sync functions.
    """

    def __init__(self, storage: Storage, *, clock: Clock | None = None, threads: int = 8) -> None:
        self._storage = storage
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._now = micros(self._clock)
        self._threads = threads
        self._code = Code()
        self._firing: Firing | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, launcher: Launcher, *, worker_id: str = "") -> None:
        """Begin to fire, as this worker; slots that dead workers left undone come first."""
        self._code.launcher = launcher
        if worker_id:
            self._firing = Firing(
                self._storage, self._clock, self._code, self._write, worker=worker_id, threads=self._threads
            )

    async def stop(self) -> None:
        """Fire no more. What runs is cut off, and another worker runs it again; what runs in a thread ends there."""
        firing, self._firing = self._firing, None
        if firing is not None:
            await firing.stop()

    def register(self, fn: F, *, name: str | None = None) -> F:
        """Let schedules call a function; again after each restart. Sync; usable as a decorator.

        Raises:
            DefinitionError: Another function has the name.
        """
        self._code.add_function(fn, called(fn) if name is None else name)
        self.code_came()
        return fn

    def code_came(self) -> None:
        """Look again at what waits for code: something was registered."""
        self._code.came()
        self.look_for_slots()

    def look_for_slots(self) -> None:
        """Look for slots that nobody finishes: a worker is gone."""
        if self._firing is not None:
            self._firing.look_again()

    def register_command(self, command: type) -> None:
        """Let schedules execute commands of a type; again after each restart."""
        if self._code.add_command(command):
            self.code_came()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, and what is to run waits for its time; for tests."""
        return self._firing is None or self._firing.is_idle

    # -- scheduling --------------------------------------------------------------------------------------------------

    async def schedule(
        self,
        task: Task | Saga[None, Any] | Callable[..., Any],
        *,
        delay: Duration,
        id: str | None = None,  # noqa: A002 - the contract's name
    ) -> str:
        """Run a task once, after a delay.

        Args:
            task: A `Task`, a saga without input, or a registered function.
            delay: Seconds or timedelta.
            id: The task's id; the same id replaces. A new UUID version 7 by default.

        Returns:
            The task's id.

        Raises:
            DefinitionError: The delay or id is wrong.
        """
        due = self._now() + check_interval(delay, "delay", zero=True)
        return await self._store(uuid7() if id is None else id, "once", {}, task, due)

    async def schedule_at(
        self,
        task: Task | Saga[None, Any] | Callable[..., Any],
        when: datetime,
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
    ) -> str:
        """Run a task once, at an instant; at once when that has passed.

        Raises:
            DefinitionError: `when` has no time zone.
        """
        if when.tzinfo is None:
            raise DefinitionError(f"schedule_at({when!r}): an aware datetime, with a time zone")
        return await self._store(uuid7() if id is None else id, "once", {}, task, to_micros(when))

    async def every(
        self,
        interval: Duration,
        task: Task | Saga[None, Any] | Callable[..., Any],
        *,
        missed: Missed = "once",
        id: str | None = None,  # noqa: A002 - the contract's name
    ) -> str:
        """Run a task again and again. Slots are start + n × interval: they do not drift.

        Args:
            interval: Seconds or timedelta.
            task: What runs.
            missed: After an outage: one run, none, or all those that were missed.
            id: The same id replaces; by default the task's name, so that startup code may be repeated.
        """
        step = check_interval(interval, "interval")
        spec = {"interval": step, "start": self._now() + step, "missed": _checked(missed)}
        return await self._store(id, "every", spec, task, self._now() + step)

    async def cron(
        self,
        expression: str,
        task: Task | Saga[None, Any] | Callable[..., Any],
        *,
        tz: str = "UTC",
        missed: Missed = "once",
        id: str | None = None,  # noqa: A002 - the contract's name
    ) -> str:
        """Run a task by a cron line, in a time zone.

        Args:
            expression: Five fields, as in crontab(5).
            task: What runs.
            tz: An IANA zone. A slot that spring leaves out fires at the first valid instant; one that autumn repeats
                fires at the first of both.
            missed: After an outage: one run, none, or all those that were missed.
            id: The same id replaces; by default the task's name.

        Raises:
            DefinitionError: The line or zone cannot be read.
        """
        check_cron(expression, tz)
        spec = {"expression": expression, "tz": tz, "missed": _checked(missed)}
        return await self._store(id, "cron", spec, task, next_cron(expression, tz, self._now()))

    async def _store(self, task_id: str | None, kind: str, spec: dict[str, Any], task: Any, due: int) -> str:
        made = self._task(task)
        task_id = made.name if task_id is None else task_id
        if not 0 < len(task_id) <= _MAX_ID or not task_id.isprintable():
            raise DefinitionError(f"task id {task_id!r:.60}: 1 to {_MAX_ID} printable characters")
        if made.command_type is not None:
            self.register_command(made.command_type)
        values = {
            "kind": kind,
            "spec": msgspec.json.encode(spec).decode(),
            "task": made.encoded,
            "next_run": due,
            "paused": 0,
            "created_at": self._now(),
        }
        while True:
            old = await self._storage.get("schedules", (task_id,))
            if old is not None and (old["kind"], old["task"]) == (kind, made.encoded) and kind != "once":
                before = read_spec(old["spec"])
                if {**before, "start": 0} == {**spec, "start": 0}:
                    return task_id  # startup code that is repeated: the slots go on as they were
            row = Row("schedules", "insert", (task_id,), values)
            if old is not None:
                same = {column: old[column] for column in ("kind", "spec", "task", "next_run")}
                row = Row("schedules", "update", (task_id,), values, same)
            try:
                await self._write(row)
            except RowConflictError:
                continue  # it was changed meanwhile, maybe by the same code in another process
            return task_id

    def _task(self, task: Any) -> Task:
        if isinstance(task, Task):
            made = task
        elif isinstance(task, Saga):
            made = Task.saga(task)
        elif callable(task):
            made = Task.call(task)
        else:
            raise DefinitionError(f"{task!r} is no task: a Task, a saga without input, or a registered function")
        if made.fn is not None and (name := self._code.name_of(made.fn, made.name)) != made.name:
            made = Task(msgspec.structs.replace(read_task(made.encoded), name=name), fn=made.fn)
        return made

    # -- looking after -----------------------------------------------------------------------------------------------

    async def cancel(self, id: str) -> bool:  # noqa: A002 - the contract's name
        """Forget a task; whether there was one still to run. A run that has begun, or was triggered, goes on."""
        row = await self._storage.get("schedules", (id,))
        if row is None or row["next_run"] is None:
            return False
        try:
            await self._write(Row("schedules", "delete", (id,)))
        except RowConflictError:
            return False
        return True

    async def pause(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Let a task fire no more until `resume`.

        Raises:
            NotRegisteredError: There is none.
        """
        await self._change(id, {"paused": 1})

    async def resume(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Let a paused task fire again; what it missed meanwhile goes by its policy.

        Raises:
            NotRegisteredError: There is none.
        """
        await self._change(id, {"paused": 0})

    async def _change(self, task_id: str, values: dict[str, Any]) -> None:
        try:
            await self._write(Row("schedules", "update", (task_id,), values))
        except RowConflictError:
            raise NotRegisteredError(f"there is no scheduled task {task_id!r}") from None

    async def trigger(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Run a task now, besides its schedule, which stays as it is.

        Where this process is no worker, or has not registered what the task runs, it is left as a task of its own,
        which is due at once, to a worker that has.

        Raises:
            NotRegisteredError: There is none.
        """
        row = await self._storage.get("schedules", (id,))
        if row is None:
            raise NotRegisteredError(f"there is no scheduled task {id!r}")
        if self._firing is not None and self._code.can_run(row):
            await self._firing.run_now(row)
            return
        now = self._now()
        once = {"kind": "once", "spec": "{}", "task": row["task"], "next_run": now, "paused": 0, "created_at": now}
        await self._write(Row("schedules", "insert", (triggered_prefix(id) + uuid7(),), once))

    async def list(self) -> Sequence[ScheduledTask]:
        """All tasks that are still to run, by id."""
        rows = await self._storage.query("schedules_all")
        return [
            ScheduledTask(
                row["id"],
                Task(read_task(row["task"])),
                from_micros(row["next_run"]),
                bool(row["paused"]),
                rule_in_words(row["kind"], read_spec(row["spec"])),
            )
            for row in rows
            if row["next_run"] is not None
        ]

    async def _write(self, *rows: Row) -> None:
        await self._storage.write(Unit(uuid7(), self._now(), rows=rows))


def _checked(missed: Any) -> str:
    if missed not in ("once", "skip", "all"):
        raise DefinitionError(f"missed={missed!r}: 'once', 'skip' or 'all'")
    return str(missed)
