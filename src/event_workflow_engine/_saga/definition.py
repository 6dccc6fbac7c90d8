"""`Saga`, `SagaStep` and the decorator `saga`: what a saga is, checked when it is defined."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import FunctionType, MappingProxyType, NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    TypeVar,
    overload,
)

from event_workflow_engine._saga.graph import agree_on_input, names_by_action
from event_workflow_engine._saga.specs import StepSpec, check_name, check_seconds, one_of, said_by
from event_workflow_engine._saga.steps import SagaStep, checked_order, checked_specs, checked_steps, wanted_inputs
from event_workflow_engine.callables import (
    CallInfo,
    call_info,
    called,
    check_readable,
    find_named,
    lasting_name,
    readable,
)
from event_workflow_engine.context import StepResults
from event_workflow_engine.errors import DefinitionError

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from event_workflow_engine.clock import Duration

    class _Options(TypedDict, total=False):
        version: int
        sequential: bool
        timeout: Duration | None
        on_failure: OnFailure
        on_exception: OnException
        settle_timeout: Duration


__all__ = ["OnException", "OnFailure", "Saga", "saga"]

In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])

OnFailure = Literal["settle", "cancel"]
"""What becomes of steps in flight when another has failed: they settle, or are cancelled."""
OnException = Literal["failed", "unknown"]
"""What an exception says of its action: that it did not happen, or nothing."""

_DEFAULT_SETTLE_TIMEOUT: Final = 60.0


class Saga(Generic[In_contra, Out_co]):
    """A workflow over several systems that ends either done or undone.

    Made of steps here, or of an async function by the decorator `saga`. Steps run side by side unless `after` or
    `sequential` orders them. When one fails, nothing new starts, steps in flight settle, and what was done is undone:
    in the reverse of that order, or of completion where there is none.

    Args:
        name: The definition's name, stored with each saga; it may not change while sagas run.
        steps: At least one `SagaStep`.
        version: To be raised with each change of steps that running sagas do not fit. Default 1.
        input_type: The input's type, for type checkers and for reading it back. Default: what the steps'
            ``StepContext[…]`` say.
        sequential: Run the steps one after another, as listed. Not together with ``after``. Default ``False``.
        timeout: For the whole saga, which is undone when it has passed; seconds or timedelta. Default none.
        on_failure: ``"settle"``: steps in flight end by themselves when another has failed; ``"cancel"``: they are
            cancelled, and their outcome is unknown. Default ``"settle"``.
        on_exception: ``"failed"``: an action that raises says that it did not happen, unless the exception speaks
            of the transport; ``"unknown"``: only `StepRejectedError` and ``rejects`` say so. Default ``"failed"``.
        settle_timeout: How long a failed saga waits for steps that were cancelled or timed out but whose code still
            runs. Seconds or timedelta. Default 60 s.

    Raises:
        DefinitionError: Names, options, references or functions are wrong, steps wait for each other in a circle, or
            want different inputs.

    Attributes:
        output_type: What `WorkflowEngine.execute` returns; `StepResults` for a saga made of steps.
        fn: The saga function; ``None`` for a saga made of steps.
        takes_input: Whether the saga function has a parameter for the input.
        specs: The checked steps by name, in definition order; empty for a function.
        ordered: Whether there is any order between the steps.
        by_action: The step's name for each action that one step alone has.

    The semantics are those of Garcia-Molina and Salem, "Sagas" (1987), with outcomes that may be unknown.

    Example:
        >>> def book() -> str:
        ...     return "flight-7"
        >>> trip = Saga("trip", [SagaStep("flight", book)])
        >>> trip
        <Saga 'trip' version 1: 1 step>
    """

    name: str
    version: int
    input_type: Any
    output_type: Any
    timeout: float | None
    on_failure: OnFailure
    on_exception: OnException
    settle_timeout: float
    fn: Callable[..., Coroutine[Any, Any, Any]] | None
    takes_input: bool
    steps: tuple[SagaStep[Any], ...]
    specs: Mapping[str, StepSpec]
    ordered: bool
    by_action: Mapping[Any, str]

    @overload
    def __init__(
        self: Saga[In, StepResults],
        name: str,
        steps: Iterable[SagaStep[In]],
        *,
        input_type: type[In] | None = None,
        **options: Unpack[_Options],
    ) -> None: ...
    # mypy does not find the common input of steps with and without one; then input_type= says it.
    @overload
    def __init__(
        self: Saga[Any, StepResults], name: str, steps: Iterable[SagaStep[Any]], **options: Unpack[_Options]
    ) -> None: ...
    def __init__(
        self,
        name: str,
        steps: Iterable[SagaStep[Any]],
        *,
        version: int = 1,
        input_type: type[Any] | None = None,
        sequential: bool = False,
        timeout: Duration | None = None,
        on_failure: OnFailure = "settle",
        on_exception: OnException = "failed",
        settle_timeout: Duration = _DEFAULT_SETTLE_TIMEOUT,
    ) -> None:
        self._set_options(name, version, timeout, on_failure, on_exception, settle_timeout)
        self.fn = None
        self.takes_input = False
        self.output_type = StepResults
        with said_by(f"saga {name!r}"):
            self.steps = checked_steps(steps)
            by_action, several = names_by_action((step.name, step.action) for step in self.steps)
            after = checked_order(self.steps, by_action, several, sequential=sequential)
        specs = checked_specs(name, self.steps, after)
        with said_by(f"saga {name!r}"):
            self.input_type = agree_on_input(wanted_inputs(specs, given=input_type is not None), input_type)
            check_readable(self.input_type, "the input")
        self.ordered = any(after.values())
        self.specs = MappingProxyType(specs)
        self.by_action = MappingProxyType(by_action)

    def _set_options(
        self,
        name: str,
        version: int,
        timeout: Duration | None,
        on_failure: OnFailure,
        on_exception: OnException,
        settle_timeout: Duration,
    ) -> None:
        check_name(name, "saga name")
        with said_by(f"saga {name!r}"):
            _check_version(version)
            one_of("on_failure", on_failure, OnFailure)
            one_of("on_exception", on_exception, OnException)
            self.timeout = None if timeout is None else check_seconds(timeout, "timeout")
            self.settle_timeout = check_seconds(settle_timeout, "settle_timeout", zero=True)
        self.name = name
        self.version = version
        self.on_failure = on_failure
        self.on_exception = on_exception
        self._compensations: dict[str, Callable[..., Any]] = {}
        self._compensation_names: dict[Callable[..., Any], str] = {}

    def __repr__(self) -> str:
        """Name, version and kind."""
        if self.fn is not None:
            kind = f"function {called(self.fn)}"
        else:
            kind = "1 step" if len(self.steps) == 1 else f"{len(self.steps)} steps"
        return f"<Saga {self.name!r} version {self.version}: {kind}>"

    if not TYPE_CHECKING:  # so that a type checker refuses the call too

        def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
            """Say how a saga is run.

            Raises:
                DefinitionError: Always.
            """
            raise DefinitionError(
                f"saga {self.name!r} is not called: await engine.execute(saga, input) runs it, "
                "and in another saga function await run_saga(saga, input)"
            )

    def register_compensation(self, fn: F, /) -> F:
        """Make a compensation known that is not among the globals of the saga function's module; also as a decorator.

        A rollback finds a function saga's compensations by name, without running its body. So a named function from
        elsewhere has to be registered, in each process that may run the saga.

        Args:
            fn: A function at the top of a module, or in a class there.

        Returns:
            `fn` itself.

        Raises:
            DefinitionError: It is a lambda, a closure, a partial, a bound method or an object.
        """
        with said_by(f"saga {self.name!r}"):
            self._compensations[lasting_name(fn)] = fn
        return fn

    def find_compensation(self, name: str) -> Callable[..., Any] | None:
        """The compensation of a name that `compensation_name` gave, perhaps in another process.

        Looked for among those registered, then in the saga function's module globals, and one level down in the modules
        that are among these. Nothing is imported.

        Returns:
            ``None`` where there is none of that name.
        """
        registered = self._compensations.get(name)
        if registered is not None or self.fn is None:
            return registered
        return find_named(name, inspect.unwrap(self.fn).__globals__)

    def compensation_name(self, fn: Callable[..., Any]) -> str:
        """The name of a compensation in the journal: ``module:qualname``.

        Raises:
            DefinitionError: It could not be found again by name: a lambda, a closure, a partial, a bound method, an
                object, or a function that is neither registered nor within reach of the saga function's module.
        """
        try:
            return self._compensation_names[fn]
        except (KeyError, TypeError):
            pass
        with said_by(f"saga {self.name!r}, compensation {called(fn)}"):
            name = lasting_name(fn)
            found = self.find_compensation(name)
            if found is None:
                raise DefinitionError(
                    f"{name} is not among the globals of the saga function's module, so a rollback in another process "
                    f"could not find it: import it there, or register it by saga.register_compensation({called(fn)})"
                )
            if found is not fn:
                raise DefinitionError(f"the name {name} leads to another function: give this one a name of its own")
        # Only what lives as long as a module or this saga gets here, so nothing short-lived is kept.
        self._compensation_names[fn] = name
        return name


class _FunctionSaga(Saga[Any, Any]):
    """A saga made of an async function."""

    def __init__(
        self,
        fn: Any,
        name: str,
        *,
        version: int,
        timeout: Duration | None,
        on_failure: OnFailure,
        on_exception: OnException,
        settle_timeout: Duration,
    ) -> None:
        self._set_options(name, version, timeout, on_failure, on_exception, settle_timeout)
        with said_by(f"saga {name!r}"):
            info = _checked_function(fn)
            self.takes_input = info.positional == 1
            self.input_type = readable(info.first_type) if self.takes_input else NoneType
            self.output_type = info.result_type
            check_readable(self.input_type, f"the input of {called(fn)}")
            check_readable(self.output_type, f"the result of {called(fn)}")
        self.fn = fn
        self.steps = ()
        self.specs = MappingProxyType({})
        self.by_action = MappingProxyType({})
        self.ordered = False
        self.__doc__ = fn.__doc__


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[[], Coroutine[Any, Any, Out]], /) -> Saga[None, Out]: ...
    @overload
    def __call__(self, fn: Callable[[In], Coroutine[Any, Any, Out]], /) -> Saga[In, Out]: ...


def saga(
    name: str,
    *,
    version: int = 1,
    timeout: Duration | None = None,
    on_failure: OnFailure = "settle",
    on_exception: OnException = "failed",
    settle_timeout: Duration = _DEFAULT_SETTLE_TIMEOUT,
) -> _Decorator:
    """Make an async function a `Saga`: workflow as code.

    The function takes the input, or nothing. It may await `step`, `sleep`, `wait_for_signal` and `run_saga`, and
    asyncio's `gather`, `TaskGroup`, `wait`, `as_completed`, `Queue` and `Event` over them; everything else belongs in a
    step. After a restart it runs again from its start, and what is done already returns at once. When it raises, what
    was done is undone.

    Args:
        name: The definition's name, stored with each saga; it may not change while sagas run.
        version: To be raised with each change of the body that running sagas do not fit. Default 1.
        timeout: For the whole saga; seconds or timedelta. Default none.
        on_failure: As in `Saga`.
        on_exception: As in `Saga`.
        settle_timeout: As in `Saga`. Default 60 s.

    Raises:
        DefinitionError: An option is wrong, or it is no async function of one parameter or none.

    Example:
        >>> @saga("greeting", version=2)
        ... async def greeting(name: str) -> str:
        ...     return f"hello {name}"
        >>> greeting
        <Saga 'greeting' version 2: function greeting>
    """
    if callable(name):
        raise DefinitionError(f'@saga needs a name: write @saga("{called(name)}")')

    def make(fn: Any, /) -> Any:
        return _FunctionSaga(
            fn, name, version=version, timeout=timeout, on_failure=on_failure, on_exception=on_exception,
            settle_timeout=settle_timeout,
        )  # fmt: skip

    return make


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DefinitionError(f"version={version!r}: a whole number from 1")


def _checked_function(fn: Any) -> CallInfo:
    if not callable(fn):
        raise DefinitionError(f"@saga is for async functions, not for {fn!r}")
    info = call_info(fn)
    if not isinstance(inspect.unwrap(fn), FunctionType) or not inspect.iscoroutinefunction(fn):
        raise DefinitionError(f"{called(fn)} is no async function: write async def {called(fn)}")
    if info.positional > 1 or info.keyword_only:
        raise DefinitionError(f"{called(fn)} takes more than one parameter: the saga's input, or nothing")
    if info.positional > info.required:
        raise DefinitionError(f"the parameter of {called(fn)} has a default, which would never be used: take it away")
    if unresolved := info.unresolved_first or info.unresolved_result:
        raise DefinitionError(unresolved)
    return info
