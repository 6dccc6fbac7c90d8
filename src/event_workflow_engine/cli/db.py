"""`ewe db`: the store as a whole."""

from typing import Any, Final

from cyclopts import App

from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common
from event_workflow_engine.cli.output import cell, print_json, print_rows

__all__ = ["app"]

app: Final = App(name="db", help="The store as a whole.")


@app.command(name="status")
async def status(*, common: Common = COMMON) -> None:
    """What the store is and holds: backend, schema, sizes, events, sagas by state, workers."""
    async with opened(common.url) as storage:
        found: dict[str, Any] = dict(await storage.status())
        found["sagas_by_state"] = {row["state"]: row["n"] for row in await storage.query("sagas_count")}
        found["workers"] = [
            {"id": row["id"], "host": row["host"], "pid": row["pid"], "started_at": row["started_at"]}
            for row in await storage.query("live_workers")
        ]
    if common.as_json:
        print_json(found)
        return
    by_state = found.pop("sagas_by_state")
    workers = found.pop("workers")
    rows = [(name.replace("_", " "), value) for name, value in found.items()]
    rows += [(f"sagas {state}", count) for state, count in by_state.items()]
    rows += [("worker", f"{worker['id']} (pid {worker['pid']} on {worker['host']})") for worker in workers]
    print_rows(("", ""), [(cell(name, "bold"), cell(value)) for name, value in rows])
