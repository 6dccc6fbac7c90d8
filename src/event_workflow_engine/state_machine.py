"""`StateMachine`: a table of transitions and nothing else; and `WorkflowState`, the engine's own."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

from event_workflow_engine.errors import DefinitionError, IllegalTransitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from collections.abc import Set as AbstractSet

__all__ = ["FINAL_STATES", "VALID_TRANSITIONS", "StateMachine", "WorkflowState"]


class WorkflowState(enum.StrEnum):
    """The states of a saga."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    COMPENSATING = "COMPENSATING"
    COMPENSATED = "COMPENSATED"
    CANCELLED = "CANCELLED"
    NEEDS_INTERVENTION = "NEEDS_INTERVENTION"


_W = WorkflowState

VALID_TRANSITIONS: Final[Mapping[WorkflowState, frozenset[WorkflowState]]] = MappingProxyType(
    {
        _W.PENDING: frozenset({_W.RUNNING, _W.CANCELLED, _W.NEEDS_INTERVENTION}),
        _W.RUNNING: frozenset({_W.COMPLETED, _W.FAILED, _W.PAUSED, _W.CANCELLED, _W.NEEDS_INTERVENTION}),
        _W.PAUSED: frozenset({_W.RUNNING, _W.COMPENSATING, _W.FAILED, _W.CANCELLED, _W.NEEDS_INTERVENTION}),
        _W.FAILED: frozenset({_W.COMPENSATING}),
        _W.COMPENSATING: frozenset({_W.COMPENSATED, _W.PAUSED, _W.NEEDS_INTERVENTION}),
        _W.NEEDS_INTERVENTION: frozenset(
            {_W.COMPENSATING, _W.COMPENSATED, _W.RUNNING, _W.COMPLETED, _W.FAILED, _W.PAUSED}
        ),
        _W.COMPLETED: frozenset(),
        _W.COMPENSATED: frozenset(),
        _W.CANCELLED: frozenset(),
    }
)
"""The engine's table. That a saga has ended is told by its `ended_at` alone: FAILED is final where nothing is to undo.
"""

FINAL_STATES: Final = frozenset(state for state, following in VALID_TRANSITIONS.items() if not following)

S = TypeVar("S", bound="Hashable")
_NO_GUARDS: Final[dict[Any, Callable[[], bool]]] = {}


class StateMachine(Generic[S]):
    """A state and the table of where it may go. Pure and synchronous; for the engine and for your own machines.

    Args:
        valid_transitions: For each state the states that may follow. A state that is only a target is final.
            Without a table it is the engine's own, from ``PENDING``.
        initial: The state to begin in.
        guards: For an edge, a function that must return true when it is taken.

    Raises:
        DefinitionError: `initial` or a guarded edge is not in the table, or what follows a state is no set.

    Example:
        >>> door = StateMachine({"open": {"shut"}, "shut": {"open"}}, "open")
        >>> door.transition_to("shut")
        'shut'
        >>> door.can("shut")
        False
    """

    __slots__ = ("_guards", "_initial", "_state", "_table")

    @overload
    def __init__(self: StateMachine[WorkflowState]) -> None: ...
    @overload
    def __init__(
        self,
        valid_transitions: Mapping[S, AbstractSet[S]],
        initial: S,
        *,
        guards: Mapping[tuple[S, S], Callable[[], bool]] = ...,
    ) -> None: ...
    def __init__(
        self,
        valid_transitions: Mapping[Any, AbstractSet[Any]] = VALID_TRANSITIONS,
        initial: Any = WorkflowState.PENDING,
        *,
        guards: Mapping[tuple[Any, Any], Callable[[], bool]] = MappingProxyType({}),
    ) -> None:
        if valid_transitions is VALID_TRANSITIONS and initial in VALID_TRANSITIONS and not guards:
            # The engine makes one for each saga in memory: they share the table.
            self._table: Mapping[S, frozenset[S]] = cast("Mapping[S, frozenset[S]]", VALID_TRANSITIONS)
            self._guards: dict[tuple[S, S], Callable[[], bool]] = _NO_GUARDS
            self._initial = self._state = cast("S", initial)
            return
        table: dict[S, frozenset[S]] = {
            state: _states(state, following) for state, following in valid_transitions.items()
        }
        for following in list(table.values()):
            for state in following:
                table.setdefault(state, frozenset())
        if initial not in table:
            raise DefinitionError(f"the initial state {initial!r} is not in the table: {_listed(table)}")
        for source, target in guards:
            if target not in table.get(source, frozenset()):
                raise DefinitionError(f"the guard of {source!r} -> {target!r} guards no edge of the table")
        self._table = MappingProxyType(table)
        self._guards = dict(guards)
        self._initial = cast("S", initial)
        self._state = self._initial

    @property
    def state(self) -> S:
        """The state it is in."""
        return self._state

    @property
    def valid_transitions(self) -> Mapping[S, frozenset[S]]:
        """The table, read-only."""
        return self._table

    @property
    def is_final(self) -> bool:
        """Whether no state can follow."""
        return not self._table[self._state]

    def can(self, to: S) -> bool:
        """Whether `to` may follow now: it is in the table, and its guard, if any, agrees."""
        if to not in self._table[self._state]:
            return False
        guard = self._guards.get((self._state, to))
        return guard is None or bool(guard())

    def transition_to(self, to: S) -> S:
        """Go to `to` and return it.

        Raises:
            IllegalTransitionError: The table has no such edge, or its guard refused. The state is unchanged.
        """
        if not self.can(to):
            following = self._table[self._state]
            why = "its guard refused" if to in following else f"only {_listed(following) or 'nothing'} may follow"
            raise IllegalTransitionError(f"{self._state!s} -> {to!s} is not allowed: {why}")
        self._state = to
        return to

    def mermaid(self) -> str:
        """The table as a Mermaid state diagram, the present state marked.

        Example:
            >>> print(StateMachine({"a": {"b"}}, "a").mermaid())
            stateDiagram-v2
                s0: a
                s1: b
                [*] --> s0
                s0 --> s1
                s1 --> [*]
                class s0 current
                classDef current font-weight:bold,stroke-width:3px
        """
        # States get short names of our own, so that no character of a user's state can break the diagram.
        names = {state: f"s{n}" for n, state in enumerate(self._table)}
        lines = ["stateDiagram-v2"]
        lines += [f"    {name}: {_label(state)}" for state, name in names.items()]
        lines.append(f"    [*] --> {names[self._initial]}")
        for state, following in self._table.items():
            lines += [f"    {names[state]} --> {names[target]}" for target in names if target in following]
            if not following:
                lines.append(f"    {names[state]} --> [*]")
        lines.append(f"    class {names[self._state]} current")
        lines.append("    classDef current font-weight:bold,stroke-width:3px")
        return "\n".join(lines)


def _states(source: Any, following: Any) -> frozenset[Any]:
    # A text is a collection too: of its letters.
    if isinstance(following, (str, bytes)) or not isinstance(following, Iterable):
        raise DefinitionError(f"what follows {source!r} is {following!r}: a set of states is needed")
    return frozenset(following)


def _listed(states: AbstractSet[Any] | Mapping[Any, Any]) -> str:
    return ", ".join(sorted(str(state) for state in states))


def _label(state: object) -> str:
    return " ".join(str(state).split()) or "(empty)"
