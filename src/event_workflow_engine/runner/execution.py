"""One attempt of an action or compensation: on the loop or in a thread, with its timeout, until its code has ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from contextvars import Context
    from types import FrameType

    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.timers import Alarm

__all__ = ["Attempt"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_MICROS: Final = 1_000_000


class _Action(Coroutine[Any, Any, None]):
    """What an attempt's task runs: the action, and then the telling of its end, in the same turn of the loop.

    A done-callback of the task would be called a turn later, which is long beside what a step costs.
    """

    __slots__ = ("_args", "_attempt", "_coro", "_fn")

    def __init__(self, attempt: Attempt, fn: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        self._attempt = attempt
        self._fn = fn
        self._args = args
        self._coro: Coroutine[Any, Any, Any] | None = None

    def send(self, value: Any, /) -> Any:
        try:
            if self._coro is None:
                self._coro = self._fn(*self._args)
            return self._coro.send(value)
        except StopIteration as stop:
            self._attempt.value = stop.value
        except BaseException as raised:  # noqa: BLE001 - whatever it is, the attempt is told
            self._raised(raised)
        return self._end()

    def throw(self, error: Any, /, *_: Any) -> Any:
        try:
            if self._coro is not None:
                return self._coro.throw(error)
            self._attempt.error = error  # it was cancelled before it began
        except StopIteration as stop:
            self._attempt.value = stop.value
        except BaseException as raised:  # noqa: BLE001 - as above
            self._raised(raised)
        finally:
            del error  # its traceback holds this frame: cut, so that no cycle is left to the garbage collector
        return self._end()

    def _raised(self, error: BaseException) -> None:
        self._attempt.error = error
        try:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self._attempt.tell_later()
                raise error  # it ends the loop; if that runs again, the attempt is told
        finally:
            del error  # as above

    def _end(self) -> NoReturn:
        # Outside of the handlers above: what happens next is no consequence of what was raised.
        self._coro = None
        self._attempt.tell()
        raise StopIteration

    def close(self) -> None:
        if self._coro is not None:
            self._coro.close()

    def __await__(self) -> Any:
        raise TypeError("only a task runs it")

    @property
    def cr_frame(self) -> FrameType | None:
        """The action's, for those who print a task's stack."""
        return getattr(self._coro, "cr_frame", None)


class AttemptOwner(Protocol):
    """Whom an attempt tells how it went."""

    def attempt_ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        """Its code has ended."""
        ...

    def attempt_stuck(self, attempt: Attempt) -> None:
        """Its code was asked to end and has not within the settle timeout (rule 5)."""
        ...


class Ending(NamedTuple):
    """Code that nobody is told of any more, until it has ended.

    Attributes:
        name: Of its attempt.
        future: Done when it has ended.
        threaded: Whether it runs in a thread.
    """

    name: str
    future: asyncio.Future[Any]
    threaded: bool


class Attempt:
    """Runs a callable once and tells how it ended, exactly once, when its code has ended.

    A timeout or cancel asks the code to end; a thread cannot be made to, and is waited for (rule 5). When that takes
    longer than `settle_timeout`, its owner is told that it is stuck instead and the end is only logged.

    Args:
        name: For the log and the task's name.
        kit: Time, alarms and the loop.
        owner: Whom to tell. A timeout gives a `TimeoutError`, a cancel a `CancelledError`.
        settle_timeout: Seconds.
    """

    __slots__ = (
        "_alarm",
        "_cancelled",
        "_closed",
        "_future",
        "_kit",
        "_owner",
        "_settle_timeout",
        "_threaded",
        "_timed_out",
        "_timeout",
        "error",
        "name",
        "value",
    )

    def __init__(
        self,
        name: str,
        kit: Kit,
        owner: AttemptOwner,
        settle_timeout: float,
    ) -> None:
        self.name = name
        self._owner = owner
        self._kit = kit
        self._settle_timeout = settle_timeout
        self._alarm: Alarm | None = None
        self._future: asyncio.Future[Any] | None = None
        self._timeout: float | None = None
        self._threaded = False
        self._timed_out = False
        self._cancelled = False
        self._closed = False
        self.value: Any = None
        self.error: BaseException | None = None

    def start(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        is_async: bool,
        context: Context,
        pool: Executor,
        timeout: float | None,
    ) -> None:
        """Run it. `timeout` is in seconds."""
        self._timeout = timeout
        if is_async:
            # Not by the loop's task factory: an eager one would run it before its start is noted.
            self._future = asyncio.Task(_Action(self, fn, args), loop=self._kit.loop, context=context)
        else:
            self._threaded = True
            self._future = self._kit.loop.run_in_executor(pool, context.run, fn, *args)
            self._future.add_done_callback(partial(self._thread_done, context))
        if timeout is not None:
            self._alarm = self._kit.alarms.at(self._kit.now() + int(timeout * _MICROS), self._expire)

    @property
    def future(self) -> asyncio.Future[Any] | None:
        """Done when its code has ended."""
        return self._future

    @property
    def threaded(self) -> bool:
        """Whether its code runs in a thread."""
        return self._threaded

    @property
    def timed_out(self) -> bool:
        """Whether its timeout has passed."""
        return self._timed_out

    def cancel(self) -> None:
        """Ask it to end; it is told as cancelled unless it returns all the same."""
        if self._future is not None and not self._cancelled and not self._timed_out:
            self._cancelled = True
            self._ask_to_end()

    def heartbeat(self, progress: Any) -> None:
        """The action says that it is alive. From any thread."""
        if progress is not None:
            _log.debug("%s: heartbeat: %s", self.name, progress)
        self._kit.loop.call_soon_threadsafe(self.restart_timeout)

    def restart_timeout(self) -> None:
        """The action has sent a heartbeat."""
        runs = self._future is not None and not self._timed_out and not self._cancelled
        if runs and self._timeout is not None and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = self._kit.alarms.at(self._kit.now() + int(self._timeout * _MICROS), self._expire)

    def settle(self) -> None:
        """Its owner knows how it ended: nothing is told any more, and no timeout cuts off what is left of it."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()

    def abandon(self) -> Ending | None:
        """Tell nobody how it ends, and ask it to end; returns what to wait for. For eviction and shutdown."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._future is not None and not self._threaded:
            self._future.cancel()
        return None if self._future is None else Ending(self.name, self._future, self._threaded)

    def _expire(self) -> None:
        self._timed_out = True
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._kit.alarms.at(self._kit.now() + int(self._settle_timeout * _MICROS), self._stuck)
        if self._future is not None and not self._threaded:
            self._future.cancel()

    def _stuck(self) -> None:
        self._closed = True
        self._owner.attempt_stuck(self)

    def _thread_done(self, context: Context, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.error = asyncio.CancelledError()
        else:
            self.error = future.exception()
            if self.error is None:
                value = future.result()
                if not inspect.isawaitable(value):
                    self.value = value
                elif self._closed or self._timed_out or self._cancelled:
                    if inspect.iscoroutine(value):
                        value.close()  # it was asked to end before that began
                    self.error = asyncio.CancelledError()
                else:
                    self._go_on_with(value, context)
                    return
        self._tell()

    def _go_on_with(self, rest: Awaitable[Any], context: Context) -> None:
        """A plain function returned a coroutine, such as a lambda around an async one."""
        self._threaded = False

        async def awaited() -> Any:
            return await rest

        self._future = asyncio.Task(_Action(self, awaited, ()), loop=self._kit.loop, context=context)

    def tell(self) -> None:
        """The action's code has ended, with `value` or `error`."""
        # In a context of its own: what follows has nothing to do with the action's.
        self._kit.context.copy().run(self._tell)

    def tell_later(self) -> None:
        """The same when the loop runs again."""
        self._kit.loop.call_soon(self._tell_interrupted, context=self._kit.context.copy())

    def _tell_interrupted(self) -> None:
        if self._future is not None and self._future.done() and not self._future.cancelled():
            self._future.exception()  # the loop has raised it: it is no exception that nobody retrieved
        self._tell()

    def _tell(self) -> None:
        # The task's context leads back here, and the error's traceback too: cut, so that no cycle is left to the
        # garbage collector.
        self._future = None
        value, self.value = self.value, None
        error, self.error = self.error, None
        if self._alarm is not None:
            self._alarm.cancel()
        if self._closed:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                _log.warning("%s ended after it was given up", self.name, exc_info=error)
            return
        cut_off = isinstance(error, asyncio.CancelledError) and self._kit.alarms.loop_ends
        if cut_off and not self._timed_out and not self._cancelled:
            return  # with the process, as by a kill: what it did runs again
        if self._timed_out:
            error = TimeoutError(f"{self.name} did not end within {self._timeout:g} s")
            value = None
        self._owner.attempt_ended(self, value, error)
