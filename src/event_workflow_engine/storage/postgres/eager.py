"""Running a coroutine at once up to where it first waits, instead of in the loop's next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["task_begun"]


class _Begun(Coroutine[Any, Any, None]):
    """A coroutine that waits for something already, which its task is told of first."""

    __slots__ = ("_awaited", "_coro", "_is_told")

    def __init__(self, coro: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._coro = coro
        self._awaited = awaited
        self._is_told = False

    def send(self, value: Any, /) -> Any:
        if self._is_told:
            return self._coro.send(value)
        self._is_told = True
        awaited, self._awaited = self._awaited, None
        return awaited

    def throw(self, error: Any, /, *_: Any) -> Any:
        self._is_told = True
        self._awaited = None
        return self._coro.throw(error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("only a task runs it")


def task_begun(coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """A task of `coro`, which has been run already to where it first waits.

    What Python 3.12 calls an eager task, but for one thing: until it first waits, `coro` is in no task of its own. So
    it must not enter an `asyncio.timeout` or ask for the task that it is in.
    """
    try:
        awaited = coro.send(None)
    except StopIteration:
        return asyncio.ensure_future(_nothing())
    return asyncio.get_running_loop().create_task(_Begun(coro, awaited), name=name)


async def _nothing() -> None:
    """What is left of a coroutine that has not waited at all."""
