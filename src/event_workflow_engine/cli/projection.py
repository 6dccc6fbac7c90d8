"""`ewe projection`: read models, how far they are, and building one anew."""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from event_workflow_engine.cli.importing import imported
from event_workflow_engine.cli.opening import existing, opened
from event_workflow_engine.cli.options import COMMON, Common
from event_workflow_engine.cli.output import cell, console, print_json, print_rows
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import DefinitionError, EngineStateError, NotRegisteredError
from event_workflow_engine.projections import Projection
from event_workflow_engine.storage.port import Storage

__all__ = ["app", "progress"]

app: Final = App(name="projection", help="Read models: how far they are, and building one anew.")

_AGAIN_S: Final = 0.02


@app.command(name="ls")
async def ls(*, common: Common = COMMON) -> None:
    """List the projections that the store knows, with their position and lag. Live ones keep nothing there."""
    async with opened(common.url) as storage:
        end = await storage.last_position()
        found = [await progress(storage, row, end) for row in await storage.query("projections_all")]
    if common.as_json:
        print_json({"projections": found, "last_position": end})
        return
    columns = ("name", "mode", "version", "events", "position", "lag_events", "parked")
    rows = [tuple(cell(projection[column]) for column in columns) for projection in found]
    titles = (*columns[:5], "behind", "parked")
    print_rows(titles, rows, numbers=titles[2:])


async def progress(storage: Storage, row: dict[str, Any], end: int) -> dict[str, Any]:
    """How far a projection is, as JSON has it."""
    name, generation = row["name"], row["generation"]
    checkpoint = await storage.get("checkpoints", (f"projection:{name}@{generation}",)) or {}
    (parked,) = await storage.query("parked_count", projection=name, generation=generation)
    # An inline one is in every commit: it is level by nature, wherever its last event was.
    position = end if row["inline_from"] is not None else checkpoint.get("position") or 0
    return {
        "name": name,
        "mode": row["mode"],
        "version": row["version"],
        "generation": generation,
        "events": checkpoint.get("events") or 0,
        "position": position,
        "lag_events": max(0, end - position),
        "parked": parked["n"],
        "rebuilding": row["shadow"] is not None and row["shadow"] != generation,
        "owner": checkpoint.get("owner") or None,
    }


@app.command(name="rebuild")
async def rebuild(  # noqa: D417 - shared options tell of themselves
    name: str,
    /,
    *,
    app: Annotated[str | None, Parameter(name="--app")] = None,
    timeout: Annotated[float, Parameter(name="--timeout")] = 300,  # noqa: ASYNC109 - the option's name
    common: Common = COMMON,
) -> None:
    """Fold the whole log anew beside the live read model, then take its place.

    The worker that feeds the projection must not run meanwhile: while it does, rebuild it there.

    Args:
        name: The projection's name.
        app: Where its definition is: `module:object`, a projection or several, or a `module` that holds it.
        timeout: Seconds after which to give up, with the live read model as it was.
    """
    if not timeout > 0:
        raise DefinitionError(f"--timeout {timeout:g}: seconds, above 0")
    storage = existing(common.url)
    projection = _definition(name, app)
    if projection.mode == "live":
        raise DefinitionError(f"projection {name!r} is live: it is folded when it is read, there is nothing to rebuild")
    async with storage:
        if await storage.get("projections", (name,)) is None:
            raise NotRegisteredError(f"there is no projection {name!r} in {common.url}: see ewe projection ls")
        engine = WorkflowEngine(storage)
        engine.projections.register(projection)
        with _quiet_scheduler():
            async with engine:
                try:
                    async with asyncio.timeout(timeout):
                        await _rebuild(engine, storage, projection)
                except TimeoutError:
                    raise EngineStateError(
                        f"projection {name!r} was not rebuilt within {timeout:g} s: the live one is as it was; "
                        "give it more with --timeout"
                    ) from None
                status = await engine.projections.status(projection)
    done = {"name": name, "rebuilt": True, "events": status.events, "position": status.position}
    if common.as_json:
        print_json(done)
    else:
        console().print(cell(f"projection {name} rebuilt from {status.events} events"))


@contextmanager
def _quiet_scheduler() -> Iterator[None]:
    """Tasks that are due stay with workers that have their code; that this process has none is no news."""
    log = logging.getLogger("event_workflow_engine.scheduler")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


async def _rebuild(engine: WorkflowEngine, storage: Storage, projection: Projection) -> None:
    """Rebuild once this process feeds the projection; unless another that lives does."""
    while True:
        try:
            await engine.projections.rebuild(projection)
        except EngineStateError:
            if await _fed_elsewhere(storage, projection.name):
                raise
            await asyncio.sleep(_AGAIN_S)  # it is about to be this process's
        else:
            return


async def _fed_elsewhere(storage: Storage, name: str) -> bool:
    row = await storage.get("projections", (name,))
    generation = 1 if row is None else row["generation"]
    checkpoint = await storage.get("checkpoints", (f"projection:{name}@{generation}",))
    workers = await storage.query("live_workers")
    others = {worker["id"] for worker in workers if worker["pid"] != os.getpid()}
    return checkpoint is not None and checkpoint["owner"] in others


def _definition(name: str, target: str | None) -> Projection:
    if target is None:
        raise DefinitionError(
            f"a projection's definition is code: say where {name!r} is with --app module:object, e.g. --app shop:totals"
        )
    for projection in _projections_of(imported(target, f"--app {target}")):
        if projection.name == name:
            return projection
    raise DefinitionError(
        f"--app {target}: it is no projection named {name!r}, and holds none: name the projection, its module, "
        "or an engine that has registered it"
    )


def _projections_of(found: Any) -> Iterable[Projection]:
    if isinstance(found, Projection):
        return [found]
    if isinstance(found, WorkflowEngine):
        return found.projections.registered
    if isinstance(found, ModuleType):
        found = vars(found).values()
    if isinstance(found, Iterable):
        return [one for one in found if isinstance(one, Projection)]
    return []
