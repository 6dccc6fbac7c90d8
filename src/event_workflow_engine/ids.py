"""Identifiers: UUID version 7 (RFC 9562), ordered by time of making within a process."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from itertools import count
from random import Random
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ids_from", "uuid7"]

_NS_PER_MS = 1_000_000
_COUNTER_MAX = 0xFFFFFFFF


class _Moment:
    """One millisecond: what its ids have in common, and how many there were."""

    __slots__ = ("block", "counter", "head", "ms")

    def __init__(self, ms: int, first: int) -> None:
        self.ms = ms
        text = f"{ms & 0xFFFFFFFFFFFF:012x}"
        self.head = f"{text[:8]}-{text[8:]}-7"
        self.counter = count(first)
        self.block = (-1, "")

    def begin_block(self, block: int) -> str:
        """All of 256 ids in a row but their end: they differ in no more than that."""
        high = f"{block:06x}"
        # 12 bits of counter, variant 10 with two more zero bits, 20 bits of counter, 40 random bits of the process.
        start = f"{self.head}{high[:3]}-8{high[3:]}-"
        self.block = (block, start)
        return start


class _Generator:
    """Milliseconds, then a counter that starts at random each millisecond, then 62 random-based bits.

    The counter (rand_a, 12 bits and 20 bits of rand_b) keeps ids of one process in order of making, RFC 9562
    section 6.2, method 1; the tail is unique to the process, so that two processes never meet. Threads may meet at the
    end of a millisecond: then each has its own ids in order, and another's may lie between.
    """

    __slots__ = ("_bits", "_ends", "_lock", "_moment")

    def __init__(self) -> None:
        self._moment = _Moment(-1, 0)
        self.reseed()

    def reseed(self) -> None:
        self._lock = Lock()
        tail = os.urandom(5).hex()
        self._ends = [f"{low:02x}{tail}" for low in range(256)]
        # Asked for randomness each millisecond, the system would let another thread have the interpreter each time.
        self._bits = Random(os.urandom(16)).getrandbits  # noqa: S311 - where a counter starts is no secret
        self._advance(max(self._moment.ms + 1, time.time_ns() // _NS_PER_MS))

    def _advance(self, ms: int) -> _Moment:
        with self._lock:
            if ms > self._moment.ms:
                # The counter's top bit starts at zero, so that it has room to grow within its millisecond.
                self._moment = _Moment(ms, self._bits(31))
            return self._moment

    def __call__(self) -> str:
        ms = time.time_ns() // _NS_PER_MS
        moment = self._moment
        if ms > moment.ms:
            moment = self._advance(ms)
        n = next(moment.counter)
        while n > _COUNTER_MAX:
            moment = self._advance(moment.ms + 1)
            n = next(moment.counter)
        block, start = moment.block
        if block != n >> 8:
            start = moment.begin_block(n >> 8)
        return start + self._ends[n & 0xFF]


_of_process = _Generator()
_generate: Callable[[], str] = _of_process
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_of_process.reseed)


def uuid7() -> str:
    """A new UUID version 7 as text; later ones of this process sort behind earlier ones.

    Example:
        >>> first, second = uuid7(), uuid7()
        >>> first < second, first[14]
        (True, '7')
    """
    return _generate()


@contextmanager
def ids_from(generate: Callable[[], str]) -> Iterator[None]:
    """Take this process's ids from elsewhere meanwhile: for runs that are to be the same each time.

    Args:
        generate: Gives unique ids, each sorting behind those before.
    """
    global _generate  # noqa: PLW0603 - one generator for the process is the point
    before, _generate = _generate, generate
    try:
        yield
    finally:
        _generate = before
