"""Results that end while a unit of their saga is on its way gather for the next one, but not more than it can take."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

    from event_workflow_engine.runner.execution import Attempt
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["ENOUGH", "Gathering"]

ENOUGH: Final = 32 * 2**20
"""Bytes of results in a unit beyond which no other joins it. One more may have 64 MiB, and so may what a body returns:
that is far below what a unit may have, and what a store needs to write in one go."""


class Gathering:
    """Tells a saga of its attempts' ends: at once, or where enough has gathered for a unit when that is on disk.

    It is as if the action had ended then: nothing of its end is known to the body, and nothing has followed from it.
    So no unit grows beyond what a store takes, whatever ends at the same time.

    Args:
        run: The saga.
    """

    __slots__ = ("_run",)

    def __init__(self, run: SagaRun) -> None:
        self._run = run

    def attempt_ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        """See `AttemptOwner.attempt_ended`."""
        run = self._run
        if run.pen.gathered >= ENOUGH:
            # What has gathered waits for a unit, so one is to be told of; after that this turn's unit has been sent.
            run.landed().add_done_callback(partial(self._landed, attempt, value, error), context=run.kit.context.copy())
        else:
            run.attempt_ended(attempt, value, error)

    def _landed(self, attempt: Attempt, value: Any, error: BaseException | None, _: asyncio.Future[None]) -> None:
        if not self._run.closed:
            self.attempt_ended(attempt, value, error)

    def attempt_stuck(self, attempt: Attempt) -> None:
        """See `AttemptOwner.attempt_stuck`."""
        self._run.attempt_stuck(attempt)
