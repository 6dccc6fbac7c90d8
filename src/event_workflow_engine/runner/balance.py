"""How many of its sagas a worker gives to which others: pure, from what each holds and has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Load", "Tolerance", "moves", "targets"]


class Tolerance(msgspec.Struct, frozen=True):
    """When a worker gives sagas away, and how many at a time.

    Attributes:
        least: By so many it must be above its share, at least.
        slack: And by so much of its share.
        at_once: It gives so many in one round, at most.
        stays: A saga that came into memory within these seconds is not given away: most end soon.
        quick: Seconds between two rounds while something is given, and for a while after a worker has come.
        slow: Seconds between two rounds otherwise.
        takes: Seconds in which a saga is for the worker alone that it is given to. Then any may claim it.
        mute: Seconds for which nothing is given to a worker that did not take what it was given.
    """

    least: int = 4
    slack: float = 0.25
    at_once: int = 200
    stays: float = 2.0
    quick: float = 1.0
    slow: float = 5.0
    takes: float = 5.0
    mute: float = 60.0


class Load(NamedTuple):
    """What a worker has to do.

    Attributes:
        worker: Its id.
        held: How many sagas it holds, with those that are given to it.
        room: How many it has room for in all.
        given: How many of those given to it it has not taken yet.
    """

    worker: str
    held: int
    room: int
    given: int = 0


def targets(loads: Iterable[Load]) -> dict[str, int]:
    """How many sagas each worker should hold: shares of all there are, by room, in whole numbers.

    What is left of rounding down goes to those from whom rounding took most, then by id: every worker that looks at the
    same loads gets the same targets.
    """
    known = sorted(loads)
    total, rooms = sum(one.held for one in known), sum(one.room for one in known)
    if not rooms:
        return {one.worker: one.held for one in known}
    shares = {one.worker: total * one.room // rooms for one in known}
    left = total - sum(shares.values())
    for one in sorted(known, key=lambda one: (-(total * one.room % rooms), one.worker))[:left]:
        shares[one.worker] += 1
    return shares


def moves(me: str, loads: Sequence[Load], tolerance: Tolerance) -> dict[str, int]:
    """How many sagas a worker gives to which others now.

    All moves are laid out from the same loads, and this worker's part of them returned, so that several which look at
    once do not fill the same room. Who gives does not fall below its target, and who is given to does not rise above
    its own: nothing goes back and forth. Who has not taken what it was given gets no more.

    Args:
        me: Who gives.
        loads: Of the workers among which sagas may move, itself among them.
        tolerance: By how much it must be above its share.
    """
    share = targets(loads)
    known = sorted(loads)
    lacks = {
        one.worker: min(share[one.worker], one.room) - one.held
        for one in known
        if not one.given and one.held < min(share[one.worker], one.room)
    }
    for one in known:
        mine = share[one.worker]
        above = one.held - mine
        if above < tolerance.least or one.held <= mine * (1 + tolerance.slack):
            continue
        given: dict[str, int] = {}
        for worker in sorted(lacks, key=lambda worker: (-lacks[worker], worker)):
            n = min(above, lacks[worker], tolerance.at_once - sum(given.values()))
            if n > 0:
                given[worker] = n
                lacks[worker] -= n
                above -= n
        if one.worker == me:
            return given
    return {}
