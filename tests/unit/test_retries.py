"""Retry policies: how long, how often, and what is out of range."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.retries import COMPENSATION_RETRY, ONE_ATTEMPT, RetryPolicy


def test_the_defaults_are_those_of_the_contract() -> None:
    policy = RetryPolicy()
    assert (policy.attempts, policy.delay, policy.factor, policy.max_delay, policy.jitter) == (3, 0.5, 2.0, 60.0, 0.1)
    assert (policy.never, policy.max_interruptions) == ((), 5)
    assert ONE_ATTEMPT.attempts == 1
    assert COMPENSATION_RETRY.attempts == 8


def test_waits_grow_up_to_the_cap() -> None:
    policy = RetryPolicy(attempts=None, delay=timedelta(milliseconds=500), max_delay=3, jitter=0)
    assert [policy.wait_after(n) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_attempts_are_counted_from_one() -> None:
    policy = RetryPolicy(attempts=3)
    assert [policy.may_follow(n) for n in (1, 2, 3)] == [True, True, False]
    assert not ONE_ATTEMPT.may_follow(1)
    assert RetryPolicy(attempts=None).may_follow(10**9)


def test_jitter_goes_both_ways_by_its_share() -> None:
    policy = RetryPolicy(delay=10, jitter=0.2)
    assert policy.wait_after(1, chance=0) == pytest.approx(8)
    assert policy.wait_after(1, chance=0.5) == pytest.approx(10)
    assert policy.wait_after(1, chance=1) == pytest.approx(12)


@given(
    st.integers(1, 10**6),
    st.floats(0, 1e6),
    st.floats(1, 100),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
def test_every_wait_is_within_bounds(attempt: int, delay: float, factor: float, cap: float, jitter: float) -> None:
    policy = RetryPolicy(attempts=None, delay=delay, factor=factor, max_delay=cap, jitter=jitter)
    assert 0 <= policy.wait_after(attempt) <= cap * (1 + jitter) + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"delay": -0.1},
        {"delay": timedelta(seconds=-1)},
        {"max_delay": -1},
        {"factor": 0.5},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"max_interruptions": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"max_delay": float("inf")},
        {"factor": float("nan")},
        {"factor": float("inf")},
        {"jitter": float("nan")},
    ],
    ids=str,
)
def test_what_is_out_of_range_is_a_definition_error(options: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match="RetryPolicy"):
        RetryPolicy(**options)  # type: ignore[arg-type]
