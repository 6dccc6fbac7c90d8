"""Says once that sagas wait for code which no living worker has."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from event_workflow_engine.clock import from_micros
from event_workflow_engine.errors import StorageError
from event_workflow_engine.waiting import unclaimed

if TYPE_CHECKING:
    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.kit import Kit

__all__ = ["CodeWatch"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_LOOK_S: Final = 60.0
"""It is not urgent, and costs reads: rarely, beside all that sagas do."""


class CodeWatch:
    """Looks now and then, as long as the engine is entered as a worker.

    Args:
        kit: The engine's parts.
        definitions: The sagas that can run here.
    """

    def __init__(self, kit: Kit, definitions: Definitions) -> None:
        self._kit = kit
        self._definitions = definitions
        self._said: set[tuple[str, int]] = set()

    async def look_for_ever(self) -> None:
        """Look, now and then."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except StorageError as error:
                _log.debug("could not look for sagas without code, trying again: %s", error)
            except Exception:  # noqa: BLE001 - nothing else would look if this task ended
                _log.exception("could not look for sagas without code, trying again")

    async def look(self) -> None:
        """Say of which definitions sagas wait for code; of each once, until it has come.

        Raises:
            StorageError: The store cannot be asked.
        """
        kit = self._kit
        found = await unclaimed(kit.storage, kit.now(), await kit.storage.query("live_workers"))
        here = self._definitions
        waiting = {(one.saga, one.version): one for one in found if here.find(one.saga, one.version) is None}
        for key in sorted(waiting.keys() - self._said):
            one = waiting[key]
            _log.warning(
                "%s%d sagas wait for code that no living worker has: %s v%d, since %s: start a worker that registers "
                "it, and they go on", "at least " if one.more else "", one.number, one.saga, one.version,
                from_micros(one.since).isoformat(timespec="seconds"),
            )  # fmt: skip
        self._said = set(waiting)
