"""`ewe queue`: what waits and what runs, and an operator's halt."""

from typing import Any, Final

from cyclopts import App

from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common
from event_workflow_engine.cli.output import cell, console, print_json, print_rows
from event_workflow_engine.clock import seconds
from event_workflow_engine.queues import Queues, QueueStatus

__all__ = ["app", "plain_queue"]

app: Final = App(name="queue", help="Queues: what waits and what runs; let nothing more begin, or go on.")


@app.command(name="ls")
async def ls(*, common: Common = COMMON) -> None:
    """List the queues that the store knows, with their limits, and how many sagas are where in them."""
    async with opened(common.url) as storage:
        found = [plain_queue(status) for status in await Queues(storage).list()]
    if common.as_json:
        print_json({"queues": found})
        return
    columns = ("name", "paused", "early", "waiting", "running", "standing", "limit", "worker_limit", "partition_limit")
    rows = [(*(_shown(queue[column]) for column in columns), _shown(_rate(queue["rate"]))) for queue in found]
    titles = ("name", "paused", "early", "waiting", "running", "standing", "limit", "a worker", "a partition", "rate")
    print_rows(titles, rows, numbers=titles[2:9])


@app.command(name="pause")
async def pause(name: str, /, *, common: Common = COMMON) -> None:  # noqa: D417 - shared options tell of themselves
    """Let nothing of a queue begin, on any worker, until `ewe queue resume`. What runs goes on.

    Args:
        name: The queue's name.
    """
    async with opened(common.url) as storage:
        await Queues(storage).pause(name)
    _tell(name, "paused", as_json=common.as_json)


@app.command(name="resume")
async def resume(name: str, /, *, common: Common = COMMON) -> None:  # noqa: D417 - shared options tell of themselves
    """Let a paused queue go on.

    Args:
        name: The queue's name.
    """
    async with opened(common.url) as storage:
        await Queues(storage).resume(name)
    _tell(name, "resumed", as_json=common.as_json)


def _tell(name: str, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, what: True})
    else:
        console().print(cell(f"queue {name} {what}"))


def plain_queue(status: QueueStatus) -> dict[str, Any]:
    """A queue as JSON has it."""
    queue = status.queue
    rate = None if queue.rate is None else {"count": queue.rate.count, "per_s": seconds(queue.rate.per)}
    return {
        "name": status.name,
        "paused": status.paused,
        "early": status.early,
        "waiting": status.waiting,
        "running": status.running,
        "standing": status.standing,
        "limit": queue.limit,
        "worker_limit": queue.worker_limit,
        "partition_limit": queue.partition_limit,
        "rate": rate,
    }


def _rate(rate: dict[str, Any] | None) -> str | None:
    return None if rate is None else f"{rate['count']} in {rate['per_s']:g} s"


def _shown(value: object) -> Any:
    if isinstance(value, bool):
        return cell("yes" if value else "no")
    return cell("-" if value is None else value)
