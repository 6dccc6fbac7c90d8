"""`SagaStep`, and a list of them checked: names, order, input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, cast, overload

from event_workflow_engine._saga.graph import StepRef, check_acyclic, resolve_refs
from event_workflow_engine._saga.specs import StepSpec, build_spec, check_step_name, one_of, said_by
from event_workflow_engine.clock import Duration
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.retries import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Unpack

    from event_workflow_engine.context import CompensationContext, StepContext

__all__ = ["SagaStep", "StepKind", "checked_order", "checked_specs", "checked_steps", "wanted_inputs"]

In = TypeVar("In")
In_contra = TypeVar("In_contra", contravariant=True)
R = TypeVar("R")

StepKind = Literal["compensatable", "pivot", "retriable"]
"""Before the point of no return, that point, or behind it."""

if TYPE_CHECKING:

    class _Options(TypedDict, total=False):
        after: StepRef | Iterable[StepRef]
        timeout: Duration | None
        retry: RetryPolicy | None
        compensation_retry: RetryPolicy | None
        idempotent: bool
        compensate_failed: bool
        rejects: type[BaseException] | Iterable[type[BaseException]]
        probe: Callable[..., Any] | None
        kind: StepKind
        locks: Iterable[str]
        transactional: bool


@dataclass(frozen=True)
class SagaStep(Generic[In_contra]):
    """A step of a declarative saga: what it does, and how that is undone.

    Action and compensation may be async or plain functions; plain ones run in a thread. One with a required positional
    parameter gets the context, one without gets nothing.

    Attributes:
        name: Unique in its saga; part of idempotency keys and of the journal, so it may not change while sagas run.
        action: Called as ``action(StepContext)`` or ``action()``. What it returns is the step's result: a dataclass,
            Struct, TypedDict, Pydantic model, or plain dicts, lists and scalars.
        compensation: Called as ``compensation(CompensationContext)`` or ``compensation()`` when the saga is undone.
            It must bear that the action never happened.
        after: Steps that must have succeeded before, each by name or by action. Default none: it starts with the saga.
        timeout: For each attempt; seconds or timedelta. Default none.
        retry: The action's policy. Default one attempt.
        compensation_retry: The compensation's policy. Default eight attempts.
        idempotent: Whether the action may be repeated with the same idempotency key when nobody knows whether it
            happened. Default ``True``.
        compensate_failed: Compensate it even where it FAILED. Default ``False``.
        rejects: Exception types by which the action says that it did not happen, in strict mode too.
        probe: Kept for asking the world whether an action landed; not available yet.
        kind: Only ``"compensatable"`` is available yet.
        locks: Kept for locks that the saga takes before the step; not available yet.
        transactional: What the action writes through `StepContext.transaction` and the step's record commit together:
            exactly once, whatever crashes. It must be async. Default ``False``.

    Example:
        >>> def book() -> str:
        ...     return "flight-7"
        >>> def cancel() -> None: ...
        >>> SagaStep("flight", book, cancel, timeout=5).name
        'flight'
    """

    name: str
    action: Callable[..., Any]
    compensation: Callable[..., Any] | None = None
    _: KW_ONLY
    after: StepRef | Iterable[StepRef] = ()
    timeout: Duration | None = None
    retry: RetryPolicy | None = None
    compensation_retry: RetryPolicy | None = None
    idempotent: bool = True
    compensate_failed: bool = False
    rejects: type[BaseException] | Iterable[type[BaseException]] = ()
    probe: Callable[..., Any] | None = None
    kind: StepKind = "compensatable"
    locks: Iterable[str] = ()
    transactional: bool = False

    if TYPE_CHECKING:
        # The action's result R ties action and compensation together, and lives only here: a step is generic in its
        # input alone, so that steps of many results fit one list. Awaitable results come before plain ones, since a
        # plain R matches those too. Where none matches, mypy's message speaks of the first and pyright's of the last.
        @overload
        def __init__(
            self: SagaStep[In],
            name: str,
            action: Callable[[StepContext[In]], Any],
            compensation: Callable[[], Any] | None = None,
            **options: Unpack[_Options],
        ) -> None: ...
        @overload
        def __init__(
            self: SagaStep[object],
            name: str,
            action: Callable[[], Any],
            compensation: Callable[[], Any] | None = None,
            **options: Unpack[_Options],
        ) -> None: ...
        @overload
        def __init__(
            self: SagaStep[In],
            name: str,
            action: Callable[[], Awaitable[R]],
            compensation: Callable[[CompensationContext[In, R]], Any],
            **options: Unpack[_Options],
        ) -> None: ...
        @overload
        def __init__(
            self: SagaStep[In],
            name: str,
            action: Callable[[], R],
            compensation: Callable[[CompensationContext[In, R]], Any],
            **options: Unpack[_Options],
        ) -> None: ...
        @overload
        def __init__(
            self: SagaStep[In],
            name: str,
            action: Callable[[StepContext[In]], Awaitable[R]],
            compensation: Callable[[CompensationContext[In, R]], Any],
            **options: Unpack[_Options],
        ) -> None: ...
        @overload
        def __init__(
            self: SagaStep[In],
            name: str,
            action: Callable[[StepContext[In]], R],
            compensation: Callable[[CompensationContext[In, R]], Any],
            **options: Unpack[_Options],
        ) -> None: ...
        def __init__(
            self,
            name: str,
            action: Callable[..., Any],
            compensation: Callable[..., Any] | None = None,
            **options: Unpack[_Options],
        ) -> None: ...

    def __post_init__(self) -> None:
        """Take what can be read only once as a tuple, since a step may be used in several sagas."""
        for option in ("after", "rejects", "locks"):
            given = getattr(self, option)
            # An action may be an object that can be called and read; it refers to its step.
            single = isinstance(given, str) or callable(given)
            if not single and not isinstance(given, Iterable):
                raise DefinitionError(f"step {self.name!r}: {option}={given!r}: one, or several in a tuple or list")
            object.__setattr__(self, option, (given,) if single else tuple(cast("Iterable[Any]", given)))


def checked_steps(steps: Iterable[SagaStep[Any]]) -> tuple[SagaStep[Any], ...]:
    """At least one step, each with a name of its own.

    Raises:
        DefinitionError: It is not so.
    """
    if isinstance(steps, SagaStep) or not isinstance(steps, Iterable):
        raise DefinitionError("the steps come in a list: Saga(name, [SagaStep(…), …])")
    checked = tuple(steps)
    if not checked:
        raise DefinitionError("it has no steps")
    names: set[str] = set()
    for step in checked:
        if not isinstance(step, SagaStep):
            raise DefinitionError(f"{step!r} is no SagaStep: write SagaStep(name, action)")
        check_step_name(step.name, "step name")
        if step.name in names:
            raise DefinitionError(f"two steps have the name {step.name!r}")
        names.add(step.name)
    return checked


def checked_order(
    steps: tuple[SagaStep[Any], ...], by_action: Mapping[Any, str], several: list[Any], *, sequential: bool
) -> dict[str, tuple[str, ...]]:
    """For each step those that must have succeeded before it.

    Args:
        steps: The saga's.
        by_action: The name for each action that one step alone has.
        several: The actions of several steps.
        sequential: Whether each comes after the one listed before it.

    Raises:
        DefinitionError: A reference is wrong, steps wait for each other, or both ways of ordering are used.
    """
    known = {step.name: step for step in steps}
    if not sequential:
        after: dict[str, tuple[str, ...]] = {}
        for step in steps:
            with said_by(f"step {step.name!r}"):
                after[step.name] = resolve_refs(step.name, _refs(step), known, by_action, several)
        check_acyclic(after)
        return after
    # Both at once would be either redundant or a contradiction, and whoever writes it means neither.
    if ordered := next((step for step in steps if _refs(step)), None):
        raise DefinitionError(
            f"step {ordered.name!r} has after=, but sequential=True orders the steps already: use one"
        )
    return {step.name: (steps[n - 1].name,) if n else () for n, step in enumerate(steps)}


def _refs(step: SagaStep[Any]) -> tuple[StepRef, ...]:
    return cast("tuple[StepRef, ...]", step.after)  # since it was made


def checked_specs(
    saga_name: str, steps: Iterable[SagaStep[Any]], after: Mapping[str, tuple[str, ...]]
) -> dict[str, StepSpec]:
    """The steps by name, checked one by one.

    Raises:
        DefinitionError: An option or a function of one is wrong.
    """
    return {step.name: _spec(saga_name, step, after[step.name]) for step in steps}


def _spec(saga_name: str, step: SagaStep[Any], after: tuple[str, ...]) -> StepSpec:
    with said_by(f"saga {saga_name!r}, step {step.name!r}"):
        one_of("kind", step.kind, StepKind)
        for option, given, plain in (
            ("probe", step.probe, None),
            ("kind", step.kind, "compensatable"),
            ("locks", step.locks, ()),
        ):
            if given != plain:
                raise DefinitionError(f"{option}={given!r} is not available in this version: leave it out")
    return build_spec(
        step.name,
        step.action,
        step.compensation,
        saga=saga_name,
        after=after,
        timeout=step.timeout,
        retry=step.retry,
        compensation_retry=step.compensation_retry,
        idempotent=step.idempotent,
        compensate_failed=step.compensate_failed,
        rejects=step.rejects,
        transactional=step.transactional,
    )


def wanted_inputs(specs: Mapping[str, StepSpec], *, given: bool) -> list[tuple[str, Any]]:
    """By step, the input types that its action and compensation say they want.

    Args:
        specs: The steps.
        given: Whether the saga has its ``input_type``.

    Raises:
        DefinitionError: Nobody says one, but somebody what cannot be resolved.
    """
    wanted: list[tuple[str, Any]] = []
    unresolved = ""
    for name, spec in specs.items():
        infos = [spec.info] if spec.compensation is None else [spec.info, spec.compensation.info]
        wanted += [(name, info.context_input) for info in infos if info.takes_context]
        unresolved = unresolved or next((info.unresolved_first for info in infos if info.takes_context), "")
    if unresolved and not given and all(kind is Any for _, kind in wanted):
        raise DefinitionError(f"{unresolved}; or give the saga its input_type")
    return wanted
