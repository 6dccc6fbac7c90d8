"""`ewe worker`: runs an engine of the user's as a process of its own, until it is told to end."""

import asyncio
import importlib
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import DefinitionError

__all__ = ["worker"]


async def worker(engine: Annotated[str, Parameter(help="Where it is: module:name, as in orders.app:engine.")]) -> None:
    """Run the sagas, schedules and projections that an engine has, until SIGTERM or SIGINT; then hand them over.

    The module is found as Python finds it from the current folder. The engine must not be entered by it.
    """
    found = _engine_at(engine)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with found:
        print(f"worker of {found.storage.url} is ready", flush=True)
        await ended.wait()
        print("handing over", flush=True)


def _engine_at(place: str) -> WorkflowEngine:
    """The engine that a module has under a name.

    Raises:
        DefinitionError: There is none.
    """
    module_name, colon, name = place.partition(":")
    if not (module_name and colon and name.isidentifier()):
        raise DefinitionError(f"{place!r} names no engine: write module:name, as in orders.app:engine")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise DefinitionError(f"{place!r}: there is no module {error.name!r} to be found from {here}") from error
    found = getattr(module, name, None)
    if not isinstance(found, WorkflowEngine):
        what = "has no such name" if found is None else f"has a {type(found).__name__} there, no WorkflowEngine"
        raise DefinitionError(f"{place!r}: the module {what}")
    return found
