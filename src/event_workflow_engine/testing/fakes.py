"""Fakes for steps: what an action or compensation does in a test, by its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from event_workflow_engine.errors import DefinitionError, OutcomeUnknownError

__all__ = ["Fake", "StepCalls", "StepFaker", "fail_times", "raises", "returns", "times_out", "unknown"]

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


class StepCalls:
    """How a faked step was called.

    Attributes:
        count: How often.
        contexts: What it was given: its arguments, each time.
    """

    def __init__(self) -> None:
        self.count = 0
        self.contexts: list[tuple[Any, ...]] = []


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
            calls.count += 1
            calls.contexts.append(args)
            return fake(calls.count)

        return faked
