"""What comes next, and how to roll back: pure decisions over a journal. No I/O, no clock.

The order of a rollback follows Garcia-Molina and Salem, "Sagas" (1987): backwards. Where the steps form a graph,
backwards along its edges, with independent branches side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from event_workflow_engine import history as h
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.retries import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from event_workflow_engine.journal import Journal, StepState

__all__ = [
    "Dag",
    "Ready",
    "earliest_wake",
    "next_attempt_after",
    "pack_retry",
    "plan_rollback",
    "unpack_retry",
]


class _Spec(Protocol):
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def compensation(self) -> object | None: ...
    @property
    def compensate_failed(self) -> bool: ...


class Dag:
    """The graph of a declarative saga's steps, compiled once for each definition.

    Args:
        after: For each step the steps that must have succeeded before it, in definition order.
    """

    __slots__ = ("after", "dependents", "roots")

    def __init__(self, after: Mapping[str, Iterable[str]]) -> None:
        self.after = {step: tuple(before) for step, before in after.items()}
        self.roots = tuple(step for step, before in self.after.items() if not before)
        dependents: dict[str, list[str]] = {step: [] for step in self.after}
        for step, before in self.after.items():
            for name in before:
                dependents[name].append(step)
        self.dependents = {step: tuple(names) for step, names in dependents.items()}


class Ready:
    """Which steps may start, kept up as steps succeed: each edge is looked at once, however long the saga."""

    __slots__ = ("_dag", "_missing")

    def __init__(self, dag: Dag) -> None:
        self._dag = dag
        self._missing: dict[str, int] = {}

    @property
    def first(self) -> tuple[str, ...]:
        """The steps that may start at once."""
        return self._dag.roots

    def succeeded(self, step: str) -> list[str]:
        """The steps that may start now that `step` has succeeded, in definition order."""
        ready = []
        for name in self._dag.dependents[step]:
            left = self._missing.get(name, len(self._dag.after[name])) - 1
            self._missing[name] = left
            if left == 0:
                ready.append(name)
        return ready


def next_attempt_after(
    policy: RetryPolicy, attempt: int, outcome: Outcome, *, idempotent: bool, rejected: bool, never: bool
) -> float | None:
    """Seconds until the next attempt of an action that did not succeed; ``None``: none follows.

    Args:
        policy: The step's.
        attempt: The one that has ended, from 1.
        outcome: FAILED or UNKNOWN.
        idempotent: Whether the action may be repeated blindly with the same key.
        rejected: It said that no repetition will help.
        never: It raised a type of ``policy.never``.
    """
    if rejected or never or not policy.may_follow(attempt):
        return None
    if outcome is Outcome.UNKNOWN and not idempotent:
        return None
    return policy.wait_after(attempt)


def plan_rollback(journal: Journal, specs: Mapping[str, _Spec], dag: Dag | None) -> h.RollbackPlanned:
    """What to undo, and in which order (rules 2 and 9).

    Args:
        journal: Every step in it has settled.
        specs: The steps of a declarative saga; empty for a function, whose journal says how to undo.
        dag: The graph, where the saga has an order; ``None``: reverse order of completion, one by one.
    """
    undone: list[StepState] = []
    skipped: list[str] = []
    for step in journal.completed:
        state = journal.steps[step]
        spec = specs.get(step)
        has_undo = spec.compensation is not None if spec is not None else state.undo is not None
        if spec is not None:
            failed_too = spec.compensate_failed
        else:
            failed_too = state.undo is not None and state.undo.compensate_failed
        if state.outcome is Outcome.FAILED and not failed_too:
            continue
        if has_undo:
            undone.append(state)
        else:
            skipped.append(step)
    order = _reverse_completion(undone) if dag is None else _reverse_dag(undone, dag)
    plan = tuple(
        h.PlannedCompensation(state.step, state.outcome, order[state.step], state.undo) for state in reversed(undone)
    )
    return h.RollbackPlanned(plan, tuple(skipped))


def _reverse_completion(undone: list[StepState]) -> dict[str, tuple[str, ...]]:
    order: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for state in reversed(undone):
        order[state.step] = before
        before = (state.step,)
    return order


def _reverse_dag(undone: list[StepState], dag: Dag) -> dict[str, tuple[str, ...]]:
    """For each step its nearest dependents that are undone too, looking through those that are not."""
    names = {state.step for state in undone}
    nearest: dict[str, tuple[str, ...]] = {}
    # Definition order is no topological order, hence a walk with a stack of its own: chains may be 10,000 long.
    for root in dag.after:
        stack = [root]
        while stack:
            step = stack[-1]
            if step in nearest:
                stack.pop()
                continue
            open_dependents = [name for name in dag.dependents[step] if name not in nearest and name not in names]
            if open_dependents:
                stack.extend(open_dependents)
                continue
            found: dict[str, None] = {}
            for name in dag.dependents[step]:
                found.update(dict.fromkeys((name,) if name in names else nearest[name]))
            nearest[step] = tuple(found)
            stack.pop()
    return {name: nearest[name] for name in names}


def earliest_wake(journal: Journal, awaited_timers: Iterable[str]) -> int | None:
    """When a saga that waits has to go on: the first of its timers, retries and its deadline.

    Args:
        journal: The saga's.
        awaited_timers: The timers that its body still waits for.
    """
    deadline = journal.deadline
    if deadline is None and not journal.timers and not journal.retries:
        return None
    times = [journal.timers[timer] for timer in awaited_timers if timer in journal.timers]
    times += journal.retries.values()
    if deadline is not None and not journal.deadline_passed and not journal.failing:
        times.append(deadline)
    return min(times, default=None)


def pack_retry(policy: RetryPolicy) -> tuple[float, ...]:
    """A compensation's policy as it stands in the journal of a saga function."""
    plain = policy.attempts or 0, policy.delay, policy.factor, policy.max_delay, policy.jitter
    return tuple(value if isinstance(value, (int, float)) else value.total_seconds() for value in plain)


def unpack_retry(packed: tuple[float, ...], default: RetryPolicy) -> RetryPolicy:
    """The policy that `pack_retry` wrote; `default` where it is empty."""
    if not packed:
        return default
    attempts, delay, factor, max_delay, jitter = packed
    return RetryPolicy(attempts=int(attempts) or None, delay=delay, factor=factor, max_delay=max_delay, jitter=jitter)
