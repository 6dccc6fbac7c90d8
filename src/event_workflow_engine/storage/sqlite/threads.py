"""Threads that run jobs of one event loop, with as little between them as there can be."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

__all__ = ["JobThreads"]

T = TypeVar("T")

_Deliver = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[..., Any], tuple[Any, ...], _Deliver]


class _Wire:
    """Calls from threads to the loop, in the order in which they were sent.

    `call_soon_threadsafe` makes a handle and writes to a socket, which the loop then reads twice: a tenth of what a
    small commit takes. Where the system has an eventfd and the loop watches files, that is one write and one read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._file: int | None = None
        if not hasattr(os, "eventfd"):
            return
        file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            # What is called has nothing to do with who happened to open the store.
            contextvars.Context().run(loop.add_reader, file, self._make_calls)
        except NotImplementedError:
            os.close(file)
        else:
            self._file = file

    def send(self, call: Callable[..., object], *args: Any) -> None:
        """Have ``call(*args)`` run on the loop. From any thread.

        Raises:
            RuntimeError: The loop is closed.
        """
        if self._file is None:
            self._loop.call_soon_threadsafe(call, *args)
            return
        if self._loop.is_closed():
            raise RuntimeError("the loop is closed")
        self._calls.append((call, args))
        os.eventfd_write(self._file, 1)

    def close(self) -> None:
        """Nothing will be sent any more."""
        file, self._file = self._file, None
        if file is not None:
            self._loop.remove_reader(file)
            os.close(file)

    def _make_calls(self) -> None:
        if self._file is not None:
            try:  # noqa: SIM105 - `suppress` costs more than the read, each time
                os.eventfd_read(self._file)
            except BlockingIOError:
                pass
        calls = self._calls
        while calls:
            call, args = calls.popleft()
            try:
                call(*args)
            except Exception as error:  # noqa: BLE001 - as the loop does with what it calls
                self._loop.call_exception_handler({"message": f"{call!r} raised", "exception": error})
            except BaseException:
                if calls and self._file is not None:
                    os.eventfd_write(self._file, 1)  # the rest when the loop runs again
                raise


class JobThreads:
    """One thread or several that take jobs from one queue and hand their results to the loop.

    `concurrent.futures` would cost two locks and a condition for each job; here it is one queue to the thread and one
    wire back. The threads are daemons: a loop that ends without closing the store hangs nothing.

    Args:
        name: Of the threads.
        count: How many.
        between: Called on the thread after each job with ``False``, and with ``True`` when no job came in the seconds
            that it returned last (``None``: wait for a job). Must not raise.
    """

    def __init__(self, name: str, count: int = 1, between: Callable[[bool], float | None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._wire = _Wire(self._loop)
        self._between = between
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        self._running = count
        self._stopped: asyncio.Future[None] | None = None
        for thread in self._threads:
            thread.start()

    def post(
        self, job: Callable[..., T], args: tuple[Any, ...], deliver: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run ``job(*args)`` on a thread; then ``deliver(result, error)`` on the loop."""
        self._jobs.put((job, args, deliver))

    def call(self, job: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run ``job(*args)`` on a thread. Cancelling the future forgets the result; the job runs all the same."""
        future: asyncio.Future[T] = self._loop.create_future()

        def deliver(result: T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._jobs.put((job, args, deliver))
        return future

    def wake(self) -> None:
        """Have `between` called soon, for something it looks at has changed."""
        self._jobs.put((_nothing, (), _forget))

    async def stop(self) -> None:
        """Let the threads end behind the jobs that are queued, and wait for them."""
        self._stopped = self._loop.create_future()
        for _ in self._threads:
            self._jobs.put(None)
        await self._stopped
        for thread in self._threads:
            thread.join()
        self._wire.close()

    def _one_stopped(self) -> None:
        self._running -= 1
        if not self._running and self._stopped is not None:
            self._stopped.set_result(None)

    def _run(self) -> None:
        get = self._jobs.get
        hand_over = self._wire.send
        pause: float | None = None
        try:
            while True:
                try:
                    job = get() if pause is None else get(timeout=pause)
                except Empty:
                    pause = self._between(True) if self._between is not None else None  # noqa: FBT003
                    continue
                if job is None:
                    hand_over(self._one_stopped)
                    return
                work, args, deliver = job
                error: BaseException | None = None
                result = None
                try:
                    result = work(*args)
                except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the caller
                    error = raised
                hand_over(deliver, result, error)
                # Hold nothing while waiting for the next.
                del job, work, args, deliver, result, error
                if self._between is not None:
                    pause = self._between(False)  # noqa: FBT003
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The loop ended without closing the store: nobody waits any more.


def _nothing() -> None:
    pass


def _forget(result: Any, error: BaseException | None) -> None:
    pass
