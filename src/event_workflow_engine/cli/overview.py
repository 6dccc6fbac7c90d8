"""What a store is and holds, at a glance: gathered at a cost that does not grow with its log, and told."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.cli.output import cell, print_rows, time_of
from event_workflow_engine.cli.projection import progress
from event_workflow_engine.cli.queue import plain_queue
from event_workflow_engine.clock import told
from event_workflow_engine.queues import Queues
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.waiting import living, unclaimed

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage

__all__ = ["overview", "print_overview"]

COUNTED_TO: Final = 100_000
"""Of what there may be millions of, no more than so many are counted."""
_STATES: Final = msgspec.json.encode([state.value for state in WorkflowState]).decode()
_BACKLOG: Final = {
    "dead_letters": "dead letters",
    "parked_keys": "parked keys of projections",
    "parked_events": "parked events of projections",
    "staged": "staged, not moved into the log",
    "refused": "staged and refused (ewe db staged)",
}
_MICROS: Final = 1_000_000
_SILENT_LEASES: Final = 2


async def overview(storage: Storage) -> dict[str, Any]:
    """All that `ewe db status` tells, as JSON has it."""
    found: dict[str, Any] = dict(await storage.status())
    now, workers = time.time_ns() // 1000, await living(storage)
    counts = await storage.query("sagas_count_to", states=_STATES, limit=COUNTED_TO + 1)
    (backlog,) = await storage.query("backlog_counts", limit=COUNTED_TO + 1)
    end = found["last_position"]
    found["counted_to"] = COUNTED_TO
    found["sagas_by_state"] = {row["state"]: min(row["n"], COUNTED_TO) for row in counts if row["n"]}
    found["more_than_counted"] = [
        *(row["state"] for row in counts if row["n"] > COUNTED_TO),
        *(name for name, n in backlog.items() if n > COUNTED_TO),
    ]
    found["waiting_for_code"] = [
        {
            "saga": one.saga,
            "version": one.version,
            "sagas": one.number,
            "at_least": one.more,
            "since": time_of(one.since),
        }
        for one in await unclaimed(storage, now, workers)
    ]
    found["workers"] = [_worker(row, now) for row in workers]
    found["queues"] = [plain_queue(status) for status in await Queues(storage).list()]
    found["projections"] = [await progress(storage, row, end) for row in await storage.query("projections_all")]
    return found | {name: min(n, COUNTED_TO) for name, n in backlog.items()}


def _worker(row: dict[str, Any], now: int) -> dict[str, Any]:
    beats = row["lease"] is not None and row["beat_at"] is not None
    silent_us = max(0, now - row["beat_at"]) if beats else None
    return {
        "id": row["id"],
        "host": row["host"],
        "pid": row["pid"],
        "started_at": time_of(row["started_at"]) or None,
        "last_heartbeat_at": time_of(row["beat_at"]) if beats else None,
        "silent": silent_us is not None and silent_us > _SILENT_LEASES * row["lease"],
        "sagas": None if row["runs"] is None else msgspec.json.decode(row["runs"]),
        "silent_s": None if silent_us is None else round(silent_us / _MICROS, 1),
    }


def print_overview(found: dict[str, Any]) -> None:
    """The same for people."""
    listed = ("sagas_by_state", "waiting_for_code", "workers", "queues", "projections", "estimates")
    rows = [
        (name.replace("_", " "), value)
        for name, value in found.items()
        if name not in (*listed, *_BACKLOG, "counted_to", "more_than_counted")
    ]
    rows += [(f"{name} (estimate)", value) for name, value in found["estimates"].items()]
    rows += [(f"sagas {state}", _counted(found, state, n)) for state, n in found["sagas_by_state"].items()]
    rows += [("waits", _codeless(one)) for one in found["waiting_for_code"]]
    rows += [("worker", _alive(worker)) for worker in found["workers"]] or [("worker", "none is alive")]
    rows += [(f"queue {queue['name']}", _queued(queue)) for queue in found["queues"]]
    rows += [(f"projection {one['name']}", _folded(one)) for one in found["projections"]]
    rows += [(said, _counted(found, name, found[name])) for name, said in _BACKLOG.items()]
    print_rows(("", ""), [(cell(name, "bold"), cell(value)) for name, value in rows])


def _counted(found: dict[str, Any], name: str, number: int) -> str:
    return f"more than {number:,}" if name in found["more_than_counted"] else f"{number}"


def _codeless(one: dict[str, Any]) -> str:
    since = datetime.fromisoformat(one["since"])
    number = f"at least {one['sagas']}" if one["at_least"] else f"{one['sagas']}"
    return f"{number} sagas wait for code that no worker has: {one['saga']} v{one['version']}, since {told(since)}"


def _alive(worker: dict[str, Any]) -> str:
    where = f"{worker['id']} (pid {worker['pid']} on {worker['host']})"
    if worker["silent_s"] is None:
        return f"{where}, alive now" if worker["last_heartbeat_at"] is None else where
    silent = ": it may be dead, and nobody is there to see" if worker["silent"] else ""
    return f"{where}, last heartbeat {worker['silent_s']:g} s ago{silent}"


def _queued(queue: dict[str, Any]) -> str:
    told = [f"{queue[name]} {name}" for name in ("early", "waiting", "running", "standing") if queue[name]]
    return ", ".join([*(["paused"] if queue["paused"] else []), *(told or ["empty"])])


def _folded(one: dict[str, Any]) -> str:
    behind = f"{one['lag_events']} events behind" if one["lag_events"] else "level"
    parked = f", {one['parked']} parked" if one["parked"] else ""
    rebuilding = ", being rebuilt" if one["rebuilding"] else ""
    return f"{one['mode']} v{one['version']}, {behind}{parked}{rebuilding}"
