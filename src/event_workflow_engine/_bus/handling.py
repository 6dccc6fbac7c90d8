"""Calling one subscription's handler: off the loop or on it, again by policy, then a dead letter."""

from __future__ import annotations

import asyncio
import inspect
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.callables import call_info
from event_workflow_engine.clock import Clock, SystemClock
from event_workflow_engine.context import leave_saga
from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.events import CURRENT_EVENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine._bus.carried import Carried
    from event_workflow_engine._bus.dead_letters import DeadLetters
    from event_workflow_engine.retries import RetryPolicy

__all__ = ["HANDLING", "Delivery", "Handling"]

_log: Final = logging.getLogger("event_workflow_engine.bus")


class Delivery:
    """An event on its way to one handler.

    Args:
        carried: The event.
        context: What the handler runs in; each attempt in a copy of its own.
        handled: Called with its position when it was handled, or is a dead letter.
        letter: The dead letter that it is taken from.
        attempts: How often it was tried before.
        flaw: Why the handler cannot be called with it.
    """

    __slots__ = ("attempts", "carried", "context", "flaw", "handled", "letter", "under_way")

    def __init__(
        self,
        carried: Carried,
        context: Context,
        *,
        handled: Callable[[int], None] | None = None,
        letter: str | None = None,
        attempts: int = 0,
        flaw: Exception | None = None,
    ) -> None:
        self.carried = carried
        self.context = context
        self.handled = handled
        self.letter = letter
        self.attempts = attempts
        self.flaw = flaw
        self.under_way = False


HANDLING: Final[ContextVar[Delivery | None]] = ContextVar("ewe_handling", default=None)
"""What the code that runs here handles, in its tasks and threads too."""


class Handling:
    """Calls a handler with events, one attempt after the other.

    Args:
        name: The subscription's name.
        handler: Sync or async, with the payload.
        retry: When to try again.
        dead: Where what fails for good is kept.
        fed_again: What is not handled when the bus stops comes again by itself.
        threads: For a sync handler.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[Any], Any],
        retry: RetryPolicy,
        dead: DeadLetters,
        *,
        fed_again: bool,
        threads: int,
    ) -> None:
        self.name = name
        self.clock: Clock = SystemClock()
        self.fed_again = fed_again
        self._handler = handler
        self._is_async = call_info(handler).is_async
        self._retry = retry
        self._dead = dead
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._stopping = False
        self._pauses: set[asyncio.Future[None]] = set()

    async def handle(self, delivery: Delivery) -> bool:
        """Handle an event, or make it a dead letter.

        Returns:
            Whether that is so: ``False`` where the bus stops meanwhile, and the event is fed again.
        """
        delivery.under_way = True
        attempt = 0
        try:
            while True:
                attempt += 1
                try:
                    await self._call(delivery)
                except Exception as error:  # noqa: BLE001 - a handler may raise anything; none of it is dropped
                    if not self._may_try_again(attempt, error):
                        return await self._bury(delivery, error, delivery.attempts + attempt)
                    await self._pause(self._retry.wait_after(attempt))
                    if self._stopping:
                        if self.fed_again:
                            return False
                        return await self._bury(delivery, error, delivery.attempts + attempt)
                else:
                    if delivery.letter is not None:
                        await self._dead.drop(delivery.letter)
                    return True
        finally:
            delivery.under_way = False

    def _may_try_again(self, attempt: int, error: Exception) -> bool:
        return self._retry.may_follow(attempt) and not isinstance(error, self._retry.never)

    async def _pause(self, seconds: float) -> None:
        if self._stopping:
            return
        pause = asyncio.ensure_future(self.clock.sleep_until(self.clock.now() + timedelta(seconds=seconds)))
        self._pauses.add(pause)
        try:
            await asyncio.wait((pause,))
        finally:
            pause.cancel()
            self._pauses.discard(pause)

    async def _call(self, delivery: Delivery) -> None:
        if delivery.flaw is not None:
            raise delivery.flaw
        payload = delivery.carried.payload()
        context = delivery.context.copy()
        context.run(_enter, delivery)
        if self._is_async:
            await _to_the_end(self._handler(payload), context)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="ewe-bus")
        loop = asyncio.get_running_loop()
        result, error = await loop.run_in_executor(self._pool, context.run, _outcome, self._handler, payload)
        if error is not None:
            raise error
        if inspect.isawaitable(result):  # of a lambda or a partial around an async function
            await _to_the_end(_awaiting(result), context)

    async def _bury(self, delivery: Delivery, error: Exception, attempts: int) -> bool:
        event = delivery.carried.readable()
        _log.error("subscription %s: %s %s is a dead letter", self.name, event.type, event.id, exc_info=error)
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._dead.add(self.name, delivery.carried, error, attempts)
            except Exception:  # noqa: BLE001 - the event must not be dropped because the store is out of reach
                _log.exception("subscription %s: the dead letter %s cannot be stored", self.name, event.id)
                if self._stopping:
                    # Fed again, or else these lines of the log are all that is left of it.
                    return not self.fed_again
                await self._pause(self._retry.wait_after(attempt))
            else:
                return True

    async def abandon(self, delivery: Delivery) -> None:
        """Make an event that the stop of the bus cut off, or left waiting, a dead letter."""
        error = EngineStateError(f"the bus was stopped before subscription {self.name!r} had handled it")
        await self._bury(delivery, error, delivery.attempts)

    def stop(self) -> None:
        """Begin no further attempts of what failed."""
        self._stopping = True
        for pause in self._pauses:
            pause.cancel()

    def stopped(self) -> None:
        """All is quiet; it may be used again."""
        self._stopping = False
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


def _enter(delivery: Delivery) -> None:
    """Set up a handler's context: it is called for an event, not from inside of the saga that published it."""
    CURRENT_EVENT.set(delivery.carried.event)
    HANDLING.set(delivery)
    leave_saga()


def _outcome(handler: Callable[[Any], Any], payload: Any) -> tuple[Any, Exception | None]:
    """What a sync handler returned or raised; as a value, since a future cannot hold a `StopIteration`."""
    try:
        return handler(payload), None
    except Exception as error:  # noqa: BLE001 - raised again on the loop
        return None, error
    except BaseException as error:  # noqa: BLE001 - a handler ends no partition, and a thread no process
        return None, RuntimeError(f"the handler raised {error!r}")


async def _awaiting(result: Any) -> None:
    await result


async def _to_the_end(coroutine: Any, context: Context) -> None:
    """Run it in its context. That it cancels itself is a failure like others; that we are cancelled is not."""
    task: asyncio.Task[Any] = asyncio.create_task(coroutine, context=context)
    try:
        await task
    except asyncio.CancelledError as error:
        current = asyncio.current_task()
        if task.cancelled() and (current is None or not current.cancelling()):
            raise RuntimeError("the handler was cancelled from inside") from error
        raise
    except (Exception, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(f"the handler raised {error!r}") from error
