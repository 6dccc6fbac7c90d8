"""`Threads`: the plain functions of sagas that are under way in a test, so that its clock waits for them."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads"]

_PATIENCE_S: Final = 2.0


class Threads:
    """Calls functions in threads, and knows which have not returned.

    Attributes:
        patience: How long one is waited for, in seconds of real time: it may wait itself for what the test does only
            when its clock has moved.
    """

    def __init__(self) -> None:
        self.patience = _PATIENCE_S
        self._under_way: set[asyncio.Future[Any]] = set()
        self._outlasted: set[asyncio.Future[Any]] = set()

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call it in a thread, in the caller's context."""
        future = asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, fn, *args)
        self._under_way.add(future)
        future.add_done_callback(self._forget)
        return await future

    async def one_returned(self) -> bool:
        """Wait for one of them; ``False`` where none is left but those that were waited for in vain before."""
        pending = self._under_way - self._outlasted
        if not pending:
            return False
        done, _ = await asyncio.wait(pending, timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._outlasted |= pending
        return bool(done)

    def _forget(self, future: asyncio.Future[Any]) -> None:
        self._under_way.discard(future)
        self._outlasted.discard(future)
