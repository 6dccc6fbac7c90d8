"""A store of its own beside another, for who wants to try something there without touching that one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

__all__ = ["Scratch"]


class Scratch(Protocol):
    """A place for an empty store, on the disk or in the database of another; nothing is touched before `make`.

    `drop` may be called whatever became of `make`, and again.
    """

    backend: str
    """``sqlite`` or ``postgres``."""
    url: str
    """The store, to be opened with ``auto_upgrade=True``."""
    shown: str
    """Where it is, as it may be shown: without a password."""

    @property
    def folder(self) -> Path | None:
        """For files on the same disk; ``None`` where that is a server's."""
        ...

    async def make(self) -> dict[str, str]:
        """Make the place; settings of the server that say how durable a commit is.

        Raises:
            StorageError: It cannot be made there; typed by why.
        """
        ...

    async def drop(self) -> None:
        """Remove it with all that is in it.

        Raises:
            StorageError: It stays; says how to remove it by hand.
        """
        ...

    def committing(self) -> AbstractAsyncContextManager[Callable[[bytes], Awaitable[object]]]:
        """What commits one row of such data to the place, with nothing of this library around it."""
        ...
