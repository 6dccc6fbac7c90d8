"""`ObservedStorage`: a store as one engine sees it, which tells what is on its way, and can cut the engine off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.storage.port import SqlSession, Storage, Told, Unit, Written

__all__ = ["CrashPoint", "ObservedStorage"]

_READS: Final = frozenset(
    ("outcome", "head", "last_position", "read_stream", "read_streams", "read_log", "get", "query", "fetch")
)


class CrashPoint(NamedTuple):
    """Where an engine crashes: before a durable operation, which then does not happen, or behind it.

    Attributes:
        when: Before it, or behind it: it is on disk then, and the engine has not heard of it.
        at: Which one, from 1.
    """

    when: Literal["before", "behind"]
    at: int

    def __str__(self) -> str:
        return f"{self.when}:{self.at}"


class ObservedStorage:
    """Hands everything on to a store.

    Args:
        storage: The store.
        crash: Where to cut the engine off: from there on nothing that it writes arrives, and no answer comes.
        end: Called there, where it does not return, instead of cutting it off.

    Attributes:
        operations: Durable operations that were begun since it was armed.
        in_flight: Calls whose answers have not come; a crash is one until it is mended.
        cut: Set from the crash on, until it is mended.
    """

    def __init__(
        self, storage: Storage, crash: CrashPoint | None = None, *, end: Callable[[], None] | None = None
    ) -> None:
        self._storage = storage
        self._crash = crash
        self._end = end
        self._armed = False
        self._blocked = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.operations = 0
        self.in_flight = 0
        self.cut = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in _READS:
            return found

        async def read(*args: Any, **params: Any) -> Any:
            self._left()
            try:
                return await found(*args, **params)
            finally:
                self._came()

        return read

    def arm(self) -> None:
        """Count from now on: the engine has been entered."""
        self._armed = True

    def disarm(self) -> None:
        """Count no more, and let everything through: the engine is left, or another one is entered after the crash."""
        self._armed = self._blocked = False

    def mend(self) -> None:
        """The engine runs again."""
        self.cut.clear()
        self._came()

    async def quiet(self) -> None:
        """Wait until every answer has come."""
        await self._quiet.wait()

    def _left(self) -> None:
        self.in_flight += 1
        self._quiet.clear()

    def _came(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._quiet.set()

    def _begins(self) -> bool:
        """An operation begins; whether the crash is behind it.

        Raises:
            StorageUnavailableError: It does not arrive.
        """
        if self._blocked:
            raise _cut_off()
        if not self._armed:
            return False
        self.operations += 1
        if self._crash is None or self.operations < self._crash.at:
            return False
        self._blocked = True
        self._left()
        self.cut.set()
        if self._crash.when == "behind":
            return True
        self._crashed()
        raise _cut_off()

    def _crashed(self) -> None:
        if self._end is not None:
            self._end()

    async def _write(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        is_last = self._begins()
        self._left()
        try:
            answer = await operation()
        finally:
            self._came()
        if is_last:
            self._crashed()
        if self._blocked:
            raise _cut_off()
        return answer

    def post(self, unit: Unit, told: Told) -> None:
        """See `Storage.post`."""
        try:
            is_last = self._begins()
        except StorageUnavailableError as error:
            asyncio.get_running_loop().call_soon(told, error)
            return

        def answered(verdict: Written | Exception) -> None:
            self._came()
            if is_last:
                self._crashed()
            told(_cut_off() if self._blocked else verdict)

        self._left()
        self._storage.post(unit, answered)

    def submit(self, unit: Unit) -> asyncio.Future[Written]:
        """See `Storage.submit`."""
        return asyncio.ensure_future(self.write(unit))

    async def write(self, unit: Unit) -> Any:
        """See `Storage.write`."""
        return await self._write(lambda: self._storage.write(unit))

    async def perform(self, name: str, **params: Any) -> Any:
        """See `Storage.perform`."""
        return await self._write(lambda: self._storage.perform(name, **params))

    async def exclusive(self, unit: Unit, work: Callable[[SqlSession], Awaitable[None]]) -> Any:
        """See `Storage.exclusive`."""
        return await self._write(lambda: self._storage.exclusive(unit, work))

    async def transact(self, work: Callable[[SqlSession], Awaitable[Unit]]) -> Any:
        """See `Storage.transact`."""
        return await self._write(lambda: self._storage.transact(work))


def _cut_off() -> StorageUnavailableError:
    return StorageUnavailableError("the engine has crashed here, on purpose: nothing that it writes arrives any more")
