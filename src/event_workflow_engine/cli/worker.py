"""`ewe worker`: runs an engine of the user's as a process of its own, until it is told to end."""

import asyncio
import logging
import signal
import time
from typing import Annotated

from cyclopts import Parameter

from event_workflow_engine.cli.importing import imported
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import DefinitionError

__all__ = ["worker"]


async def worker(engine: Annotated[str, Parameter(help="Where it is: module:name, as in orders.app:engine.")]) -> None:
    """Run the sagas, schedules and projections that an engine has, until SIGTERM or SIGINT; then hand them over.

    The module is found as Python finds it from the current folder. The engine must not be entered by it.
    """
    found = _engine_at(engine)
    logging.basicConfig(level=logging.INFO, handlers=[_lines()])
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with found:
        print(f"worker of {found.storage.url} is ready", flush=True)
        await ended.wait()
        print("handing over", flush=True)


def _lines() -> logging.Handler:
    """The log, with its times in UTC, as those of all commands are."""
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    formatter.default_msec_format = "%s.%03dZ"
    lines = logging.StreamHandler()
    lines.setFormatter(formatter)
    return lines


def _engine_at(place: str) -> WorkflowEngine:
    """The engine that a module has under a name.

    Raises:
        DefinitionError: There is none.
    """
    module_name, colon, name = place.partition(":")
    if not (module_name and colon and name.isidentifier()):
        raise DefinitionError(f"{place!r} names no engine: write module:name, as in orders.app:engine")
    found = imported(place, repr(place))
    if not isinstance(found, WorkflowEngine):
        raise DefinitionError(f"{place!r}: the module has a {type(found).__name__} there, no WorkflowEngine")
    return found
