"""The state machine: the engine's table, and users' own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.errors import DefinitionError, IllegalTransitionError
from event_workflow_engine.state_machine import FINAL_STATES, VALID_TRANSITIONS, StateMachine, WorkflowState

# As it is written in the design.
DESIGN = """
    PENDING      → RUNNING | CANCELLED | NEEDS_INTERVENTION
    RUNNING      → COMPLETED | FAILED | PAUSED | CANCELLED | NEEDS_INTERVENTION
    PAUSED       → RUNNING | COMPENSATING | FAILED | CANCELLED | NEEDS_INTERVENTION
    FAILED       → COMPENSATING
    COMPENSATING → COMPENSATED | PAUSED | NEEDS_INTERVENTION
    NEEDS_INTERVENTION → COMPENSATING | COMPENSATED | RUNNING | COMPLETED | FAILED | PAUSED
"""

DOOR: dict[str, set[str]] = {"open": {"shut"}, "shut": {"open", "locked"}, "locked": {"shut"}}


def table_of_the_design() -> dict[str, set[str]]:
    table: dict[str, set[str]] = {state.value: set() for state in WorkflowState}
    for line in DESIGN.split("\n"):
        source, arrow, targets = line.partition("→")
        if arrow:
            table[source.strip()] = {target.strip() for target in targets.split("|")}
    return table


def test_the_engines_table_is_the_designs() -> None:
    assert {state.value: {to.value for to in following} for state, following in VALID_TRANSITIONS.items()} == (
        table_of_the_design()
    )
    assert {WorkflowState.COMPLETED, WorkflowState.COMPENSATED, WorkflowState.CANCELLED} == FINAL_STATES


def test_a_state_is_its_name() -> None:
    assert all(state == state.name for state in WorkflowState)


@pytest.mark.parametrize("source", WorkflowState)
@pytest.mark.parametrize("to", WorkflowState)
def test_only_the_table_decides(source: WorkflowState, to: WorkflowState) -> None:
    machine = StateMachine(VALID_TRANSITIONS, source)
    allowed = to in VALID_TRANSITIONS[source]
    assert machine.can(to) is allowed
    if allowed:
        assert machine.transition_to(to) is to
        assert machine.state is to
    else:
        with pytest.raises(IllegalTransitionError) as error:
            machine.transition_to(to)
        assert source.value in str(error.value)
        assert to.value in str(error.value)
        assert machine.state is source


def test_without_a_table_it_is_the_engines() -> None:
    machine = StateMachine()
    assert machine.state is WorkflowState.PENDING
    assert machine.can(WorkflowState.RUNNING)
    assert not machine.can(WorkflowState.COMPLETED)
    assert machine.valid_transitions == VALID_TRANSITIONS
    assert machine.valid_transitions is StateMachine().valid_transitions, "made for each saga in memory"


def test_a_target_alone_is_a_final_state() -> None:
    machine = StateMachine({"draft": {"sent"}}, "draft")
    assert not machine.is_final
    machine.transition_to("sent")
    assert machine.is_final
    assert machine.valid_transitions["sent"] == frozenset()
    with pytest.raises(IllegalTransitionError, match="only nothing may follow"):
        machine.transition_to("draft")


def test_a_guard_must_agree() -> None:
    has_key = False
    door = StateMachine(DOOR, "shut", guards={("shut", "locked"): lambda: has_key})
    assert not door.can("locked")
    with pytest.raises(IllegalTransitionError, match="its guard refused"):
        door.transition_to("locked")
    assert door.state == "shut"
    has_key = True
    assert door.transition_to("locked") == "locked"


def test_a_guard_holds_on_the_engines_table_too() -> None:
    edge = (WorkflowState.PENDING, WorkflowState.RUNNING)
    machine = StateMachine(VALID_TRANSITIONS, WorkflowState.PENDING, guards={edge: lambda: False})
    assert not machine.can(WorkflowState.RUNNING)
    assert machine.can(WorkflowState.CANCELLED)


def test_a_table_of_ones_own_counts_though_its_states_have_the_engines_names() -> None:
    machine = StateMachine({"RUNNING": {"asleep"}, "asleep": {"RUNNING"}}, "RUNNING")
    assert machine.can("asleep")
    assert not machine.can("COMPLETED")


def test_an_initial_state_that_the_engines_table_lacks_is_refused() -> None:
    with pytest.raises(DefinitionError, match="LOST"):
        StateMachine(VALID_TRANSITIONS, "LOST")  # type: ignore[arg-type]


def test_a_guard_that_raises_changes_nothing() -> None:
    def guard() -> bool:
        raise ValueError("sensor")

    door = StateMachine(DOOR, "open", guards={("open", "shut"): guard})
    with pytest.raises(ValueError, match="sensor"):
        door.transition_to("shut")
    assert door.state == "open"


@pytest.mark.parametrize("following", ["shut", None, 5])
def test_what_follows_a_state_is_a_set(following: Any) -> None:
    with pytest.raises(DefinitionError, match=r"what follows 'open' is .*: a set of states"):
        StateMachine({"open": following}, "open")


def test_unknown_states_are_refused() -> None:
    with pytest.raises(DefinitionError, match="ajar"):
        StateMachine(DOOR, "ajar")
    with pytest.raises(DefinitionError, match="guards no edge"):
        StateMachine(DOOR, "open", guards={("open", "locked"): lambda: True})
    with pytest.raises(IllegalTransitionError, match="ajar"):
        StateMachine(DOOR, "open").transition_to("ajar")


def test_the_table_cannot_be_changed_behind_its_back() -> None:
    table = {"open": {"shut"}, "shut": {"open"}}
    machine = StateMachine(table, "open")
    table["open"].clear()
    assert machine.can("shut")
    with pytest.raises(TypeError):
        machine.valid_transitions["open"] = frozenset()  # type: ignore[index]


def test_any_hashable_is_a_state() -> None:
    machine = StateMachine({1: {2}, 2: {1}}, 1)
    assert machine.transition_to(2) == 2
    assert "s1: 2" in machine.mermaid()


def test_mermaid_marks_the_present_state_and_survives_any_name() -> None:
    machine = StateMachine({"a\n:b": {"-->"}, "": {"-->"}}, "a\n:b")
    machine.transition_to("-->")
    assert machine.mermaid().splitlines() == [
        "stateDiagram-v2",
        "    s0: a :b",
        "    s1: (empty)",
        "    s2: -->",
        "    [*] --> s0",
        "    s0 --> s2",
        "    s1 --> s2",
        "    s2 --> [*]",
        "    class s2 current",
        "    classDef current font-weight:bold,stroke-width:3px",
    ]


states = st.integers(0, 5)


@given(st.dictionaries(states, st.sets(states), min_size=1), st.lists(states, max_size=30))
def test_a_walk_never_leaves_the_table(table: dict[int, set[int]], steps: list[int]) -> None:
    machine = StateMachine(table, next(iter(table)))
    for to in steps:
        before = machine.state
        try:
            machine.transition_to(to)
        except IllegalTransitionError:
            assert to not in table.get(before, set())
            assert machine.state == before
        else:
            assert to in table[before]
            assert machine.state == to
        assert machine.is_final is (not table.get(machine.state))
