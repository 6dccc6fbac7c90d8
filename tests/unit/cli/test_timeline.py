"""The steps of a saga, told from its history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from event_workflow_engine import history as h
from event_workflow_engine.cli.timeline import detail_of, steps_of
from event_workflow_engine.events import NO_METADATA, RecordedEvent
from event_workflow_engine.outcomes import Outcome

START = datetime(2026, 1, 1, tzinfo=UTC)


def recorded(*facts: Any) -> list[RecordedEvent[Any]]:
    return [
        RecordedEvent(f"e{n}", "t", fact, "saga-s", n, n, START + timedelta(seconds=n), NO_METADATA)
        for n, fact in enumerate(facts, 1)
    ]


def test_attempts_count_and_the_last_outcome_stands() -> None:
    failed = h.StepFailed("pay", "shop.Refused", "no", attempt=1, retry_at=5)
    (pay,) = steps_of(recorded(h.StepStarted("pay"), failed))
    assert (pay.state, pay.attempts, pay.error, pay.ended_at) == ("retrying", 1, "Refused: no", None)
    (pay,) = steps_of(
        recorded(h.StepStarted("pay"), failed, h.StepStarted("pay", 2, interruptions=1), h.StepSucceeded("pay"))
    )
    assert (pay.state, pay.attempts, pay.interruptions, pay.error) == ("succeeded", 2, 1, "")
    assert (pay.started_at, pay.ended_at) == (START + timedelta(seconds=1), START + timedelta(seconds=4))


@pytest.mark.parametrize(("kind", "state"), [(h.StepFailed, "failed"), (h.StepUnknown, "unknown")])
def test_an_outcome_without_another_attempt_is_final(kind: Any, state: str) -> None:
    (pay,) = steps_of(recorded(h.StepStarted("pay"), kind("pay", "Refused", "no")))
    assert (pay.state, pay.error) == (state, "Refused: no")


def test_compensations_are_told_beside_their_steps() -> None:
    done = recorded(
        h.StepStarted("a"),
        h.StepSucceeded("a"),
        h.StepStarted("b"),
        h.StepSucceeded("b"),
        h.StepStarted("c"),
        h.RollbackPlanned(tuple(h.PlannedCompensation(step, Outcome.SUCCEEDED) for step in "cba")),
        h.CompensationStarted("b"),
        h.CompensationFailed("b", "m.Down", "not now", retry_at=9),
        h.CompensationStarted("b", 2),
        h.CompensationSucceeded("b"),
        h.CompensationStarted("a"),
        h.CompensationFailed("a", "m.Down", "never"),
    )
    a, b, c = steps_of(done)
    assert (a.undo, a.undo_attempts, a.undo_error) == ("failed", 1, "Down: never")
    assert (b.undo, b.undo_attempts, b.undo_error) == ("undone", 2, "")
    assert (c.undo, c.undo_attempts) == ("planned", 0)
    assert [step.undo for step in steps_of(done[:8])] == ["planned", "retrying", "planned"]


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        (h.SagaStarted("order", 2), "order v2"),
        (h.StepStarted("pay"), "pay"),
        (h.StepStarted("pay", 2, interruptions=1), "pay, attempt 2, again after a crash"),
        (h.StepStarted("~run:nap", child="nap-1"), "~run:nap, child saga nap-1"),
        (h.StepFailed("pay", "m.No", "x", retry_at=1), "pay: No: x (to be tried again)"),
        (h.RollbackPlanned((h.PlannedCompensation("pay", Outcome.UNKNOWN),)), "pay"),
        (h.RollbackPlanned(), "nothing to undo"),
        (h.SagaFailed("m.No", "x"), "No: x"),
        (h.SignalReceived("go"), "go"),
        (h.TimerSet("~sleep", 1), "~sleep"),
        (h.CancelRequested("because"), "because"),
        (h.InterventionMade("skip", "ann", "it is gone"), "skip ann it is gone"),
        (h.SagaCompensated(), ""),
        ({"a": "user's"}, ""),
    ],
)
def test_a_fact_in_a_few_words(fact: Any, said: str) -> None:
    assert detail_of(fact) == said
