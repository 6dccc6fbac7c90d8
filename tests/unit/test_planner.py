"""The planner: what comes next and how to roll back, without I/O or a clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine import history as h
from event_workflow_engine.clock import seconds
from event_workflow_engine.journal import DEADLINE, Journal
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.planner import (
    Dag,
    Ready,
    earliest_wake,
    next_attempt_after,
    pack_retry,
    plan_rollback,
    unpack_retry,
)
from event_workflow_engine.retries import COMPENSATION_RETRY, RetryPolicy


@dataclass(frozen=True)
class Spec:
    after: tuple[str, ...] = ()
    compensation: object | None = object()
    compensate_failed: bool = False


def journal_of(*facts: object) -> Journal:
    journal = Journal("s-1")
    journal.apply(h.SagaStarted("s"))
    for fact in facts:
        journal.apply(fact)
    return journal


def done(*steps: str) -> list[object]:
    started: list[object] = [h.StepStarted(step) for step in steps]
    return [*started, *(h.StepSucceeded(step) for step in steps)]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Acyclic graphs, defined in an order that has nothing to do with their edges."""
    names = [f"s{n}" for n in range(draw(st.integers(1, 8)))]
    order = draw(st.permutations(names))
    after = {
        name: tuple(draw(st.lists(st.sampled_from(order[:place]), unique=True))) if place else ()
        for place, name in enumerate(order)
    }
    return {name: after[name] for name in names}


@given(graphs())
def test_each_step_becomes_ready_once_and_only_behind_its_dependencies(after: dict[str, tuple[str, ...]]) -> None:
    ready = Ready(Dag(after))
    waiting, finished = list(ready.first), list[str]()
    while waiting:
        step = waiting.pop()
        assert set(after[step]) <= set(finished)
        finished.append(step)
        waiting += ready.succeeded(step)
    assert sorted(finished) == sorted(after)


def test_steps_that_become_ready_together_start_in_the_order_of_their_definition() -> None:
    ready = Ready(Dag({"last": ("root",), "root": (), "first": ("root",), "joined": ("last", "first"), "alone": ()}))
    assert ready.first == ("root", "alone")
    assert ready.succeeded("root") == ["last", "first"]
    assert ready.succeeded("first") == []
    assert ready.succeeded("last") == ["joined"]


@given(graphs(), st.data())
def test_rule_02_rollback_undoes_succeeded_and_unknown_and_not_failed(
    after: dict[str, tuple[str, ...]], data: st.DataObject
) -> None:
    journal = journal_of()
    expected = set()
    for step in after:
        outcome = data.draw(st.sampled_from(Outcome))
        journal.apply(h.StepStarted(step))
        if outcome is Outcome.SUCCEEDED:
            journal.apply(h.StepSucceeded(step))
        else:
            kind = h.StepFailed if outcome is Outcome.FAILED else h.StepUnknown
            journal.apply(kind(step, "E", "m"))
        if outcome is not Outcome.FAILED:
            expected.add(step)
    plan = plan_rollback(journal, {step: Spec(before) for step, before in after.items()}, None)
    assert {entry.step for entry in plan.plan} == expected
    assert all(entry.outcome is journal.steps[entry.step].outcome for entry in plan.plan)


def test_rule_02_compensate_failed_undoes_failed_steps_too() -> None:
    journal = journal_of(h.StepStarted("a"), h.StepFailed("a", "E", "m"))
    plan = plan_rollback(journal, {"a": Spec(compensate_failed=True)}, None)
    assert [(entry.step, entry.outcome) for entry in plan.plan] == [("a", Outcome.FAILED)]


def test_rule_02_a_function_is_rolled_back_by_what_its_journal_says() -> None:
    plain, thorough = h.Undo("shop:refund"), h.Undo("shop:refund", compensate_failed=True)
    journal = journal_of(
        h.StepStarted("kept"), h.StepSucceeded("kept"),
        h.StepStarted("paid", undo=plain), h.StepSucceeded("paid"),
        h.StepStarted("refused", undo=plain), h.StepFailed("refused", "E", "m"),
        h.StepStarted("half", undo=thorough), h.StepFailed("half", "E", "m"),
        h.StepStarted("nothing"), h.StepFailed("nothing", "E", "m"),
    )  # fmt: skip
    rollback = plan_rollback(journal, {}, None)
    assert rollback.plan == (
        h.PlannedCompensation("half", Outcome.FAILED, (), thorough),
        h.PlannedCompensation("paid", Outcome.SUCCEEDED, ("half",), plain),
    )
    assert rollback.skipped == ("kept",)


