"""A step as the runner sees it: checked once, with every default filled in."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin

import msgspec

from event_workflow_engine.callables import CallInfo, call_info, called, check_readable
from event_workflow_engine.context import CompensationContext, StepContext
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.retries import COMPENSATION_RETRY, ONE_ATTEMPT, RetryPolicy

if TYPE_CHECKING:
    from event_workflow_engine.clock import Duration

__all__ = [
    "CompensationSpec",
    "StepSpec",
    "build_spec",
    "check_name",
    "check_seconds",
    "check_step_name",
    "one_of",
    "said_by",
]

_LONGEST_NAME: Final = 200
_IDENTITY_MARKS: Final = "/#~"
_MAYBE: Final = (Any, Annotated, Union, UnionType)


class CompensationSpec(msgspec.Struct, frozen=True):
    """How to undo a step.

    Attributes:
        fn: What undoes it.
        info: What is known about `fn`.
        retry: Its policy.
    """

    fn: Callable[..., Any]
    info: CallInfo
    retry: RetryPolicy = COMPENSATION_RETRY


class StepSpec(msgspec.Struct, frozen=True):
    """A step, checked.

    Attributes:
        name: Its name.
        action: What it does.
        info: What is known about `action`.
        after: Names of the steps that must have succeeded before.
        timeout: Seconds for each attempt.
        retry: The action's policy.
        idempotent: Whether the action may be repeated blindly with the same key.
        compensate_failed: Compensate it even where it FAILED.
        rejects: What it raises to say that it did not happen, in any mode.
        compensation: How to undo it.
        transactional: The action's writes to the store's database and the step's record commit together.
        child: The id of the child saga that it runs, where the code gave it one.
    """

    name: str
    action: Callable[..., Any]
    info: CallInfo
    after: tuple[str, ...] = ()
    timeout: float | None = None
    retry: RetryPolicy = ONE_ATTEMPT
    idempotent: bool = True
    compensate_failed: bool = False
    rejects: tuple[type[BaseException], ...] = ()
    compensation: CompensationSpec | None = None
    transactional: bool = False
    child: str | None = None

    @property
    def repeatable(self) -> bool:
        """Whether an attempt of whose end nothing is known may be run again."""
        return self.idempotent or self.transactional


def build_spec(
    name: str,
    action: Any,
    compensation: Any,
    *,
    saga: str = "",
    arguments: int | None = None,
    after: tuple[str, ...] = (),
    timeout: Duration | None = None,
    retry: RetryPolicy | None = None,
    compensation_retry: RetryPolicy | None = None,
    idempotent: bool = True,
    compensate_failed: bool = False,
    rejects: type[BaseException] | Iterable[type[BaseException]] = (),
    transactional: bool = False,
) -> StepSpec:
    """Check a step and fill in its defaults.

    Args:
        name: See `StepSpec`, as with all that are not told of here.
        action: What it does.
        compensation: What undoes it, or ``None``.
        saga: The definition's name, for the error's text; empty for a step in a saga function's body.
        arguments: How many arguments the action gets in a body; ``None``: it gets the context, by its arity.
        after: Names, resolved.
        timeout: Seconds or timedelta.
        retry: Default one attempt.
        compensation_retry: Default eight attempts.
        idempotent: See `StepSpec`.
        compensate_failed: See `StepSpec`.
        rejects: One type or several.
        transactional: See `StepSpec`.

    Raises:
        DefinitionError: Something is wrong with it; names the saga, the step and the remedy.
    """
    try:
        check_step_name(name)
        info = _action_info(action, arguments)
        _check_transactional(action, info, transactional=transactional)
        return StepSpec(
            name,
            action,
            info,
            after,
            None if timeout is None else check_seconds(timeout, "timeout"),
            ONE_ATTEMPT if retry is None else _policy("retry", retry),
            bool(idempotent),
            bool(compensate_failed),
            () if rejects == () else _exception_types(rejects),
            _compensation_spec(
                compensation, compensation_retry, compensate_failed=compensate_failed, alone=arguments is not None
            ),
            bool(transactional),
        )
    except DefinitionError as error:
        where = f"saga {saga!r}, step {name!r}" if saga else f"step {name!r}"
        raise DefinitionError(f"{where}: {error}") from None


def _check_transactional(action: Any, info: CallInfo, *, transactional: bool) -> None:
    if transactional and not info.is_async:
        raise DefinitionError(f"a transactional action is async, for its transaction is: {called(action)} is not")


def _action_info(action: Any, arguments: int | None) -> CallInfo:
    info = _callable_info(action, "the action")
    if info.unresolved_result:
        # It would come up only after a crash, when a stored result came back as something else.
        raise DefinitionError(info.unresolved_result)
    check_readable(info.result_type, f"the result of {called(action)}")
    if arguments is None:
        _check_takes_context(info, action, StepContext)
    elif arguments < info.required:
        raise DefinitionError(f"{called(action)} needs {info.required} arguments, but step() was given {arguments}")
    return info


def _compensation_spec(
    fn: Any, retry: RetryPolicy | None, *, compensate_failed: bool, alone: bool
) -> CompensationSpec | None:
    """The compensation's part; `alone`: a rollback finds it without its action, so it says itself what that returns."""
    if fn is None:
        if compensate_failed or retry is not None:
            option = "compensate_failed" if compensate_failed else "compensation_retry"
            raise DefinitionError(f"{option} is given, but no compensation")
        return None
    info = _callable_info(fn, "the compensation")
    _check_takes_context(info, fn, CompensationContext)
    if alone and info.takes_context:
        if info.unresolved_first:
            raise DefinitionError(info.unresolved_first)
        check_readable(info.context_result, f"the result that {called(fn)} undoes")
    return CompensationSpec(fn, info, COMPENSATION_RETRY if retry is None else _policy("compensation_retry", retry))


