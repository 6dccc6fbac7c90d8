"""One lock for each saga, held while it is executed in this process."""

from __future__ import annotations

import asyncio

__all__ = ["SagaLocks"]


class SagaLocks:
    """Locks by saga id. A saga is executed by who holds its lock; it is given back when its code has ended.

    Whether another *process* may execute it is told by its row; this keeps one process from resuming a saga while
    actions of its former life are still on their way out.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    async def acquire(self, saga_id: str) -> None:
        """Wait for the saga's lock and take it."""
        lock, users = self._locks.setdefault(saga_id, (asyncio.Lock(), []))
        users.append(None)
        try:
            await lock.acquire()
        except BaseException:
            users.pop()
            raise

    def release(self, saga_id: str) -> None:
        """Give it back."""
        lock, users = self._locks[saga_id]
        users.pop()
        lock.release()
        if not users:
            del self._locks[saga_id]

    def held(self, saga_id: str) -> bool:
        """Whether somebody holds it."""
        return saga_id in self._locks

    def __len__(self) -> int:
        """How many sagas are executed or wait to be."""
        return len(self._locks)
