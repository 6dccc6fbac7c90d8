"""The fold of a journal: what is known, and that nothing but typed errors comes of bytes that are no journal."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine import history as h
from event_workflow_engine.errors import DecodeError, IllegalTransitionError
from event_workflow_engine.journal import Journal
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.state_machine import WorkflowState

RAW = h.Raw(b'{"a":1}')
STEPS = st.sampled_from(["a", "b", "c"])
OUTCOME_FACTS = (h.StepFailed, h.StepUnknown)
FACTS = st.one_of(
    st.just(h.SagaStarted("s")),
    st.builds(h.StepStarted, STEPS, st.integers(1, 3)),
    st.builds(h.StepSucceeded, STEPS, st.just(RAW)),
    *(st.builds(kind, STEPS, st.just("E"), st.just("m"), st.integers(1, 3), st.none() | st.integers(0, 9))
      for kind in OUTCOME_FACTS),
    st.builds(h.TimerSet, STEPS, st.integers(0, 9)),
    st.builds(h.TimerFired, STEPS),
    st.builds(h.SignalReceived, STEPS, st.just(RAW), st.integers(0, 9)),
    st.builds(h.CancelRequested, st.text(max_size=3), st.integers(0, 9)),
    st.just(h.SagaFailed("E", "m", "a")),
    st.builds(h.RollbackPlanned, st.lists(st.builds(h.PlannedCompensation, STEPS, st.just(Outcome.UNKNOWN)), max_size=2)
              .map(tuple)),
    st.builds(h.CompensationStarted, STEPS, st.integers(1, 3)),
    st.builds(h.CompensationSucceeded, STEPS),
    st.builds(h.CompensationFailed, STEPS, st.just("E"), st.just("m"), st.integers(1, 3), st.none() | st.integers(0, 9)),
    st.just(h.SagaCompleted(RAW)),
    st.just(h.SagaCompensated()),
    st.just(h.SagaCancelled()),
    st.just(h.SagaPaused()),
    st.just(h.SagaResumed()),
    st.just(h.SagaHandedOver()),
    st.just(h.InterventionNeeded("code", "E", "m")),
    st.builds(h.InterventionMade, st.just("retry"), state=st.sampled_from([*WorkflowState, "nonsense"])),
)  # fmt: skip


@given(st.lists(FACTS, max_size=30))
def test_facts_in_any_order_fold_or_are_refused_with_a_typed_error(facts: list[object]) -> None:
    journal = Journal("s-1")
    with contextlib.suppress(DecodeError):
        assert journal.load(h.encode_facts(facts), len(facts)) == facts
        assert journal.version == len(facts)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_bytes_that_are_no_facts_are_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        Journal("s-1").load(data, 0)


@given(st.lists(FACTS, max_size=12), st.data())
def test_a_damaged_record_is_a_decode_error(facts: list[object], data: st.DataObject) -> None:
    encoded = bytearray(h.encode_facts(facts))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        Journal("s-1").load(bytes(encoded), len(facts))


@given(st.lists(FACTS, max_size=30))
def test_facts_survive_their_encoding(facts: list[object]) -> None:
    assert h.decode_facts(h.encode_facts(facts)) == facts


def test_a_record_that_says_another_version_is_refused() -> None:
    with pytest.raises(DecodeError, match="at version 1, but its record says 7"):
        Journal("s-1").load(h.encode_facts([h.SagaStarted("s")]), 7)


def test_rule_04_a_step_that_has_ended_cannot_start_again() -> None:
    journal = Journal("s-1")
    for fact in (h.SagaStarted("s"), h.StepStarted("a"), h.StepSucceeded("a", RAW)):
        journal.apply(fact)
    with pytest.raises(KeyError, match="has ended"):
        journal.apply(h.StepStarted("a", 2))


def test_failed_is_final_where_nothing_is_to_undo() -> None:
    journal = Journal("s-1")
    for fact in (h.SagaStarted("s"), h.SagaFailed("E", "m"), h.RollbackPlanned()):
        journal.apply(fact)
    assert (journal.state, journal.ended) == (WorkflowState.FAILED, True)


def test_the_plan_in_the_unit_that_enters_failed_leads_to_compensating() -> None:
    journal = Journal("s-1")
    plan = h.RollbackPlanned((h.PlannedCompensation("a", Outcome.SUCCEEDED),))
    for fact in (h.SagaStarted("s"), h.StepStarted("a"), h.StepSucceeded("a"), h.SagaFailed("E", "m"), plan):
        journal.apply(fact)
    assert (journal.state, journal.ended) == (WorkflowState.COMPENSATING, False)
    with pytest.raises(IllegalTransitionError):
        journal.apply(h.SagaCompleted(RAW))


def test_a_paused_saga_goes_back_to_what_it_did() -> None:
    journal = Journal("s-1")
    plan = h.RollbackPlanned((h.PlannedCompensation("a", Outcome.SUCCEEDED),))
    for fact in (h.SagaStarted("s"), h.SagaFailed("E", "m"), plan, h.SagaPaused(), h.SagaResumed()):
        journal.apply(fact)
    assert journal.state is WorkflowState.COMPENSATING
