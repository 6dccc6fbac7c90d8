"""Holding a store as a whole, written once for every backend: what was put is kept when the work has returned."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from event_workflow_engine.storage.exclusive import to_the_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from event_workflow_engine.storage.port import HeldStore

__all__ = ["PAGE_BYTES", "HoldingTransaction", "page_of", "run_held"]

T = TypeVar("T")

PAGE_BYTES: Final = 4_000_000
"""How much text and how many bytes end a page of rows, however few they are: it has to fit into memory."""


def page_of(rows: Iterator[tuple[Any, ...]], limit: int) -> list[tuple[Any, ...]]:
    """The next of the rows: see `RowPages.next`."""
    page, size = [], 0
    for row in islice(rows, limit):
        page.append(row)
        size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
        if size >= PAGE_BYTES:
            break
    return page


class HoldingTransaction(Protocol):
    """A write transaction over everything that a store keeps. Serves once."""

    async def begin(self) -> HeldStore:
        """Keep all other writers out, and begin. Where it raises nothing is held."""
        ...

    async def commit(self) -> None:
        """Keep what was put, and let the others in; also where it raises."""
        ...

    async def abort(self) -> None:
        """Undo everything, and let the others in."""
        ...


async def run_held(transaction: HoldingTransaction, work: Callable[[HeldStore], Awaitable[T]]) -> T:
    """Run `work` in a transaction, and commit.

    Raises:
        StorageError: The store cannot be held, or cannot keep what was put. Where it was lost while it committed, it
            may be there all the same.
        Exception: What `work` raised; nothing stays.
    """
    begun = asyncio.ensure_future(transaction.begin())
    try:
        result = await work(await to_the_end(begun))
    except BaseException:
        if not begun.cancelled() and begun.exception() is None:
            await to_the_end(asyncio.ensure_future(transaction.abort()))
        raise
    await to_the_end(asyncio.ensure_future(transaction.commit()))
    return result
