"""`WorkflowScheduler`: durable one-off timers, intervals and cron lines, each slot fired once over all workers."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec

from event_workflow_engine.callables import call_info, called
from event_workflow_engine.clock import Clock, Duration, SystemClock, from_micros, to_micros
from event_workflow_engine.codecs import JSON
from event_workflow_engine.errors import (
    DefinitionError,
    EngineStateError,
    EventIdConflictError,
    NotRegisteredError,
    RowConflictError,
    StorageError,
)
from event_workflow_engine.feeds import ChangeBell
from event_workflow_engine.ids import uuid7
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.saga import Saga
from event_workflow_engine.storage.port import Row, Unit
from event_workflow_engine.tasks import ScheduledTask, StoredTask, Task, read_task, triggered_prefix
from event_workflow_engine.triggers import check_cron, check_interval, next_cron, next_interval, rule_in_words

if TYPE_CHECKING:
    from datetime import datetime

    from event_workflow_engine.storage.port import Storage

__all__ = ["Launcher", "ScheduledTask", "Task", "WorkflowScheduler"]

F = TypeVar("F", bound=Callable[..., Any])
Missed = Literal["once", "skip", "all"]

_log: Final = logging.getLogger("event_workflow_engine.scheduler")
_BATCH: Final = 100
_BACK_OFF_S: Final = 0.5
_MAX_ID: Final = 180  # a saga's id is made of it and a slot, and may have 200
_FAR: Final = 2**62
_LATEST: Final = 60_000_000
_GRACE: Final = 1_000_000
"""A slot is missed when it is late by more than this (microseconds)."""


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


_read_spec: Final = msgspec.json.Decoder(dict[str, Any]).decode


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
        self._threads = threads
        self._functions: dict[str, Callable[..., Any]] = {}
        self._commands: dict[str, type] = {}
        self._launcher: Launcher | None = None
        self._worker = ""
        self._pool: ThreadPoolExecutor | None = None
        self._timer: asyncio.Task[None] | None = None
        self._runs: set[asyncio.Task[bool]] = set()
        self._bell: ChangeBell | None = None
        self._told: set[str] = set()
        self._repaired = False
        self._doubt_ends = 0  # when a claim that had no answer has landed, or will not
        self._open: set[tuple[str, int]] = set()
        """Slots that run here."""
        self._passed: set[str] = set()
        """Tasks that are due, and whose slot somebody has: maybe a run here, for the same instant."""
        self._asleep = False

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, launcher: Launcher, *, worker_id: str = "") -> None:
        """Begin to fire, as this worker; slots that dead workers left undone come first."""
        self._launcher = launcher
        self._worker = worker_id
        self._bell = ChangeBell(self._storage, frozenset({"schedules"}))
        self._bell.ring()
        if worker_id:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="ewe-schedule")
            self._timer = asyncio.create_task(self._fire_for_ever(), name="ewe-scheduler")

    async def stop(self) -> None:
        """Fire no more. What runs is cut off, and another worker runs it again; what runs in a thread ends there."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
            self._timer = None
        if self._bell is not None:
            self._bell.close()
        for run in list(self._runs):
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def register(self, fn: F, *, name: str | None = None) -> F:
        """Let schedules call a function; again after each restart. Sync; usable as a decorator.

        Raises:
            DefinitionError: Another function has the name.
        """
        label = called(fn) if name is None else name
        known = self._functions.get(label)
        if known is not None and known != fn:
            raise DefinitionError(f"a function named {label!r} is registered already: register this one with name=")
        self._functions[label] = fn
        self.code_came()
        return fn

    def code_came(self) -> None:
        """Look again at what waits for code: something was registered."""
        self._told.clear()
        self.look_for_slots()

    def look_for_slots(self) -> None:
        """Look for slots that nobody finishes: a worker is gone."""
        self._repaired = False
        if self._bell is not None:
            self._bell.ring()

    def register_command(self, command: type) -> None:
        """Let schedules execute commands of a type; again after each restart."""
        name = qualified_name(command)
        if self._commands.get(name) is not command:
            self._commands[name] = command
            self.code_came()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, and what is to run waits for its time; for tests."""
        return not self._runs and (self._asleep or self._timer is None)

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
                before = _read_spec(old["spec"])
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
        # Bound methods are made anew each time that they are looked up, and are then equal, not the same.
        if made.fn is not None and self._functions.get(made.name) != made.fn:
            names = [name for name, fn in self._functions.items() if fn == made.fn]
            if not names:
                raise NotRegisteredError(f"function {made.name!r} is not registered: call scheduler.register(…) first")
            stored = read_task(made.encoded)
            made = Task(msgspec.structs.replace(stored, name=names[0]), fn=made.fn)
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
        now = self._now()
        if not self._worker or not self._runnable(row):
            once = {"kind": "once", "spec": "{}", "task": row["task"], "next_run": now, "paused": 0, "created_at": now}
            await self._write(Row("schedules", "insert", (triggered_prefix(id) + uuid7(),), once))
            return
        slot = now
        while True:
            claim = Row("slots", "insert", (id, slot), {"worker": self._worker, "fired_at": now, "done": 0})
            try:
                await self._write(claim)
            except RowConflictError:
                slot += 1  # it fired at this very instant; this is a run of its own
            else:
                break
        self._launch(row, slot)

    async def list(self) -> Sequence[ScheduledTask]:
        """All tasks that are still to run, by id."""
        rows = await self._storage.query("schedules_all")
        return [
            ScheduledTask(
                row["id"],
                Task(read_task(row["task"])),
                from_micros(row["next_run"]),
                bool(row["paused"]),
                rule_in_words(row["kind"], _read_spec(row["spec"])),
            )
            for row in rows
            if row["next_run"] is not None
        ]

    # -- firing ------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return to_micros(self._clock.now())

    async def _write(self, *rows: Row) -> None:
        await self._storage.write(Unit(uuid7(), self._now(), rows=rows))

    async def _fire_for_ever(self) -> None:
        assert self._bell is not None
        while True:
            try:
                if not self._repaired:
                    self._repaired = self._now() >= self._doubt_ends
                    await self._repair()
                waiting = await self._fire_due()
                if not self._repaired:
                    waiting = self._doubt_ends if waiting is None else min(waiting, self._doubt_ends)
                await self._sleep(waiting)
            except StorageError as error:
                _log.warning("scheduling failed, trying again: %s", error)
                self._repaired = False
                self._doubt_ends = self._now() + _LATEST
                await asyncio.sleep(_BACK_OFF_S)

    async def _sleep(self, until: int | None) -> None:
        """Until then, or until something was committed."""
        assert self._bell is not None
        waits: list[asyncio.Future[Any]] = []
        self._asleep = True
        try:
            if until is None:
                await self._bell.wait()
            else:
                sleep = self._clock.sleep_until(from_micros(until))
                waits = [asyncio.ensure_future(self._bell.wait()), asyncio.ensure_future(sleep)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._asleep = False
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _fire_due(self) -> int | None:
        """Fire what is due; when the next is. What cannot run here stands in nobody's way."""
        limit = _BATCH
        passed = self._passed = set()
        while True:
            now, fired = self._now(), False
            rows = await self._storage.query("due_schedules", now=_FAR, limit=limit)
            for row in rows:
                if row["id"] in passed or not self._runnable(row):
                    continue
                if row["next_run"] > now:
                    if fired:
                        break
                    return int(row["next_run"])
                fired = True
                if not await self._fire(row, now):
                    passed.add(row["id"])  # whoever has the slot rings when the schedule moves on
            if fired:
                continue
            if len(rows) < limit:
                return None
            limit *= 2

    def _runnable(self, row: dict[str, Any]) -> bool:
        task = read_task(row["task"])
        missing = (task.kind == "call" and task.name not in self._functions) or (
            task.kind == "command" and task.name not in self._commands
        )
        if task.kind == "saga":
            missing = self._launcher is None or not self._launcher.knows_saga(task.name)
        if missing and row["id"] not in self._told:
            self._told.add(row["id"])
            _log.warning("task %s waits: %s %r is not registered here", row["id"], task.kind, task.name)
        return not missing

    async def _fire(self, row: dict[str, Any], now: int) -> bool:
        """Claim a slot and advance the schedule in one unit; whoever loses, another worker has fired it."""
        slot: int = row["next_run"]
        try:
            slots, following = self._slots(row, slot, now)
        except DefinitionError:
            _log.exception("task %s cannot go on here", row["id"])
            return False
        owned = {"next_run": slot, "task": row["task"], "paused": 0}
        if following is None:
            # It goes when it has run: a crash in between finds it again.
            advance = Row("schedules", "update", (row["id"],), {"next_run": None}, owned)
        else:
            advance = Row("schedules", "update", (row["id"],), {"next_run": following}, owned)
        claims = [
            Row("slots", "insert", (row["id"], one), {"worker": self._worker, "fired_at": now, "done": 0})
            for one in slots
        ]
        try:
            await self._write(advance, *claims)
        except RowConflictError:
            return False
        for one in slots:
            self._launch(row, one)
        return True

    def _slots(self, row: dict[str, Any], slot: int, now: int) -> tuple[Sequence[int], int | None]:
        """The slots to fire now, and the next run."""
        if row["kind"] == "once":
            return [slot], None
        spec = _read_spec(row["spec"])
        missed = [slot]
        following = self._following(row["kind"], spec, slot)
        if spec["missed"] == "all":
            while following <= now and len(missed) < _BATCH:
                missed.append(following)
                following = self._following(row["kind"], spec, following)
            return missed, following
        if following <= now or now - slot > _GRACE:
            late = self._following(row["kind"], spec, now)
            return ([slot] if spec["missed"] == "once" else []), late
        return [slot], following

    def _following(self, kind: str, spec: dict[str, Any], after: int) -> int:
        if kind == "every":
            return next_interval(spec["start"], spec["interval"], after)
        return next_cron(spec["expression"], spec["tz"], after)

    async def _repair(self) -> None:
        """Slots that a worker claimed and did not finish: run again, under the same ids."""
        alive = {row["id"] for row in await self._storage.query("live_workers")} - {self._worker}
        for slot in await self._storage.query("open_slots"):
            key = (slot["schedule"], slot["slot"])
            if slot["worker"] in alive or key in self._open:
                continue
            row = await self._storage.get("schedules", (slot["schedule"],))
            owned = {"worker": slot["worker"], "done": 0}
            take = Row("slots", "update", key, {"worker": self._worker}, owned)
            if row is None:
                take = Row("slots", "delete", key, {}, owned)  # it was cancelled since
            elif not self._runnable(row):
                continue  # again when its code is registered
            try:
                await self._write(take)
            except RowConflictError:
                continue
            if row is not None:
                self._launch(row, slot["slot"])

    def _launch(self, row: dict[str, Any], slot: int) -> None:
        key = (row["id"], slot)
        self._open.add(key)
        run = asyncio.create_task(self._run(row, slot), name=f"ewe-task:{row['id']}")
        self._runs.add(run)

        def ended(run: asyncio.Task[bool]) -> None:
            self._runs.discard(run)
            self._open.discard(key)
            if row["id"] in self._passed and self._bell is not None:
                self._bell.ring()
            if not run.cancelled() and run.exception() is None and not run.result():
                asyncio.get_running_loop().call_later(_BACK_OFF_S, self.look_for_slots)

        run.add_done_callback(ended)

    async def _run(self, row: dict[str, Any], slot: int) -> bool:
        """Do what the slot is for; whether it is closed then."""
        task, run_id = read_task(row["task"]), f"{row['id']}@{slot}"
        assert self._launcher is not None
        try:
            if task.kind == "saga":
                value = JSON.decode(task.data, Any, f"input of task {row['id']!r}")
                await self._launcher.start(task.name, value, id=task.id or run_id)
            elif task.kind == "command":
                command = JSON.decode(task.data, self._commands[task.name], f"command of task {row['id']!r}")
                await self._launcher.run_command(command, id=run_id)
            else:
                await self._call(task)
        except (StorageError, EngineStateError):
            _log.exception("task %s: its slot stays open and is run again soon", row["id"])
            return False
        except EventIdConflictError:
            _log.exception("task %s: the id %s was used for something else", row["id"], run_id)
        except Exception:  # noqa: BLE001 - what a user's function raises must not end the schedule
            _log.exception("task %s raised; its schedule goes on", row["id"])
        rows = [Row("slots", "delete", (row["id"], slot))]
        try:
            now = await self._storage.get("schedules", (row["id"],))
            if now is not None and now["next_run"] is None and now["task"] == row["task"]:
                rows.append(Row("schedules", "delete", (row["id"],), {}, {"next_run": None, "task": row["task"]}))
            try:
                await self._write(*rows)
            except RowConflictError:
                await self._write(rows[0])  # the task was scheduled anew meanwhile
        except StorageError:
            _log.exception("task %s: it ran, but that could not be written, so it may run again", row["id"])
            return False
        return True

    async def _call(self, task: StoredTask) -> None:
        fn = self._functions[task.name]
        arguments = JSON.decode(task.data, tuple[Any, ...], f"arguments of {task.name!r}")
        if call_info(fn).is_async:
            await fn(*arguments)
            return
        context = contextvars.copy_context()
        result = await asyncio.get_running_loop().run_in_executor(self._pool, context.run, fn, *arguments)
        if inspect.isawaitable(result):
            await result


def _checked(missed: Any) -> str:
    if missed not in ("once", "skip", "all"):
        raise DefinitionError(f"missed={missed!r}: 'once', 'skip' or 'all'")
    return str(missed)
