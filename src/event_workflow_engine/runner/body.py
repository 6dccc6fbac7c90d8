"""The script of a saga function: its body on the deterministic loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from event_workflow_engine import history as h
from event_workflow_engine.context import RUNTIME, StepResults
from event_workflow_engine.errors import (
    DefinitionError,
    NonDeterminismError,
    SagaEvicted,
    SignalTimeoutError,
    StepFailedError,
)
from event_workflow_engine.journal import CHILD, DEADLINE
from event_workflow_engine.outcomes import Outcome, qualified_name
from event_workflow_engine.runner.commands import CancelStep, Command, DropTimer, Fail, Finish, SetTimer, StartStep
from event_workflow_engine.runner.loop import SagaLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, KeysView
    from contextvars import Context

    from event_workflow_engine.codecs import Codec
    from event_workflow_engine.saga import Saga, StepSpec

__all__ = ["BodyScript"]


class BodyScript:
    """A saga function's body, told the journal's facts one by one.

    It is also the `Runtime` that `step()`, `sleep()` and `wait_for_signal()` find in the context.

    Args:
        saga: The definition.
        arguments: The body's arguments: its input, or nothing.
        context: Where the body runs; the runtime is set in it.
        codec: Decodes signals.
        name: The saga's id.
        child: Makes the step that runs a child saga.
    """

    __slots__ = (
        "_arguments",
        "_cancel_kind",
        "_cancel_reason",
        "_child",
        "_closed",
        "_codec",
        "_commands",
        "_context",
        "_finished",
        "_loop",
        "_names",
        "_open",
        "_saga",
        "_signals",
        "_timers",
        "_waiters",
    )

    def __init__(
        self,
        saga: Saga[Any, Any],
        arguments: tuple[Any, ...],
        context: Context,
        codec: Codec,
        name: str,
        child: Callable[[Any, Any, str | None, str], StepSpec],
    ) -> None:
        self._saga = saga
        self._arguments = arguments
        self._context = context
        self._codec = codec
        self._child = child
        self._loop = SagaLoop(name)
        self._commands: list[Command] = []
        self._open: dict[str, tuple[asyncio.Future[Any], StartStep]] = {}
        self._names: dict[str, int] = {}
        self._timers: dict[str, asyncio.Future[Any]] = {}
        self._signals: dict[str, deque[h.Raw]] = {}
        self._waiters: dict[str, deque[tuple[asyncio.Future[Any], str | None]]] = {}
        self._cancel_kind = ""
        self._cancel_reason = ""
        self._closed = False
        self._finished = False

    def begin(self) -> list[Command]:
        """Run the body up to where it first waits."""
        fn = self._saga.fn
        assert fn is not None, "a body belongs to a saga function"
        self._context.run(RUNTIME.set, self)
        self._loop.start(fn(*self._arguments), context=self._context)
        return self._pump()

    def deliver(self, fact: Any, value: Any, error: BaseException | None) -> list[Command]:
        """See `Script.deliver`.

        Raises:
            NonDeterminismError: The journal tells of a step or timer that the body never asked for.
        """
        if self._finished:
            return []
        kind = type(fact)
        if kind is h.StepSucceeded or kind is h.StepFailed or kind is h.StepUnknown:
            self._deliver_outcome(fact, value, error)
        elif kind is h.SignalReceived:
            self._deliver_signal(fact)
        elif kind is h.TimerFired and fact.timer != DEADLINE:
            waiting = self._timers.pop(fact.timer, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif (kind is h.CancelRequested or kind is h.TimerFired) and not self._cancel_kind:
            self._cancel_kind = "cancelled" if kind is h.CancelRequested else "timeout"
            self._cancel_reason = fact.reason if kind is h.CancelRequested else "the saga's own deadline has passed"
            self._loop.root.cancel(self._cancel_reason)
        return self._pump()

    def _deliver_outcome(self, fact: Any, value: Any, error: BaseException | None) -> None:
        entry = self._open.pop(fact.step, None)
        if entry is None:
            raise NonDeterminismError(_mismatch(self._saga, fact.step))
        future, _ = entry
        if future.done():  # the body gave it up; the journal keeps its outcome for the rollback
            return
        if type(fact) is h.StepSucceeded:
            future.set_result(value)
            return
        outcome = Outcome.FAILED if type(fact) is h.StepFailed else Outcome.UNKNOWN
        failure = StepFailedError(fact.step, outcome, fact.error_type, fact.message)
        failure.__cause__ = error
        future.set_exception(failure)

    def _deliver_signal(self, fact: h.SignalReceived) -> None:
        waiters = self._waiters.get(fact.name)
        while waiters:
            future, _ = waiters.popleft()
            if not future.done():
                future.set_result(fact.payload)
                return
        self._signals.setdefault(fact.name, deque()).append(fact.payload)

    def requested(self, step: str) -> StartStep | None:
        """See `Script.requested`."""
        entry = self._open.get(step)
        return None if entry is None else entry[1]

    def cancels(self, step: str) -> bool:
        """See `Script.cancels`."""
        entry = self._open.get(step)
        return self._finished or (entry is not None and entry[0].done())

    @property
    def awaited_timers(self) -> KeysView[str]:
        """See `Script.awaited_timers`."""
        return self._timers.keys()

    @property
    def awaited_signals(self) -> Iterator[tuple[str, str | None]]:
        """See `Script.awaited_signals`."""
        for name, waiters in self._waiters.items():
            for future, timer in waiters:
                if not future.done():
                    yield name, timer

    def close(self) -> None:
        """End the body with `SagaEvicted`: what it asks for while it unwinds is refused."""
        if not self._closed:
            self._closed = True
            self._loop.evict()
            # The context leads back here: cut, so that no cycle is left to the garbage collector.
            self._context.run(RUNTIME.set, None)
            for waited_for in (self._open, self._timers, self._waiters):
                waited_for.clear()

    def step(self, fn: Any, args: tuple[Any, ...], spec: StepSpec, key: str | None = None) -> Coroutine[Any, Any, Any]:  # noqa: ARG002
        """See `Runtime.step`."""
        if self._closed:
            raise self._evicted()
        if spec.compensation is not None:
            self._saga.compensation_name(spec.compensation.fn)
        return self._step(StartStep(self._identity(spec.name, key), spec, args))

    async def _step(self, command: StartStep) -> Any:
        if self._closed:
            raise self._evicted()
        future = self._loop.create_future()
        self._open[command.step] = (future, command)
        self._commands.append(command)
        try:
            return await future
        except asyncio.CancelledError:
            if command.step in self._open:
                self._commands.append(CancelStep(command.step))
            raise

    async def sleep(self, seconds: float) -> None:
        """See `Runtime.sleep`."""
        if self._closed:
            raise self._evicted()
        timer = self._identity("~sleep", None)
        try:
            await self._set_timer(timer, seconds)
        except asyncio.CancelledError:
            self._drop_timer(timer)
            raise

    def _set_timer(self, timer: str, seconds: float) -> asyncio.Future[Any]:
        future = self._timers[timer] = self._loop.create_future()
        self._commands.append(SetTimer(timer, seconds))
        return future

    def _drop_timer(self, timer: str) -> None:
        if self._timers.pop(timer, None) is not None and not self._closed:
            self._commands.append(DropTimer(timer))

    async def wait_for_signal(self, name: str, kind: Any, timeout: float | None) -> Any:  # noqa: ASYNC109 - a durable one
        """See `Runtime.wait_for_signal`."""
        if self._closed:
            raise self._evicted()
        buffered = self._signals.get(name)
        if buffered:
            return self._decode_signal(name, kind, buffered.popleft())
        future = self._loop.create_future()
        timer = None if timeout is None else self._identity(f"~signal:{name}", None)
        self._waiters.setdefault(name, deque()).append((future, timer))
        if timer is not None and timeout is not None:
            alarm = self._set_timer(timer, timeout)
            alarm.add_done_callback(lambda alarm: _expire(future, alarm, name, timeout))
        try:
            payload = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                # It was handed the signal and cancelled before it could take it: the next one gets it.
                self._signals.setdefault(name, deque()).appendleft(future.result())
            raise
        finally:
            if timer is not None:
                self._drop_timer(timer)
        return self._decode_signal(name, kind, payload)

    def _decode_signal(self, name: str, kind: Any, payload: h.Raw) -> Any:
        return self._codec.decode(payload, kind, f"signal {name!r} to saga {self._saga.name!r}")

    def run_saga(self, saga: Any, input: Any, saga_id: str | None) -> Coroutine[Any, Any, Any]:  # noqa: A002
        """See `Runtime.run_saga`."""
        if self._closed:
            raise self._evicted()
        step = self._identity(f"{CHILD}{saga.name}", None)
        return self._run_child(saga, StartStep(step, self._child(saga, input, saga_id, step), ()))

    async def _run_child(self, saga: Any, command: StartStep) -> Any:
        result = await self._step(command)
        return result if saga.fn is not None else StepResults(result, saga.by_action)

    def _identity(self, name: str, key: str | None) -> str:
        if key is not None:
            if key in self._names:
                raise DefinitionError(f"saga {self._saga.name!r}: step key {key!r} is used twice; keys must be unique")
            self._names[key] = 1
            return key
        present = self._loop.present
        base = f"{present.path}/{name}" if present is not None and present.path else name
        count = self._names[base] = self._names.get(base, 0) + 1
        return base if count == 1 else f"{base}#{count}"

    @staticmethod
    def _evicted() -> SagaEvicted:
        return SagaEvicted("the saga leaves memory: what its body asks for now is not recorded")

    def _pump(self) -> list[Command]:
        self._loop.pump()
        if self._loop.fatal is not None:
            raise self._loop.fatal
        commands, self._commands = self._commands, []
        root = self._loop.root
        if root.done() and not self._finished:
            self._finished = True
            commands.append(self._conclusion(root))
        return commands

    def _conclusion(self, root: asyncio.Task[Any]) -> Finish | Fail:
        if root.cancelled():
            kind = self._cancel_kind or "cancelled"
            reason = self._cancel_reason or "cancelled"
            return Fail("SagaTimeout" if kind == "timeout" else "SagaCancelled", reason, None, kind)
        error = root.exception()
        if error is None:
            return Finish(root.result())
        if isinstance(error, NonDeterminismError):
            raise error
        if isinstance(error, StepFailedError):
            return Fail(error.error_type, error.message, error.step, self._cancel_kind or "failed", error)
        return Fail(qualified_name(type(error)), str(error), None, self._cancel_kind or "failed", error)


def _expire(future: asyncio.Future[Any], alarm: asyncio.Future[Any], name: str, seconds: float | None) -> None:
    if not future.done() and not alarm.cancelled():
        future.set_exception(SignalTimeoutError(f"no signal {name!r} came within {seconds:g} s"))


def _mismatch(saga: Saga[Any, Any], step: str) -> str:
    return (
        f"saga {saga.name!r} version {saga.version}: the journal has a step {step!r} that the code no longer asks "
        "for at this point: register the code that it was started with, or give the changed code a higher version"
    )
