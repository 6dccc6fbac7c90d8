"""User's SQL and a unit in one transaction, both or neither: written once for every backend."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import SqlSession, Unit

__all__ = ["ExclusiveTransaction", "run_with_unit", "to_the_end"]

T = TypeVar("T")


class ExclusiveTransaction(Protocol):
    """A write transaction that stays open while a user's code runs. Serves once."""

    async def begin(self) -> SqlSession:
        """Begin; the session for the user's SQL."""
        ...

    async def end(self) -> None:
        """The work is over: its session takes no statement any more, and none is under way."""
        ...

    async def abort(self) -> None:
        """Undo everything."""
        ...

    async def commit(self, unit: Unit) -> Verdict:
        """Write `unit` and commit; or undo everything, where `unit` loses, and where it had landed before."""
        ...


async def run_with_unit(
    transaction: ExclusiveTransaction,
    work: Callable[[SqlSession], Awaitable[Unit]],
    bound: AbstractAsyncContextManager[None],
) -> tuple[Unit, Verdict]:
    """Run `work` within `bound`, and commit the unit that it returns with it; that, and what became of it.

    Raises:
        Exception: What `work` or `bound` raised; nothing stays.
    """
    begun = asyncio.ensure_future(transaction.begin())
    try:
        session = await to_the_end(begun)
        async with bound:
            unit = await work(session)
    except BaseException:
        if not begun.cancelled() and begun.exception() is None:
            await to_the_end(asyncio.ensure_future(_undo(transaction)))
        raise
    await transaction.end()
    return unit, await to_the_end(asyncio.ensure_future(transaction.commit(unit)))


async def _undo(transaction: ExclusiveTransaction) -> None:
    await transaction.end()
    await transaction.abort()


async def to_the_end(job: asyncio.Future[T]) -> T:
    """The result of a job that must not be left halfway; a cancel that comes meanwhile is raised behind it."""
    cancelled: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        job.exception()  # it was looked at
        raise cancelled
    return job.result()
