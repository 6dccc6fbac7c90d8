"""Fakes for steps: what an action or compensation does in a test, by its function."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Container
from typing import Any

from event_workflow_engine.callables import called
from event_workflow_engine.errors import DefinitionError, OutcomeUnknownError

__all__ = [
    "Fake",
    "StepCalls",
    "StepFaker",
    "UnusedFakeWarning",
    "fail_times",
    "raises",
    "returns",
    "times_out",
    "unknown",
]

Fake = Callable[[int], Any]
"""Gets the number of the call, from 1; returns the result or raises."""


def returns(value: Any = None) -> Fake:
    """The step returns `value`."""
    return lambda _: value


def raises(error: BaseException) -> Fake:
    """The step raises `error`."""

    def fake(_: int) -> Any:
        raise error

    return fake


def fail_times(times: int, value: Any = None, *, error: BaseException | None = None) -> Fake:
    """The step raises `times` times, then returns `value`."""

    def fake(call: int) -> Any:
        if call <= times:
            raise error if error is not None else RuntimeError(f"faked failure {call} of {times}")
        return value

    return fake


def times_out() -> Fake:
    """The step raises `TimeoutError`: whether it happened is unknown."""
    return raises(TimeoutError("faked timeout"))


def unknown() -> Fake:
    """The step's outcome is unknown."""
    return raises(OutcomeUnknownError("faked"))


class UnusedFakeWarning(UserWarning):
    """A test has ended, and a fake of it was never called: no saga came to that step, or none has it."""


class StepCalls:
    """How a faked step was called."""

    def __init__(self) -> None:
        self._contexts: list[tuple[Any, ...]] = []
        self._is_known = False

    @property
    def count(self) -> int:
        """How often."""
        self._is_known = True
        return len(self._contexts)

    @property
    def contexts(self) -> list[tuple[Any, ...]]:
        """What it was given: its arguments, each time."""
        self._is_known = True
        return self._contexts

    @property
    def is_unused(self) -> bool:
        """Whether it was never called, and nobody has looked whether it was."""
        return not self._contexts and not self._is_known

    def note(self, args: tuple[Any, ...]) -> int:
        """It is called; which call it is."""
        self._contexts.append(args)
        return len(self._contexts)


class StepFaker:
    """Puts fakes in the place of functions, wherever a saga names them; see the ``fake_step`` fixture."""

    def __init__(self) -> None:
        self._fakes: dict[Callable[..., Any], tuple[Fake, StepCalls]] = {}

    def __call__(self, fn: Callable[..., Any], fake: Fake) -> StepCalls:
        """Fake `fn` from now on.

        Raises:
            DefinitionError: `fn` cannot be called, or `fake` is none.
        """
        for given in (fn, fake):
            if not callable(given):
                raise DefinitionError(f"fake_step({fn!r}, {fake!r}): a function, and one of returns(…), raises(…), …")
        if inspect.iscoroutinefunction(fake):
            raise DefinitionError(
                f"fake_step({fn!r}, {fake!r}): a fake is no async function: it gets the call's number, and "
                "returns what the step returns, or raises"
            )
        calls = StepCalls()
        self._fakes[fn] = (fake, calls)
        return calls

    def find(self, fn: Callable[..., Any]) -> Callable[..., Any] | None:
        """What stands in for `fn`; ``None``: nothing does. An `Interceptor` of the runner."""
        found = self._fakes.get(fn)
        if found is None:
            return None
        fake, calls = found

        async def faked(*args: Any) -> Any:
            return fake(calls.note(args))

        return faked

    def warn_of_unused(self, *, but: Container[Any] = ()) -> None:
        """Say of each fake that was never called that it was not, unless the test has looked at its calls.

        Args:
            but: Of which functions to say nothing.
        """
        for fn, (_, calls) in self._fakes.items():
            if calls.is_unused and fn not in but:
                warnings.warn(
                    f"the fake of {called(fn)} was never called: no saga came to such a step, or none has it; take it "
                    "away, fake the function that the saga names, or look at its calls to say that there are none",
                    UnusedFakeWarning,
                    stacklevel=2,
                )
