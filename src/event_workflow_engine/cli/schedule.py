"""`ewe schedule`: what runs at its time; let a task rest, go on, run now, or be forgotten."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common
from event_workflow_engine.cli.output import cell, console, print_json, print_rows, short_time, time_of
from event_workflow_engine.clock import to_micros
from event_workflow_engine.errors import NotRegisteredError
from event_workflow_engine.scheduler import WorkflowScheduler
from event_workflow_engine.tasks import ScheduledTask, triggered_prefix

__all__ = ["app"]

app: Final = App(name="schedule", help="Schedules: what runs when; let a task rest, go on, run now, or be forgotten.")

Id = Annotated[str, Parameter(help="The task's id.")]


@app.command(name="ls")
async def ls(*, common: Common = COMMON) -> None:
    """List the tasks that are still to run, with when they are due next, in UTC."""
    async with opened(common.url) as storage:
        found = await WorkflowScheduler(storage).list()
    if common.as_json:
        print_json({"schedules": [_plain(task) for task in found]})
        return
    rows = [
        (
            cell(task.id),
            cell(f"{task.task.kind} {task.task.name}"),
            cell(task.rule),
            cell("paused" if task.paused else short_time(to_micros(task.next_run))),
        )
        for task in found
    ]
    print_rows(("id", "runs", "when", "next"), rows)


@app.command(name="pause")
async def pause(task_id: Id, /, *, common: Common = COMMON) -> None:
    """Let a task fire no more, on any worker, until `ewe schedule resume`."""
    async with opened(common.url) as storage:
        await WorkflowScheduler(storage).pause(task_id)
    _tell(task_id, "paused", as_json=common.as_json)


@app.command(name="resume")
async def resume(task_id: Id, /, *, common: Common = COMMON) -> None:
    """Let a paused task fire again; what it missed meanwhile goes by its policy."""
    async with opened(common.url) as storage:
        await WorkflowScheduler(storage).resume(task_id)
    _tell(task_id, "resumed", as_json=common.as_json)


@app.command(name="trigger")
async def trigger(task_id: Id, /, *, common: Common = COMMON) -> None:
    """Have a worker run a task now, besides its schedule, which stays as it is."""
    async with opened(common.url) as storage:
        await WorkflowScheduler(storage).trigger(task_id)
    _tell(task_id, "triggered", as_json=common.as_json)


@app.command(name="cancel")
async def cancel(task_id: Id, /, *, common: Common = COMMON) -> None:
    """Forget a task. Code that schedules it when it starts makes it anew.

    A run that has begun goes on. One that was triggered and waits for a worker is a task of its own: it stays, and is
    named here.
    """
    async with opened(common.url) as storage:
        scheduler = WorkflowScheduler(storage)
        left = _triggered(task_id, await scheduler.list())
        if not await scheduler.cancel(task_id):
            raise NotRegisteredError(f"there is no scheduled task {task_id!r}")
    if common.as_json:
        print_json({"id": task_id, "cancelled": True, "triggered": left})
        return
    stays = "; what was triggered before still runs, unless cancelled too: " if left else ""
    console().print(cell(f"task {task_id} cancelled{stays}{', '.join(left)}"))


def _triggered(task_id: str, tasks: Sequence[ScheduledTask]) -> list[str]:
    """Its runs that wait as tasks of their own."""
    runs = {task.task.encoded for task in tasks if task.id == task_id}
    prefix = triggered_prefix(task_id)
    return [one.id for one in tasks if one.id.startswith(prefix) and one.rule == "once" and one.task.encoded in runs]


def _tell(task_id: str, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": task_id, what: True})
    else:
        console().print(cell(f"task {task_id} {what}"))


def _plain(task: ScheduledTask) -> dict[str, Any]:
    return {
        "id": task.id,
        "kind": task.task.kind,
        "name": task.task.name,
        "rule": task.rule,
        "next_run": time_of(to_micros(task.next_run)),
        "paused": task.paused,
    }
