"""What the body of a saga function can await: `step`, `sleep`, `wait_for_signal`, `run_saga`.

Each is a plain function that returns a coroutine: what it stands for in the journal is fixed when it is called.
"""

from __future__ import annotations

import builtins
import math
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, overload

from event_workflow_engine._saga.definition import Saga
from event_workflow_engine._saga.specs import build_spec, check_name, check_seconds, check_step_name
from event_workflow_engine.callables import called, check_readable
from event_workflow_engine.context import runtime
from event_workflow_engine.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from typing import TypeVarTuple, Unpack

    from event_workflow_engine._saga.specs import StepSpec
    from event_workflow_engine.clock import Duration
    from event_workflow_engine.context import CompensationContext, StepTransaction
    from event_workflow_engine.retries import RetryPolicy

    Ts = TypeVarTuple("Ts")

__all__ = ["Signal", "Step", "run_saga", "sleep", "step", "wait_for_signal"]

T = TypeVar("T")
R = TypeVar("R")
In = TypeVar("In")
Out = TypeVar("Out")


class _Options(TypedDict, total=False):
    name: str | None
    key: str | None
    timeout: Duration | None
    retry: RetryPolicy | None
    compensation_retry: RetryPolicy | None
    idempotent: bool
    compensate_failed: bool
    rejects: type[BaseException] | Iterable[type[BaseException]]
    probe: Callable[..., Any] | None


_OPTIONS: Final = frozenset(_Options.__annotations__)
_REMEMBERED: Final = 1024


