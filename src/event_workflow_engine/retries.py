"""Retry policies: when the next attempt is due. Pure values; the engine keeps the counters in the journal."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

from event_workflow_engine.clock import Duration, seconds
from event_workflow_engine.errors import DefinitionError

__all__ = ["COMPENSATION_RETRY", "ONE_ATTEMPT", "RetryPolicy"]


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential back-off with jitter, and what is never retried.

    The counters are durable: `attempts` counts outcomes over any number of crashes; an attempt that a crash
    interrupted counts against `max_interruptions` instead.

    Attributes:
        attempts: How often the action may be tried in all; ``None`` for without end. Default 3.
        delay: Wait before the second attempt; seconds or timedelta. Default 0.5 s.
        factor: The wait grows by this with each attempt. Default 2.
        max_delay: The wait grows up to this. Default 60 s.
        jitter: Share of the wait by which it is varied at random, both ways. Default 0.1.
        never: Exception types that are not retried.
        max_interruptions: How often a crash may interrupt the action before its outcome is taken as unknown. Default 5.
            An outage of the store that its worker outlives is none.

    Raises:
        DefinitionError: A value is out of its range.

    Example:
        >>> policy = RetryPolicy(attempts=4, delay=1, jitter=0)
        >>> [policy.wait_after(n) for n in (1, 2, 3)]
        [1.0, 2.0, 4.0]
    """

    attempts: int | None = 3
    delay: Duration = 0.5
    factor: float = 2.0
    max_delay: Duration = 60.0
    jitter: float = 0.1
    never: tuple[type[BaseException], ...] = ()
    max_interruptions: int = 5

    def __post_init__(self) -> None:
        """Check the types and ranges."""
        for field in ("attempts", "factor", "jitter", "max_interruptions"):
            value = getattr(self, field)
            if isinstance(value, bool) or not (
                isinstance(value, (int, float)) or (value is None and field == "attempts")
            ):
                raise DefinitionError(f"RetryPolicy({field}={value!r}): a number")
        if self.attempts is not None and self.attempts < 1:
            raise DefinitionError(f"RetryPolicy(attempts={self.attempts}): at least 1, or None for without end")
        # Written so that NaN fails too.
        if not (0 <= seconds(self.delay) < math.inf and 0 <= seconds(self.max_delay) < math.inf):
            raise DefinitionError("RetryPolicy: delay and max_delay must be finite and not negative")
        if not 1 <= self.factor < math.inf:
            raise DefinitionError(f"RetryPolicy(factor={self.factor}): finite and at least 1")
        if not 0 <= self.jitter <= 1:
            raise DefinitionError(f"RetryPolicy(jitter={self.jitter}): a share from 0 to 1")
        if self.max_interruptions < 0:
            raise DefinitionError("RetryPolicy: max_interruptions must not be negative")

    def may_follow(self, attempt: int) -> bool:
        """Whether another attempt may follow attempt number `attempt` (from 1)."""
        return self.attempts is None or attempt < self.attempts

    def wait_after(self, attempt: int, *, chance: float | None = None) -> float:
        """Seconds to wait after attempt number `attempt` (from 1).

        Args:
            attempt: The attempt that has just ended.
            chance: Where in the jitter's range, from 0 to 1; drawn at random when ``None``.
        """
        cap = seconds(self.max_delay)
        try:
            wait = min(cap, seconds(self.delay) * self.factor ** (attempt - 1))
        except OverflowError:  # a policy without end comes to it
            wait = cap if seconds(self.delay) else 0.0
        if not self.jitter:
            return wait
        # Not a secret: it only spreads load.
        place = random.random() if chance is None else chance  # noqa: S311
        return max(0.0, wait * (1 + self.jitter * (2 * place - 1)))


ONE_ATTEMPT: Final = RetryPolicy(attempts=1)
"""The default of actions."""

COMPENSATION_RETRY: Final = RetryPolicy(attempts=8)
"""The default of compensations."""
