"""Which event loop something belongs to, and what is said to those who call it from another one."""

from __future__ import annotations

import asyncio

from event_workflow_engine.errors import EngineStateError

__all__ = ["require_loop"]


def require_loop(own: asyncio.AbstractEventLoop, what: str, name: str = "") -> None:
    """See that this is called on the loop that it belongs to.

    From another one, what waits would never be woken, and what both change at once would be torn.

    Args:
        own: The loop that it belongs to.
        what: What belongs to it, for the error's text.
        name: Of which it is.

    Raises:
        EngineStateError: This is another loop, another thread, or no loop at all.
    """
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is own:
        return
    if name:
        what = f"{what} {name!r}"
    if own.is_closed():
        raise EngineStateError(f"{what} was entered on an event loop that has ended, and was not left there")
    raise EngineStateError(
        f"{what} belongs to the event loop on which it was entered: call it there; from another thread by "
        "asyncio.run_coroutine_threadsafe(…, loop), or enter an engine of its own on each loop"
    )