class Step:
    """The type of `step`: awaited as ``step(fn, *args)``, or as ``step.in_transaction(fn, *args)``."""

    @overload
    def __call__(
        self,
        fn: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        compensation: Callable[[], object] | Callable[[CompensationContext[Any, R]], object] | None = None,
        **options: Unpack[_Options],
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def __call__(
        self,
        fn: Callable[[*Ts], R],
        /,
        *args: *Ts,
        compensation: Callable[[], object] | Callable[[CompensationContext[Any, R]], object] | None = None,
        **options: Unpack[_Options],
    ) -> Coroutine[Any, Any, R]: ...
    def __call__(
        self,
        fn: Callable[..., Any],
        /,
        *args: *Ts,
        compensation: Callable[..., Any] | None = None,
        **options: Unpack[_Options],
    ) -> Coroutine[Any, Any, Any]:
        """Run `fn` durably: once it has succeeded it never runs again, and after a restart its result is read back.

        In the body of a saga function only. The step's identity is (task, name, how often that name was used there
        before), fixed by this call; the action begins when what is returned is awaited.

        Args:
            fn: Async, or plain (then it runs in a thread). Its context is `current_step()`.
            *args: Exactly what `fn` is called with. Keyword arguments go by `functools.partial`.
            compensation: Undoes it when the saga is undone; takes nothing or a `CompensationContext`. A named function
                among the globals of the saga function's module, or given to `Saga.register_compensation`.
            name: The step's name. Default ``fn.__name__``.
            key: The identity in place of the counted one; unique in the saga.
            timeout: For each attempt; seconds or timedelta. Default none.
            retry: The action's policy. Default one attempt.
            compensation_retry: The compensation's policy. Default eight attempts.
            idempotent: Whether `fn` may be repeated with the same idempotency key when nobody knows whether it
                happened. Default ``True``.
            compensate_failed: Compensate it even where it FAILED. Default ``False``.
            rejects: Exception types by which `fn` says that it did not happen, in strict mode too.
            probe: Kept for asking the world whether an action landed; not available yet.

        Returns:
            A coroutine for `fn`'s result; it raises `StepFailedError` where the step does not succeed.

        Raises:
            OutsideSagaError: Not called in the body of a saga function.
            DefinitionError: An option or function is wrong, or the compensation could not be found again by name.
        """
        if type(fn) is FunctionType and fn.__closure__ is None and not (options or compensation):
            return runtime("step()").step(fn, args, _plain(fn, len(args)), None)
        return _requested(fn, args, compensation, options, transactional=False)

    def in_transaction(
        self,
        fn: Callable[[StepTransaction, *Ts], Awaitable[R]],
        /,
        *args: *Ts,
        compensation: Callable[[], object] | Callable[[CompensationContext[Any, R]], object] | None = None,
        **options: Unpack[_Options],
    ) -> Coroutine[Any, Any, R]:
        """Run `fn` in a transaction of the store's database, in which the record that it has succeeded commits, too.

        So what it writes there happens exactly once, whatever crashes. An attempt that raises, runs out of time or is
        cut off has FAILED: it was rolled back. What it does elsewhere is not part of that.

        Args:
            fn: Async. Gets the transaction first, which ends with it.
            *args: What it is called with behind the transaction.
            compensation: As in `step`; it is in no transaction.
            **options: As in `step`.

        Raises:
            OutsideSagaError: Not called in the body of a saga function.
            DefinitionError: As in `step`; or `fn` is not async.
        """
        return _requested(fn, args, compensation, options, transactional=True)


step: Final = Step()
"""Run a function durably, in the body of a saga function: see `Step`."""


def _requested(
    fn: Any, args: tuple[Any, ...], compensation: Any, options: _Options, *, transactional: bool
) -> Coroutine[Any, Any, Any]:
    present = runtime("step()")
    if isinstance(fn, Saga):
        raise DefinitionError(f"step({fn!r}): a saga within a saga is run by run_saga(saga, input)")
    given, key = _checked(fn, options) if options else (options, None)
    name = given.pop("name", None)
    if name is None:
        name = called(fn)
    arguments = len(args) + transactional
    # A closure is made anew in each run of a body, and would be kept with all that it holds.
    build = _remembered if _lasts(fn) and (compensation is None or _lasts(compensation)) else build_spec
    try:
        spec = build(name, fn, compensation, arguments=arguments, transactional=transactional, **given)
    except TypeError:  # an option that cannot be remembered, and may be right all the same
        spec = build_spec(name, fn, compensation, arguments=arguments, transactional=transactional, **given)
    return present.step(fn, args, spec, key)


def _checked(fn: Any, options: _Options) -> tuple[dict[str, Any], str | None]:
    """What of the options makes the step, and its key."""
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(
            f"step() got an unexpected keyword argument {min(unknown)!r}: the function's own go by functools.partial"
        )
    given: dict[str, Any] = dict(options)
    name, key = given.get("name"), given.pop("key", None)
    if given.pop("probe", None) is not None:
        raise DefinitionError(f"step {name or called(fn)!r}: probe= is not available in this version: leave it out")
    if key is not None:
        check_step_name(key, "key")
    return given, key


@lru_cache(_REMEMBERED)
def _plain(fn: FunctionType, arguments: int) -> StepSpec:
    """Of a function that is only called."""
    return build_spec(fn.__name__, fn, None, arguments=arguments, transactional=False)


_remembered: Final = lru_cache(_REMEMBERED, typed=True)(build_spec)
"""Most steps are asked for again and again, with the same options."""


def _lasts(fn: Any) -> bool:
    return type(fn) is FunctionType and fn.__closure__ is None


def sleep(delay: Duration) -> Coroutine[Any, Any, None]:
    """Wait, durably: over restarts, and without being in memory when it takes long.

    In the body of a saga function only; the wait begins when what is returned is awaited.

    Args:
        delay: Seconds or timedelta; what is below zero is no wait.

    Raises:
        OutsideSagaError: Not called in the body of a saga function.
        DefinitionError: It is no length of time.
    """
    present = runtime("sleep()")
    length: Any = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not math.isfinite(length):
        raise DefinitionError(f"sleep({delay!r}): seconds or a timedelta")
    return present.sleep(max(0.0, float(length)))


@dataclass(frozen=True)
class Signal(Generic[T]):
    """A typed signal, one value for both ends: who sends it and the saga that waits for it.

    Attributes:
        name: What it is known by in the journal.
        type: Its payload's type.

    Raises:
        DefinitionError: The name is wrong, or the type cannot be read back from JSON.

    Example:
        >>> Signal("approval", bool).name
        'approval'
    """

    name: str
    type: builtins.type[T]

    def __post_init__(self) -> None:
        """Check both."""
        check_name(self.name, "signal name")
        check_readable(self.type, f"signal {self.name!r}")


@overload
def wait_for_signal(signal: Signal[T], /, *, timeout: Duration | None = None) -> Coroutine[Any, Any, T]: ...
@overload
def wait_for_signal(signal: str, /, *, timeout: Duration | None = None) -> Coroutine[Any, Any, Any]: ...
def wait_for_signal(signal: Signal[Any] | str, /, *, timeout: Duration | None = None) -> Coroutine[Any, Any, Any]:
    """Wait for the next signal of a name, durably. One that came earlier and was not waited for counts.

    In the body of a saga function only.

    Args:
        signal: The `Signal`; by name alone its payload is plain dicts, lists and scalars.
        timeout: How long; seconds or timedelta. Default without end.

    Returns:
        A coroutine for the payload; it raises `SignalTimeoutError` where none came in time, and `DecodeError` where one
        came whose payload is not of the signal's type. That one is used up: a body that catches it may wait again.

    Raises:
        OutsideSagaError: Not called in the body of a saga function.
        DefinitionError: It is no signal, or no length of time.
    """
    present = runtime("wait_for_signal()")
    if isinstance(signal, Signal):
        name, kind = signal.name, signal.type
    else:
        check_name(signal, "signal name")
        name, kind = signal, Any
    limit = None if timeout is None else check_seconds(timeout, f"signal {name!r}: timeout", zero=True)
    return present.wait_for_signal(name, kind, limit)


@overload
def run_saga(saga: Saga[None, Out], input: None = None, *, id: str | None = None) -> Coroutine[Any, Any, Out]: ...
@overload
def run_saga(saga: Saga[In, Out], input: In, *, id: str | None = None) -> Coroutine[Any, Any, Out]: ...
def run_saga(
    saga: Saga[Any, Any],
    input: Any = None,  # noqa: A002 - the contract's name
    *,
    id: str | None = None,  # noqa: A002 - the contract's name
) -> Coroutine[Any, Any, Any]:
    """Run a child saga to its end, durably.

    In the body of a saga function only. The child is a saga of its own: one that fails undoes itself and raises here,
    one that has completed stays done even where its parent is undone later. What must be undone together belongs into
    one saga.

    Args:
        saga: A registered `Saga`.
        input: Its input.
        id: The child's id. Default: made of this saga's id and the place of the call.

    Returns:
        A coroutine for the child's result; it raises what the child failed by.

    Raises:
        OutsideSagaError: Not called in the body of a saga function.
        DefinitionError: It is no saga.
    """
    present = runtime("run_saga()")
    if not isinstance(saga, Saga):
        raise DefinitionError(f"run_saga({saga!r}): a Saga is needed")
    return present.run_saga(saga, input, id)
