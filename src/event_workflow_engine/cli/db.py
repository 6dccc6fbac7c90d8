"""`ewe db`: the store as a whole."""

import sys
from collections.abc import Callable
from time import monotonic
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter

from event_workflow_engine.cli.opening import existing, opened, to_be_filled
from event_workflow_engine.cli.options import COMMON, Common
from event_workflow_engine.cli.output import cell, print_json, print_rows
from event_workflow_engine.cli.overview import overview, print_overview
from event_workflow_engine.cli.staged import app as staged
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.copying import copy_store
from event_workflow_engine.storage.port import Storage

__all__ = ["app"]

app: Final = App(name="db", help="The store as a whole.")
app.command(staged)

_TELL_EVERY_S: Final = 5.0
_TOLD: Final = {"position": "copied up to position", "event": "compared up to event"}
_NOT_RETIRED: Final = (
    "the source is as it was, and nothing keeps workers from it: start none there any more, for its sagas would run "
    "twice\n"
)


@app.command(name="status")
async def status(*, common: Common = COMMON) -> None:
    """What the store is and holds: sizes, sagas by state, workers, queues, projections, and what waits for people.

    It costs the same however long the log is: what may be millions is counted up to 100,000, or estimated.
    """
    async with opened(common.url) as storage:
        found = await overview(storage)
    if common.as_json:
        print_json(found)
    else:
        print_overview(found)


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


@app.command(name="copy")
async def copy(
    source: str,
    target: str,
    /,
    *,
    lease: Annotated[float, Parameter(help="Seconds without a heartbeat after which a worker is dead.")] = 15.0,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of a table.")] = False,
) -> None:
    """Copy a whole store into an empty one, on whichever backends they are, and compare both before it is kept.

    No worker may run at either. The source is left as it was, and not retired: a worker that is started there goes on
    with its sagas, beside those of the copy. How far it is goes to standard error.
    """
    if not lease > 0:
        raise DefinitionError(f"--lease {lease:g}: it is the workers' EngineConfig(lease=…), in seconds, above 0")
    copied = await copy_store(existing(source), to_be_filled(target), lease=lease, tell=_teller())
    sys.stderr.write(_NOT_RETIRED)
    if as_json:
        print_json(msgspec.to_builtins(copied))
        return
    rows = [
        ("events", copied.events),
        ("streams", copied.streams),
        ("unit ids", copied.unit_ids),
        *((table.replace("_", " "), number) for table, number in copied.rows.items() if number),
        ("last position", copied.position),
        ("checksum", copied.checksum),
        *(("starts anew", name) for name in copied.starting_anew),
        *(("left behind", name) for name in copied.left_behind),
    ]
    print_rows(("", ""), [(cell(name, "bold"), cell(value)) for name, value in rows])


def _teller() -> Callable[[str, int, int], None]:
    """Says how far a copy is: when it begins to copy, when it begins to compare, and now and then between."""
    last, due = "", 0.0

    def tell(what: str, number: int, of: int) -> None:
        nonlocal last, due
        if what != last or monotonic() >= due:
            last, due = what, monotonic() + _TELL_EVERY_S
            sys.stderr.write(f"{_TOLD[what]} {number:,} of {of:,}\n")
            sys.stderr.flush()

    return tell


async def _say_version(storage: Storage, common: Common) -> None:
    version = (await storage.status())["schema_version"]
    if common.as_json:
        print_json({"url": storage.url, "schema_version": version})
    else:
        print(f"{storage.url}: schema version {version}, as this version of the library needs it")
