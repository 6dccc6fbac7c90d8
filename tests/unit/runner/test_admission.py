"""Who of those that wait begins: `planned` decides from what was read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.queues import Limits
from event_workflow_engine.runner.admission import Plan, planned

NOW = 1_000_000_000


def head(saga: str, partition: str = "", at: int = 0, each: int = 99) -> dict[str, Any]:
    return {"saga": saga, "partition": partition, "enqueued_at": at, "each": each}


def heads(words: str, each: int = 99) -> list[dict[str, Any]]:
    """`a1 a2 b3`: partition a, enqueued at 1, …; by partition as a store tells them."""
    return [head(word, word[0], int(word[1:]), each) for word in words.split()]


def plan(
    limits: Limits, waiting: str, running: dict[str, int] | None = None, *, total: int = 0, room: int = 99,
    recent: list[list[int]] | None = None, each: int = 99,
) -> Plan:  # fmt: skip
    return planned(limits, heads(waiting, each), running or {}, total, room=room, recent=recent or [], now=NOW)


def chosen(made: Plan) -> str:
    return " ".join(row["saga"] for row in made.heads)


def test_without_limits_all_begin_the_oldest_partition_first() -> None:
    assert chosen(plan(Limits(), "a5 a6 b3")) == "b3 a5 a6"


def test_partitions_take_turns() -> None:
    assert chosen(plan(Limits(), "a1 a2 a3 a4 b9", room=3)) == "a1 b9 a2"


def test_the_partition_with_the_fewest_running_goes_first() -> None:
    assert chosen(plan(Limits(), "a1 a2 a3 b4 b5", {"a": 2}, room=3)) == "b4 b5 a1"


def test_a_queues_limit_counts_what_runs() -> None:
    assert chosen(plan(Limits(limit=5), "a1 a2 a3", total=3)) == "a1 a2"
    assert chosen(plan(Limits(limit=5), "a1 a2 a3", total=6)) == ""


def test_a_partitions_limit_counts_what_runs_of_it() -> None:
    assert chosen(plan(Limits(partition_limit=2), "a1 a2 b3 b4 b5", {"a": 1, "b": 2})) == "a1"


def test_a_partition_that_was_not_read_to_its_end_is_not_passed_over() -> None:
    """Three more of `a` may go before any of `b`; two were read. The next round reads the others."""
    assert chosen(plan(Limits(), "a1 a2 b1 b2", {"b": 3}, each=2)) == "a1 a2"


def test_a_full_partition_that_was_not_read_to_its_end_holds_nobody_up() -> None:
    assert chosen(plan(Limits(partition_limit=1), "a1 b2", each=1)) == "a1 b2"


def test_a_rate_counts_what_began_within_its_span() -> None:
    limits = Limits(rate=3, per=1000)
    made = plan(limits, "a1 a2 a3", recent=[[NOW - 1010, NOW - 1000, 5], [NOW - 1001, NOW - 999, 2]])
    assert chosen(made) == "a1"
    assert made.recent == [[NOW - 1001, NOW - 999, 2], [NOW, NOW, 1]]
    assert made.again_at == NOW - 999 + 1000, "when the first two leave the span"


def test_a_rate_that_is_not_used_up_needs_no_look() -> None:
    assert plan(Limits(rate=3, per=1000), "a1").again_at is None


def test_what_began_by_a_clock_that_was_ahead_counts_as_now() -> None:
    made = plan(Limits(rate=2, per=1000), "a1 a2", recent=[[NOW + 4_000_000, NOW + 5_000_000, 1]])
    assert chosen(made) == "a1"
    assert made.again_at == NOW + 1000


def test_a_span_is_kept_in_few_parts() -> None:
    limits, recent, at = Limits(rate=1_000_000, per=64_000), [], NOW
    for _ in range(5_000):
        at += 37
        recent = planned(limits, heads("a1"), {}, 0, room=1, recent=recent, now=at).recent
    assert len(recent) <= 66
    exact = 64_000 // 37
    assert exact <= sum(n for *_, n in recent) <= exact * 66 / 64, "none is forgotten, and none kept much longer"


begun = st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 4)), max_size=6)
waiting = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 50)), max_size=30)
small = st.none() | st.integers(1, 8)


@given(
    waiting, st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5)), small, small, small, begun, st.integers(0, 20)
)
def test_no_plan_exceeds_a_limit_nor_leaves_out_whom_none_forbids(
    those: list[tuple[str, int]], running: dict[str, int], limit: int | None, each: int | None, rate: int | None,
    before: list[tuple[int, int]], room: int,
) -> None:  # fmt: skip
    limits = Limits(limit, None, each, rate, 0 if rate is None else 1_000)
    rows = [head(f"{n}", name, at) for n, (name, at) in enumerate(sorted(those))]
    recent = sorted([NOW - ago, NOW - ago, n] for ago, n in before)
    total = sum(running.values())
    made = planned(limits, rows, running, total, room=room, recent=recent, now=NOW)
    after = Counter(running)
    after.update(row["partition"] for row in made.heads)
    spent = sum(n for _, at, n in recent if at > NOW - 1_000) if rate else 0
    left = [row for row in rows if row not in made.heads]
    assert len(made.heads) <= room
    assert limit is None or not made.heads or total + len(made.heads) <= limit
    assert rate is None or not made.heads or spent + len(made.heads) <= rate
    assert all(each is None or after[row["partition"]] <= each for row in made.heads)
    full = (
        len(made.heads) == room
        or (limit is not None and total + len(made.heads) >= limit)
        or (rate is not None and spent + len(made.heads) >= rate)
    )
    assert full or all(each is not None and after[row["partition"]] >= each for row in left)
    for row in made.heads:  # none began while one of a partition with fewer running waited, unless that was full
        fewer = [one for one in left if after[one["partition"]] < after[row["partition"]] - 1]
        assert all(each is not None and after[one["partition"]] >= each for one in fewer)
