"""`CompensationManager`: undo what a block of code has done, in reverse, also where there is no saga."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVarTuple

import msgspec

from event_workflow_engine.callables import call_info, called
from event_workflow_engine.clock import Clock, Duration, SystemClock, seconds
from event_workflow_engine.errors import CompensationFailedError, DefinitionError
from event_workflow_engine.outcomes import RollbackReport
from event_workflow_engine.retries import COMPENSATION_RETRY, RetryPolicy

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["CompensationManager"]

Ts = TypeVarTuple("Ts")

_THREADS: Final = 4


class _Scheduled(msgspec.Struct, frozen=True):
    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    retry: RetryPolicy
    timeout: float | None


class CompensationManager:
    """A stack of compensations that lives as long as the process; sagas have a durable one of their own.

    Schedule what undoes an action before or right behind it; `run` then runs all of it, last first, one by one. As an
    async context manager it runs them when the block raises, shielded from the cancel that may have been the cause, and
    forgets them when it does not.

    Args:
        retry: The policy of compensations that name none; eight attempts by default.
        clock: Where waits between attempts are waited.

    Example:
        >>> async def upload() -> None:
        ...     async with CompensationManager() as undo:
        ...         undo.schedule(print, "file deleted")
        ...         raise OSError("disk full")
        >>> try:
        ...     asyncio.run(upload())
        ... except OSError as error:
        ...     print(error)
        file deleted
        disk full
    """

    def __init__(self, *, retry: RetryPolicy | None = None, clock: Clock | None = None) -> None:
        self._retry = retry if retry is not None else COMPENSATION_RETRY
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._scheduled: list[_Scheduled] = []

    def schedule(
        self,
        fn: Callable[[*Ts], object],
        *args: *Ts,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
    ) -> None:
        """Put a compensation on the stack. Sync: nothing runs yet.

        Args:
            fn: What undoes it: async functions are awaited, sync ones run in a thread, in a copy of the context.
            args: Its arguments; keyword arguments go by `functools.partial`.
            name: For the report and the error; by default the function's own.
            retry: Its policy.
            timeout: For each attempt. A thread cannot be ended: the next attempt waits until it is.

        Raises:
            DefinitionError: `fn` cannot be called: it is a coroutine, say.
        """
        given: Any = fn
        if not callable(given):
            remedy = "give the function itself, uncalled" if inspect.isawaitable(given) else "a function is needed"
            raise DefinitionError(f"compensation {given!r} cannot be called: {remedy}")
        limit = None if timeout is None else seconds(timeout)
        self._scheduled.append(_Scheduled(name or called(fn), fn, args, retry or self._retry, limit))

    def discard(self) -> None:
        """Forget them all: what was done stays."""
        self._scheduled.clear()

    async def run(self) -> RollbackReport:
        """Run them all, last first, one by one, and forget them. Each runs, whatever became of the others.

        What they schedule meanwhile runs, too. Cancelled, it keeps those that have not ended: run again, it goes on.

        Returns:
            What was compensated, in the order in which it ran.

        Raises:
            CompensationFailedError: One or more failed for good; it names every failed and every succeeded one.
        """
        failed: dict[str, BaseException] = {}
        succeeded: list[str] = []
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ewe-undo")
        try:
            while self._scheduled:
                compensation = self._scheduled.pop()
                try:
                    error = await self._attempt(compensation, pool)
                except BaseException:  # it may not have happened, and those below it have not
                    self._scheduled.append(compensation)
                    raise
                if error is None:
                    succeeded.append(compensation.name)
                else:
                    failed[_unique(compensation.name, failed)] = error
        finally:
            pool.shutdown(wait=False)
        if failed:
            raise CompensationFailedError(failed, succeeded)
        return RollbackReport(tuple(succeeded))

    async def _attempt(self, compensation: _Scheduled, pool: ThreadPoolExecutor) -> BaseException | None:
        attempt, cancels = 0, _cancels()
        while True:
            attempt += 1
            try:
                await _call(compensation, pool)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _cancels() > cancels:
                    raise  # it is ours; any other is of what the compensation waited for
                policy = compensation.retry
                if not policy.may_follow(attempt) or isinstance(error, policy.never):
                    return error
                await self._pause(policy.wait_after(attempt))
            else:
                return None

    async def _pause(self, length: float) -> None:
        await self._clock.sleep_until(self._clock.now() + timedelta(seconds=length))

    async def __aenter__(self) -> Self:
        """Begin the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo what the block did, where it raised.

        Raises:
            CompensationFailedError: A compensation failed; what the block raised is its cause.
        """
        if error is None:
            self.discard()
            return
        undoing = asyncio.ensure_future(self.run())
        cancelled: asyncio.CancelledError | None = None
        while not undoing.done():
            try:
                await asyncio.shield(undoing)
            except asyncio.CancelledError as again:
                if undoing.cancelled():
                    raise
                cancelled = (
                    again  # cancelled once more in the middle: it is undone all the same, then the cancel goes on
                )
            except CompensationFailedError:
                break
        failure = undoing.exception()
        if failure is not None:
            raise failure from error
        if cancelled is not None:
            raise cancelled


def _cancels() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _unique(name: str, taken: dict[str, BaseException]) -> str:
    count, unique = 1, name
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    return unique


async def _call(compensation: _Scheduled, pool: ThreadPoolExecutor) -> None:
    async with asyncio.timeout(compensation.timeout) as limit:
        if call_info(compensation.fn).is_async:
            await compensation.fn(*compensation.args)
            return
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        thread = loop.run_in_executor(pool, context.run, compensation.fn, *compensation.args)
        try:
            result = await asyncio.shield(thread)
        except asyncio.CancelledError:
            if limit.expired() or not thread.done():
                await asyncio.wait((thread,))
            raise
        if inspect.isawaitable(result):
            await result
