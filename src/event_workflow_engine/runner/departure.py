"""An engine is left to the end, whoever waits for that: one who is cancelled asks for haste, and goes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Departure"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_HASTE_S: Final = 5.0
"""So long one who was cancelled still waits: sagas that are handed over cost a second and a few writes, if the store
answers."""


class Departure:
    """The end of one life of an engine. Half of it would keep sagas from others for as long as this process lives.

    Args:
        cut_off: Ends what runs, at once: who is cancelled may end the loop, too, which cancels actions as if they had
            failed.

    Attributes:
        haste: Done when what runs gets no more time.
    """

    def __init__(self, cut_off: Callable[[], None]) -> None:
        self._cut_off = cut_off
        self.haste: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaving: asyncio.Task[None] | None = None

    async def leave(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close everything, and wait for that.

        Cancelling it cuts short what has a timeout. A second cancel, or a store that does not answer, ends the wait:
        the rest is done behind it, for as long as the loop runs.
        """
        loop = asyncio.get_running_loop()  # there is none where a garbage collector closes who would leave
        leaving = self._leaving = loop.create_task(self._close(close), name="ewe-leaving")
        try:
            await asyncio.wait([leaving])
        except asyncio.CancelledError:
            leaving.add_done_callback(_tell)
            if not (leaving.done() or self.haste.done()):  # else what is cut off may be of the next life
                self.haste.set_result(None)
                self._cut_off()
            await asyncio.wait([leaving], timeout=_HASTE_S)
            if not leaving.done():
                _log.warning("leaving the engine was cancelled, and goes on: the store has not answered, or code that "
                             "was asked to end has not")  # fmt: skip
            raise
        leaving.result()

    async def over(self) -> None:
        """Wait until it is."""
        leaving = self._leaving
        if leaving is not None and leaving.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([leaving])

    @staticmethod
    async def _close(close: Callable[[], Awaitable[None]]) -> None:
        await close()


def _tell(leaving: asyncio.Task[None]) -> None:
    if not leaving.cancelled() and (error := leaving.exception()) is not None:
        _log.error("the engine could not be left in good order", exc_info=error)