def _policy(option: str, given: Any) -> RetryPolicy:
    if not isinstance(given, RetryPolicy):
        raise DefinitionError(f"{option}={given!r}: a RetryPolicy")
    return given


def _callable_info(fn: Any, role: str) -> CallInfo:
    if not callable(fn):
        remedy = "give the function itself, uncalled" if hasattr(fn, "__await__") else "a function is needed"
        raise DefinitionError(f"{role} {fn!r} cannot be called: {remedy}")
    info = call_info(fn)
    if info.yields:
        raise DefinitionError(f"{role} {called(fn)} is a generator function; let it return its result at once")
    if info.keyword_only:
        names = ", ".join(f"{name}=…" for name in info.keyword_only)
        raise DefinitionError(f"{role} {called(fn)} needs {names}: give it by functools.partial({called(fn)}, {names})")
    return info


def _check_takes_context(info: CallInfo, fn: Any, kind: type[StepContext[Any]]) -> None:
    if info.required > 1:
        raise DefinitionError(
            f"{called(fn)} needs {info.required} positional arguments, but gets one, a {kind.__name__}, or none; "
            "bind the others by functools.partial"
        )
    wanted = get_origin(info.first_type) or info.first_type
    # Only a class that surely is no context is refused: a Protocol may be one, and so may a part of a union.
    if (
        not info.takes_context
        or not isinstance(wanted, type)
        or wanted in _MAYBE
        or getattr(wanted, "_is_protocol", False)
    ):
        return
    if not issubclass(kind, wanted):
        raise DefinitionError(
            f"{called(fn)} wants a {wanted.__name__}, but a function with a required positional parameter gets a "
            f"{kind.__name__}: annotate it so and take what you need from its .input"
        )


def _exception_types(rejects: Any) -> tuple[type[BaseException], ...]:
    several = isinstance(rejects, Iterable) and not isinstance(rejects, type)
    kinds = tuple(rejects) if several else (rejects,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise DefinitionError(f"rejects={rejects!r}: {kind!r} is no exception type")
    return kinds


def check_name(name: Any, what: str) -> None:
    """Check the name of a saga, step or signal: 1 to 200 printable characters, not only blanks.

    Raises:
        DefinitionError: It is not so.
    """
    if not isinstance(name, str):
        raise DefinitionError(f"{what} {name!r} is no string")
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or name.isspace():
        raise DefinitionError(f"{what} {name[:_LONGEST_NAME]!r}: 1 to {_LONGEST_NAME} printable characters")


def check_step_name(name: Any, what: str = "the name") -> None:
    """Check the name of a step: as `check_name`, and without the marks that a step's identity is built with.

    Raises:
        DefinitionError: It is not so.
    """
    check_name(name, what)
    for mark in _IDENTITY_MARKS:
        if mark in name:
            raise DefinitionError(f"{what} {name!r} holds {mark!r}, which is kept for the identities of steps")


def check_seconds(duration: Any, what: str, *, zero: bool = False) -> float:
    """A length of time in seconds, checked.

    Args:
        duration: Seconds or timedelta.
        what: The option's name, for the error's text.
        zero: Whether zero is a length too.

    Raises:
        DefinitionError: It is no length of time, not finite, or too short.
    """
    if isinstance(duration, timedelta):
        length = duration.total_seconds()
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        length = float(duration)
    else:
        raise DefinitionError(f"{what}={duration!r}: seconds or a timedelta")
    if not math.isfinite(length) or length < 0 or (length == 0 and not zero):
        raise DefinitionError(f"{what}={duration!r}: {'not negative' if zero else 'above 0'}, and finite")
    return length


@contextmanager
def said_by(where: str) -> Generator[None]:
    """Put before the text of a `DefinitionError` where it comes from."""
    try:
        yield
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error}") from None


def one_of(option: str, given: Any, choice: Any) -> None:
    """Check that an option has a value of a ``Literal``.

    Raises:
        DefinitionError: It has not.
    """
    if given not in get_args(choice):
        raise DefinitionError(f"{option}={given!r}: one of {', '.join(map(repr, get_args(choice)))}")
