"""The graph of a declarative saga: what is before what, and which input its steps agree on. Pure checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, is_typeddict

from event_workflow_engine.callables import called
from event_workflow_engine.errors import DefinitionError

__all__ = ["StepRef", "agree_on_input", "check_acyclic", "names_by_action", "resolve_refs"]

StepRef = str | Callable[..., Any]
"""How a step is referred to: by its name, or by its action."""

_LONGEST_SHOWN_CYCLE: Final = 12
_SEVERAL: Final = object()


def names_by_action(steps: Iterable[tuple[str, Callable[..., Any]]]) -> tuple[dict[Any, str], list[Any]]:
    """The name of the step of each action, and the actions that more than one step has.

    Actions that cannot be hashed are referred to by name only, and are in neither.
    """
    names: dict[Any, Any] = {}
    for name, action in steps:
        try:
            names[action] = _SEVERAL if action in names else name
        except TypeError:
            continue
    several = [action for action, name in names.items() if name is _SEVERAL]
    return {action: name for action, name in names.items() if name is not _SEVERAL}, several


def resolve_refs(
    step: str, refs: Iterable[StepRef], known: Mapping[str, Any], by_action: Mapping[Any, str], several: Sequence[Any]
) -> tuple[str, ...]:
    """The names that `refs` stand for, each once, in the order given.

    Args:
        step: Whose ``after`` it is.
        refs: Names and actions.
        known: The saga's steps by name.
        by_action: The name for each action that one step alone has.
        several: The actions of several steps.

    Raises:
        DefinitionError: One refers to no step, to several, or to the step itself.
    """
    names: dict[str, None] = {}
    for ref in refs:
        name = ref if isinstance(ref, str) else _named_by_action(ref, by_action, several)
        if name not in known:
            raise DefinitionError(f"after={name!r}: there is no such step; there are {', '.join(map(repr, known))}")
        if name == step:
            raise DefinitionError(f"after={name!r}: a step cannot come after itself")
        names[name] = None
    return tuple(names)


def _named_by_action(ref: Any, by_action: Mapping[Any, str], several: Sequence[Any]) -> str:
    if not callable(ref):
        raise DefinitionError(f"after={ref!r}: refer to a step by its name or its action")
    try:
        name = by_action.get(ref)
    except TypeError:  # it cannot be hashed
        name = None
    if name is not None:
        return name
    if ref in several:
        raise DefinitionError(f"after={called(ref)}: several steps have this action; refer to one by its name")
    raise DefinitionError(f"after={called(ref)}: no step has this action; refer to the step by its name")


def check_acyclic(after: Mapping[str, Iterable[str]]) -> None:
    """Check that no step waits for itself over others.

    Raises:
        DefinitionError: One does; names the cycle.
    """
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        shown = cycle if len(cycle) <= _LONGEST_SHOWN_CYCLE else [*cycle[: _LONGEST_SHOWN_CYCLE - 1], "…", cycle[-1]]
        raise DefinitionError(f"the steps wait for each other in a circle: {' → '.join(shown)}") from None


def agree_on_input(wanted: Sequence[tuple[str, Any]], given: Any) -> Any:
    """The type of a saga's input, from what its steps want.

    Args:
        wanted: By step, the input types of actions and compensations; ``Any`` where one does not say.
        given: ``input_type``; ``None`` where it was not given.

    Returns:
        `given`, or the type among the wanted that fits all of them; ``Any`` where none says anything.

    Raises:
        DefinitionError: There is none; names the steps that disagree.
    """
    said = [(step, kind) for step, kind in wanted if kind is not Any and kind is not object]
    if given is not None:
        for step, kind in said:
            if not _fits(given, kind):
                raise DefinitionError(f"input_type is {_shown(given)}, but step {step!r} wants {_shown(kind)}")
        return given
    if not said:
        return Any
    narrowest_step, narrowest = said[0]
    for step, kind in said[1:]:
        if not _fits(narrowest, kind):
            narrowest_step, narrowest = step, kind
    for step, kind in said:
        if not _fits(narrowest, kind):
            raise DefinitionError(
                f"the steps want different inputs: {narrowest_step!r} wants {_shown(narrowest)}, "
                f"{step!r} wants {_shown(kind)}"
            )
    return narrowest


def _fits(given: Any, wanted: Any) -> bool:
    """Whether a value of one type surely or maybe serves where another is wanted; refused is only what surely does not.

    Type checkers decide this better; here it guards those who use none.
    """
    if wanted is Any or given is Any or wanted == given:
        return True
    if get_origin(given) in (Union, UnionType):
        return all(_fits(member, wanted) for member in get_args(given))
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(given, member) for member in get_args(wanted))
    if is_typeddict(given) and is_typeddict(wanted):
        return set(wanted.__annotations__) <= set(given.__annotations__)
    given, wanted = get_origin(given) or given, get_origin(wanted) or wanted
    if is_typeddict(given):
        given = dict
    if is_typeddict(wanted):
        return False
    if given is int and wanted is float:
        return True
    try:
        return issubclass(given, wanted)
    except TypeError:  # a form that is no class, or a Protocol with data: it may fit
        return True


def _shown(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)
