"""How the network between the processes and the server behaves, by the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import random

__all__ = ["Link", "Weather"]

PATIENCE_S: Final = 8.0
"""How long a process tries to reach the server before it tells those who wait."""


class Weather(msgspec.Struct, frozen=True):
    """How bad it is. All but the first two are chances, from 0 to 1.

    Attributes:
        latency: Seconds that a message takes, on average.
        fsync: Seconds that a commit takes, at most.
        refused: A call fails, and nothing of it is done.
        lost_answer: A commit is made, and its answer lost.
        late_commit: A commit's answer is lost, and it is made later.
        late_bell: Another process hears of a commit seconds later.
        lost_read: A read has no answer, and fails after a while.
        slow_read: A read is answered seconds later.
    """

    latency: float = 0.001
    fsync: float = 0.005
    refused: float = 0.0
    lost_answer: float = 0.0
    late_commit: float = 0.0
    late_bell: float = 0.0
    lost_read: float = 0.0
    slow_read: float = 0.0


class Link:
    """The way of one process to the server.

    Args:
        weather: How it is.
        chance: Draws what becomes of each message.

    Attributes:
        weather: How it is now.
        cut_until: When messages arrive again.
        errors: What becomes of single calls, by their number.
        calls: How many there were.
        met: How many of `errors` have happened.
    """

    def __init__(self, weather: Weather, chance: random.Random) -> None:
        self.weather = weather
        self.cut_until = 0.0
        self.errors: dict[int, str] = {}
        self.calls = 0
        self.met = 0
        self._draw = chance.random

    def latency(self) -> float:
        """Of one message."""
        return self.weather.latency * 2 * self._draw()

    def happens(self, likelihood: float) -> bool:
        """Whether something of that likelihood happens now."""
        return likelihood > 0 and self._draw() < likelihood

    def between(self, least: float, most: float) -> float:
        """Some seconds."""
        return least + (most - least) * self._draw()

    def fate(self, *, commits: bool) -> str:
        """What becomes of the next call: arrives, slow, refused, lost or late."""
        self.calls += 1
        if self.calls in self.errors:
            self.met += 1
            return self.errors[self.calls]
        weather, draw = self.weather, self._draw
        if weather.refused and draw() < weather.refused:
            return "refused"
        if commits:
            if weather.lost_answer and draw() < weather.lost_answer:
                return "lost"
            return "late" if weather.late_commit and draw() < weather.late_commit else "arrives"
        if weather.lost_read and draw() < weather.lost_read:
            return "lost"
        return "slow" if weather.slow_read and draw() < weather.slow_read else "arrives"
