"""Identifiers: UUID version 7 (RFC 9562), ordered by time of making within a process."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ids_from", "uuid7"]

_NS_PER_MS = 1_000_000
_COUNTER_MAX = 0xFFFFFFFF


class _Generator:
    """Milliseconds, then a counter that starts at random each millisecond, then 62 random-based bits.

    The counter (rand_a, 12 bits and 20 bits of rand_b) keeps ids of one process in order of making, RFC 9562
    section 6.2, method 1; the tail is unique to the process, so that two processes never meet.
    """

    __slots__ = ("_bits", "_block", "_counter", "_ends", "_head", "_ms")

    def __init__(self) -> None:
        self._ms = -1
        self.reseed()

    def reseed(self) -> None:
        tail = os.urandom(5).hex()
        self._ends = [f"{low:02x}{tail}" for low in range(256)]
        # Asked for randomness each millisecond, the system would let another thread have the interpreter each time.
        self._bits = Random(os.urandom(16)).getrandbits  # noqa: S311 - where a counter starts is no secret
        self._advance(max(self._ms + 1, time.time_ns() // _NS_PER_MS))

    def _advance(self, ms: int) -> None:
        self._ms = ms
        text = f"{ms & 0xFFFFFFFFFFFF:012x}"
        self._head = f"{text[:8]}-{text[8:]}-7"
        # The counter's top bit starts at zero, so that it has room to grow within its millisecond.
        self._counter = count(self._bits(31))
        self._block = (-1, "")

    def __call__(self) -> str:
        ms = time.time_ns() // _NS_PER_MS
        if ms > self._ms:
            self._advance(ms)
        n = next(self._counter)
        if n > _COUNTER_MAX:
            self._advance(self._ms + 1)
            n = next(self._counter)
        block, start = self._block
        if block != n >> 8:
            start = self._begin_block(n >> 8)
        return start + self._ends[n & 0xFF]

    def _begin_block(self, block: int) -> str:
        """All of 256 ids in a row but their end: they differ in no more than that."""
        high = f"{block:06x}"
        # 12 bits of counter, variant 10 with two more zero bits, 20 bits of counter, 40 random bits of the process.
        start = f"{self._head}{high[:3]}-8{high[3:]}-"
        self._block = (block, start)
        return start


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
