"""One lock for each saga, held while it is executed in this process."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["SagaLocks"]


class SagaLocks:
    """Locks by saga id. A saga is executed by who holds its lock; it is given back when its code has ended.

    Whether another *process* may execute it is told by its row; this keeps one process from resuming a saga while
    actions of its former life are still on their way out.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        # Nearly always nobody waits, and then a held lock costs an entry, no object.
        self._held: dict[str, deque[asyncio.Future[None]] | None] = {}

    async def acquire(self, saga_id: str) -> None:
        """Wait for the saga's lock and take it; those who wait get it in their order."""
        if saga_id not in self._held:
            self._held[saga_id] = None
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._held[saga_id]
        if waiting is None:
            waiting = self._held[saga_id] = deque()
        waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it was given to us and we will not take it
                self.release(saga_id)
            raise

    def release(self, saga_id: str) -> None:
        """Give it to who waited longest, or back.

        Raises:
            KeyError: Nobody holds it.
        """
        waiting = self._held[saga_id]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._held[saga_id]

    def held(self, saga_id: str) -> bool:
        """Whether somebody holds it."""
        return saga_id in self._held

    def __len__(self) -> int:
        """How many sagas are executed."""
        return len(self._held)