def test_rule_02_a_step_of_a_declaration_is_undone_by_that_and_not_by_its_journal() -> None:
    journal = journal_of(h.StepStarted("a", undo=h.Undo("shop:refund", compensate_failed=True)), h.StepSucceeded("a"))
    assert plan_rollback(journal, {"a": Spec(compensation=None)}, None).skipped == ("a",)


def test_rule_09_without_an_order_steps_are_undone_one_by_one_in_reverse_of_completion() -> None:
    journal = journal_of(
        *(h.StepStarted(step) for step in "abc"), h.StepSucceeded("b"), h.StepSucceeded("c"), h.StepSucceeded("a")
    )
    plan = plan_rollback(journal, {step: Spec() for step in "abc"}, None)
    assert [(entry.step, entry.after) for entry in plan.plan] == [("a", ()), ("c", ("a",)), ("b", ("c",))]


def test_rule_09_independent_branches_are_undone_side_by_side() -> None:
    after = {"root": (), "left": ("root",), "right": ("root",)}
    journal = journal_of(*done("root", "left", "right"))
    plan = plan_rollback(journal, {step: Spec(before) for step, before in after.items()}, Dag(after))
    order = {entry.step: set(entry.after) for entry in plan.plan}
    assert order == {"left": set(), "right": set(), "root": {"left", "right"}}


def test_rule_09_the_order_looks_through_steps_that_are_not_undone() -> None:
    after: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("b",)}
    specs = {"a": Spec(), "b": Spec(("a",), compensation=None), "c": Spec(("b",))}
    plan = plan_rollback(journal_of(*done("a"), *done("b"), *done("c")), specs, Dag(after))
    assert {entry.step: entry.after for entry in plan.plan} == {"c": (), "a": ("c",)}
    assert plan.skipped == ("b",)


def test_rule_09_the_order_looks_through_steps_that_are_met_on_two_ways() -> None:
    after: dict[str, tuple[str, ...]] = {"a": (), "b": ("a", "c"), "c": ("a",), "d": ("b",)}
    specs = {step: Spec(before, object() if step in "ad" else None) for step, before in after.items()}
    plan = plan_rollback(journal_of(*done(*"acbd")), specs, Dag(after))
    assert {entry.step: entry.after for entry in plan.plan} == {"d": (), "a": ("d",)}


@given(graphs())
def test_rule_09_a_rollback_reverses_every_edge_of_the_graph(after: dict[str, tuple[str, ...]]) -> None:
    journal = journal_of()
    ready = Ready(Dag(after))
    waiting = list(ready.first)
    while waiting:
        step = waiting.pop()
        for fact in done(step):
            journal.apply(fact)
        waiting += ready.succeeded(step)
    plan = plan_rollback(journal, {step: Spec(before) for step, before in after.items()}, Dag(after))
    undo = Ready(Dag({entry.step: entry.after for entry in plan.plan}))
    waiting, order = list(undo.first), list[str]()
    while waiting:
        step = waiting.pop()
        order.append(step)
        waiting += undo.succeeded(step)
    assert sorted(order) == sorted(after)
    assert all(order.index(step) < order.index(name) for step, before in after.items() for name in before)


def test_a_long_chain_is_planned_without_recursion() -> None:
    names = [f"s{n}" for n in range(10_000)]
    after = {name: (names[n - 1],) if n else () for n, name in enumerate(names)}
    dag = Dag(after)
    plan = plan_rollback(journal_of(*done(*names)), {name: Spec(after[name]) for name in names}, dag)
    assert plan.plan[0].after == ()
    assert plan.plan[-1].after == ("s1",)


