"""`ewe db`: the store as a whole."""

from typing import Any, Final

from cyclopts import App

from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common
from event_workflow_engine.cli.output import cell, print_json, print_rows
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Storage

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


@app.command(name="upgrade")
async def upgrade(*, common: Common = COMMON) -> None:
    """Create the store's schema, or bring it to this version of the library. May be repeated."""
    if common.url.startswith("memory:"):
        raise DefinitionError(f"{common.url}: a store in memory has no schema; name another with --url")
    async with open_storage(common.url, auto_upgrade=True) as storage:
        await _say_version(storage, common)


@app.command(name="check")
async def check(*, common: Common = COMMON) -> None:
    """Whether the store can be opened by this version of the library, as it is. Says what to do where it cannot."""
    async with opened(common.url) as storage:
        await _say_version(storage, common)


async def _say_version(storage: Storage, common: Common) -> None:
    version = (await storage.status())["schema_version"]
    if common.as_json:
        print_json({"url": storage.url, "schema_version": version})
    else:
        print(f"{storage.url}: schema version {version}, as this version of the library needs it")
