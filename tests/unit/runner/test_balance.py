"""Who gives how many sagas to whom: the decision alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.runner.balance import Load, Tolerance, moves, targets

if TYPE_CHECKING:
    from collections.abc import Callable

USUAL = Tolerance()


@pytest.mark.parametrize(
    ("held", "given_away"),
    [
        ((300, 0), {"w1": 150}),
        ((1000, 0), {"w1": 200}),  # at once no more
        ((8, 0), {"w1": 4}),
        ((7, 0), {}),  # too few
        ((120, 100), {}),  # not clearly more
        ((300, 150, 0), {"w2": 150}),
        ((10, 0, 0), {"w1": 3, "w2": 3}),
        ((30, *[0] * 99), dict.fromkeys((f"w{n}" for n in range(1, 30)), 1)),
        ((0, 300), {}),
        ((50,), {}),
    ],
    ids=str,
)
def test_a_worker_gives_what_is_above_its_share(held: tuple[int, ...], given_away: dict[str, int]) -> None:
    loads = [Load(f"w{n}", one, 1000) for n, one in enumerate(held)]
    if len(held) > 10:  # by id "w10" comes before "w2"
        assert sum(moves("w0", loads, USUAL).values()) == sum(given_away.values())
    else:
        assert moves("w0", loads, USUAL) == given_away


def test_shares_are_by_room() -> None:
    loads = [Load("a", 300, 1000), Load("b", 0, 500), Load("full", 10, 10)]
    assert targets(loads) == {"a": 205, "b": 103, "full": 2}
    assert moves("a", loads, USUAL) == {"b": 95}


def test_who_has_not_taken_what_it_was_given_gets_no_more() -> None:
    assert moves("a", [Load("a", 300, 1000), Load("b", 40, 1000, given=40), Load("c", 0, 1000)], USUAL) == {"c": 113}


def test_a_room_that_is_full_is_given_nothing() -> None:
    """Also where the others hold more than they have room for, and its share is above its room."""
    assert moves("a", [Load("a", 40, 10), Load("b", 5, 5)], USUAL) == {}


CLUSTERS = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 300)), min_size=1, max_size=8).map(
    lambda drawn: {f"w{n}": Load(f"w{n}", held, max(room, held)) for n, (held, room) in enumerate(drawn)}
)
TOLERANCES = st.builds(
    Tolerance, least=st.integers(1, 6), slack=st.sampled_from([0.0, 0.25, 1.0]), at_once=st.integers(1, 300)
)


def apply(loads: dict[str, Load], giver: str, given_away: dict[str, int]) -> None:
    for worker, n in given_away.items():
        assert n > 0
        loads[worker] = loads[worker]._replace(held=loads[worker].held + n)
        loads[giver] = loads[giver]._replace(held=loads[giver].held - n)


def at_once(loads: dict[str, Load], tolerance: Tolerance) -> list[tuple[str, dict[str, int]]]:
    """All look, then all give."""
    made = [(one, moves(one, list(loads.values()), tolerance)) for one in loads]
    for one, given_away in made:
        apply(loads, one, given_away)
    return made


def one_by_one(loads: dict[str, Load], tolerance: Tolerance) -> list[tuple[str, dict[str, int]]]:
    """Each sees what the one before it has done."""
    made = []
    for one in loads:
        made.append((one, moves(one, list(loads.values()), tolerance)))
        apply(loads, *made[-1])
    return made


@pytest.mark.parametrize("look", [at_once, one_by_one])
@given(CLUSTERS, TOLERANCES)
def test_nothing_goes_back_and_forth_and_the_end_is_balanced(
    look: Callable[[dict[str, Load], Tolerance], list[tuple[str, dict[str, int]]]],
    cluster: dict[str, Load],
    tolerance: Tolerance,
) -> None:
    loads = dict(cluster)
    share, total = targets(loads.values()), sum(one.held for one in loads.values())
    gave, got = set[str](), set[str]()
    for _ in range(total + 1):
        made = [(giver, given_away) for giver, given_away in look(loads, tolerance) if given_away]
        if not made:
            break
        gave |= {giver for giver, _ in made}
        got |= {worker for _, given_away in made for worker in given_away}
        for giver, given_away in made:
            assert sum(given_away.values()) <= tolerance.at_once
            assert loads[giver].held >= share[giver], "no more than what is above its share"
        for worker in got:
            assert loads[worker].held <= share[worker], "no more than its share"
    else:
        raise AssertionError("it never ends")
    assert not gave & got, "who gives is never given to"
    assert sum(one.held for one in loads.values()) == total
    for one in loads.values():
        above = one.held - share[one.worker]
        assert above < tolerance.least or one.held <= share[one.worker] * (1 + tolerance.slack)


@given(CLUSTERS)
def test_shares_are_whole_fair_and_the_same_in_any_order(cluster: dict[str, Load]) -> None:
    loads = list(cluster.values())
    share = targets(loads)
    total, rooms = sum(one.held for one in loads), sum(one.room for one in loads)
    assert sum(share.values()) == total
    assert all(abs(share[one.worker] - total * one.room / rooms) < 1 for one in loads)
    random.Random(total).shuffle(loads)
    assert targets(loads) == share