@pytest.mark.parametrize(
    ("outcome", "idempotent", "rejected", "never", "again"),
    [
        (Outcome.FAILED, True, False, False, True),
        (Outcome.UNKNOWN, True, False, False, True),
        (Outcome.UNKNOWN, False, False, False, False),
        (Outcome.FAILED, False, False, False, True),
        (Outcome.FAILED, True, True, False, False),
        (Outcome.FAILED, True, False, True, False),
    ],
)
def test_rule_04_an_unknown_outcome_is_retried_only_where_that_is_harmless(
    *, outcome: Outcome, idempotent: bool, rejected: bool, never: bool, again: bool
) -> None:
    policy = RetryPolicy(attempts=2, jitter=0)
    wait = next_attempt_after(policy, 1, outcome, idempotent=idempotent, rejected=rejected, never=never)
    assert (wait is not None) is again


def test_rule_07_no_attempt_follows_the_last() -> None:
    policy = RetryPolicy(attempts=2, jitter=0, delay=3)
    options = {"idempotent": True, "rejected": False, "never": False}
    assert next_attempt_after(policy, 1, Outcome.FAILED, **options) == 3
    assert next_attempt_after(policy, 2, Outcome.FAILED, **options) is None


def test_a_saga_wakes_for_the_first_of_its_timers_retries_and_deadline() -> None:
    journal = Journal("s-1")
    journal.apply(h.SagaStarted("s", deadline=500))
    assert earliest_wake(journal, ()) == 500
    journal.apply(h.TimerSet("t", 300))
    assert earliest_wake(journal, ()) == 500, "a timer that nobody awaits wakes nobody"
    assert earliest_wake(journal, ("t",)) == 300
    journal.apply(h.StepStarted("a"))
    journal.apply(h.StepFailed("a", "E", "m", 1, 200))
    assert earliest_wake(journal, ("t",)) == 200
    journal.apply(h.StepStarted("a", 2))
    assert earliest_wake(journal, ("t",)) == 300


def test_a_saga_that_waits_for_nothing_has_no_time_to_wake() -> None:
    journal = journal_of()
    assert earliest_wake(journal, ("t",)) is None
    journal.apply(h.TimerSet("t", 300))
    assert earliest_wake(journal, ()) is None
    assert earliest_wake(journal, ("t", "other")) == 300


def test_a_saga_without_a_deadline_wakes_for_its_retry_alone() -> None:
    journal = journal_of(h.StepStarted("a"), h.StepFailed("a", "E", "m", 1, 200))
    assert earliest_wake(journal, ()) == 200


@pytest.mark.parametrize("told", [h.TimerFired(DEADLINE), h.SagaFailed("E", "m")])
def test_a_deadline_that_has_done_its_work_wakes_nobody(told: h.Fact) -> None:
    journal = Journal("s-1")
    journal.apply(h.SagaStarted("s", deadline=500))
    journal.apply(told)
    assert earliest_wake(journal, ()) is None
    journal.apply(h.TimerSet("t", 900))
    assert earliest_wake(journal, ("t",)) == 900


@pytest.mark.parametrize("policy", [
    RetryPolicy(attempts=3, delay=timedelta(seconds=2), factor=1.5, max_delay=timedelta(minutes=1), jitter=0.5),
    RetryPolicy(attempts=1, delay=0, factor=1, max_delay=0, jitter=0),
])  # fmt: skip
def test_every_part_of_a_policy_survives_the_journal_as_plain_numbers(policy: RetryPolicy) -> None:
    packed = pack_retry(policy)
    assert all(type(value) in (int, float) for value in packed)
    again = unpack_retry(packed, COMPENSATION_RETRY)
    assert again.attempts == policy.attempts
    assert (again.factor, again.jitter) == (policy.factor, policy.jitter)
    assert (seconds(again.delay), seconds(again.max_delay)) == (seconds(policy.delay), seconds(policy.max_delay))


def test_a_compensations_policy_survives_the_journal() -> None:
    policy = RetryPolicy(attempts=None, delay=1, factor=3, max_delay=9, jitter=0)
    assert unpack_retry(pack_retry(policy), COMPENSATION_RETRY) == policy
    assert unpack_retry((), COMPENSATION_RETRY) is COMPENSATION_RETRY
