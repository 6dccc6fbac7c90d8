"""The deterministic loop: runs the tasks of one saga function until all of them are blocked.

It lives inside the ordinary running loop, which calls `SagaLoop.pump` between two events of the journal. It has no
clock, no threads and no sockets; what it runs first, second and third depends on nothing but the order in which futures
were resolved. So the same journal gives the same run, live and in replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from asyncio.events import _get_running_loop, _set_running_loop  # how loops nest; asyncio has no public way
from asyncio.tasks import _enter_task, _leave_task  # as above
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final, NoReturn, TypeVar
from zlib import crc32

import msgspec

from event_workflow_engine.errors import ForeignAwaitError, NonDeterminismError, SagaEvicted

__all__ = ["SagaLoop"]

T = TypeVar("T")

_log: Final = logging.getLogger("event_workflow_engine.runner")
_LONGEST_PUMP: Final = 1_000_000
"""Callbacks in one pump: a body that is not blocked by then spins for ever."""

_UNWIND_ROUNDS: Final = 100
"""How often a body may await while it is evicted."""

_TASKS_FILE: Final = asyncio.as_completed.__code__.co_filename
_AS_COMPLETED: Final = frozenset({"as_completed", "__init__"})
_DEPTH: Final = 4
"""Frames between `as_completed` and `create_task`, at most."""

_NUMBER_BITS: Final = 24
"""Of a hash, for tasks and futures of one body: as the low ones, so that small sets iterate in the order of making."""

_TIME: Final = frozenset({"call_later", "call_at"})


class _BodyFuture(asyncio.Future[Any]):
    """A future whose hash is its number: sets of them iterate in the same order in every run."""

    __slots__ = ("number",)

    number: int

    def __hash__(self) -> int:
        return self.number


class _BodyTask(asyncio.Task[Any]):
    """A task of the body: with a path, and a hash that is its number."""

    __slots__ = ("_number", "watched")

    def __init__(self, coro: Coroutine[Any, Any, Any], loop: SagaLoop, path: str, context: Context | None) -> None:
        self._number = loop.next_number()
        self.watched = _Watched(coro, loop, path)
        super().__init__(self.watched, loop=loop, name=path, context=context)

    def __hash__(self) -> int:
        return self._number


class _Call(msgspec.Struct, eq=False):
    """What `SagaLoop.call_soon` returns, an `asyncio.Handle` that has no debug mode."""

    callback: Callable[..., Any]
    args: tuple[Any, ...]
    context: Context
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Do not call it."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Whether it will not be called."""
        return self.is_cancelled


class _Watched(Coroutine[Any, Any, Any]):
    """A task's coroutine, which may only wait for futures of its own loop.

    Attributes:
        path: The task's: ``""`` for the body itself, ``"2.1"`` for a child of a child.
        children: How many tasks it has made.
    """

    __slots__ = ("_coro", "_loop", "children", "path")

    def __init__(self, coro: Coroutine[Any, Any, Any], loop: SagaLoop, path: str) -> None:
        self._coro = coro
        self._loop = loop
        self.path = path
        self.children = 0

    def send(self, value: Any, /) -> Any:
        loop = self._loop
        loop.present = self
        try:
            awaited = self._coro.send(value)
        finally:
            loop.present = None
        return awaited if awaited is None else self._checked(awaited)

    def throw(self, error: Any, /, *_: Any) -> Any:
        self._loop.present = self
        try:
            awaited = self._coro.throw(error)
        finally:
            self._loop.present = None
            del error  # its traceback holds this frame: cut, so that no cycle is left to the garbage collector
        return awaited if awaited is None else self._checked(awaited)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Any:
        return self._coro.__await__()

    def _checked(self, awaited: Any) -> Any:
        while awaited is not None and getattr(awaited, "_loop", None) is not self._loop:
            if asyncio.isfuture(awaited):
                awaited._asyncio_future_blocking = False  # noqa: SLF001 - the protocol between futures and tasks
            awaited = self.throw(self._loop.foreign(f"awaiting a {type(awaited).__name__} of another loop"))
        return awaited


_Base: Any = asyncio.AbstractEventLoop
"""Untyped, since most of its methods are refused, and made below."""


class SagaLoop(_Base):  # type: ignore[misc]
    """A loop for one saga function's body.

    Args:
        name: The same in every run of the body, and another's for another saga. The hashes of its tasks and futures
            come from it: asyncio has one set of all tasks, in which those of all sagas must not meet.

    Attributes:
        present: The coroutine of the task that runs now.
        fatal: The first thing that the body did which cannot be replayed, even where the body swallowed the error.
    """

    def __init__(self, name: str = "") -> None:
        self._ready: deque[_Call] = deque()
        self._children: dict[_BodyTask, None] = {}
        self._root: _BodyTask | None = None
        self._number = crc32(name.encode(errors="surrogatepass")) << _NUMBER_BITS
        # With the coroutine, so that no other one gets its address.
        self._early: dict[int, tuple[Any, asyncio.Task[Any]]] | None = None
        self.present: _Watched | None = None
        self.fatal: NonDeterminismError | None = None

    # -- for the runner ----------------------------------------------------------------------------------------------

    @property
    def root(self) -> asyncio.Task[Any]:
        """The task of the body itself."""
        assert self._root is not None, "start() comes first"
        return self._root

    def start(self, coro: Coroutine[Any, Any, Any], *, context: Context) -> None:
        """Make the body's task, whose path is empty; `pump` runs it."""
        self._root = _BodyTask(coro, self, "", context)

    def pump(self) -> None:
        """Run what is ready until nothing is."""
        outer = _get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        # The ordinary loop's hooks would finish this loop's generators over there.
        sys.set_asyncgen_hooks(None, None)
        task = None if outer is None else asyncio.current_task(outer)
        if task is not None:
            _leave_task(outer, task)  # type: ignore[arg-type]
        _set_running_loop(self)
        try:
            self._run_ready()
        finally:
            _set_running_loop(outer)
            if task is not None:
                _enter_task(outer, task)  # type: ignore[arg-type]
            sys.set_asyncgen_hooks(*hooks)

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(_LONGEST_PUMP):
            if not ready:
                return
            call = ready.popleft()
            if not call.is_cancelled:
                try:
                    call.context.run(call.callback, *call.args)
                except Exception as error:  # noqa: BLE001 - as asyncio's own loops do; of a task it is never the body's
                    self.call_exception_handler({"message": f"{call.callback!r} raised", "exception": error})
        self._note(NonDeterminismError("the body of the saga function spins: it runs on and on without ever waiting"))
        ready.clear()

    def evict(self) -> None:
        """End every task with `SagaEvicted`, now, and leave nothing to the garbage collector.

        ``finally`` blocks run; what they await is refused by the same error.
        """
        tasks = [*([] if self._root is None else [self._root]), *self._children]
        self._children = {}
        outer = _get_running_loop()
        _set_running_loop(self)
        try:
            for task in tasks:
                if not task.done():
                    self._unwind(task)
        finally:
            _set_running_loop(outer)
            self._ready.clear()
            self._root = None

    def _unwind(self, task: _BodyTask) -> None:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - it is ended by hand, here
        waiter = getattr(task, "_fut_waiter", None)
        try:
            for _ in range(_UNWIND_ROUNDS):
                task.watched.throw(SagaEvicted("the saga leaves memory"))
            task.watched.close()
        except (SagaEvicted, StopIteration, asyncio.CancelledError):
            pass
        except BaseException as error:  # noqa: BLE001 - whatever its finally blocks raise, the body has ended
            _log.debug("a body raised while it was evicted", exc_info=error)
            with contextlib.suppress(BaseException):
                task.watched.close()
        if waiter is not None:
            waiter.cancel()  # lets go of the task

    # -- for asyncio -------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """The next hash."""
        self._number += 1
        return self._number

    def foreign(self, what: str) -> ForeignAwaitError:
        """Note that the body did something that is not durable; returns the error to raise there."""
        error = ForeignAwaitError(
            f"{what} in the body of a saga function is not durable and cannot be replayed: make it a step, "
            "`await step(fn, …)`; for time use `event_workflow_engine.sleep` or `wait_for_signal(timeout=…)`"
        )
        self._note(error)
        return error

    def _note(self, error: NonDeterminismError) -> None:
        if self.fatal is None:
            self.fatal = error

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._children.pop(task, None)  # type: ignore[call-overload]

    def create_task(
        self,
        coro: Any,
        *,
        name: object = None,  # noqa: ARG002 - the path is the name
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[Any]:
        """A child of the task that runs now; its path counts the parent's children in the order of making."""
        known = self._in_order(coro)
        return self._child(coro, context) if known is None else known

    def _in_order(self, coro: Any) -> asyncio.Task[Any] | None:
        """The task of a coroutine that `asyncio.as_completed` was given.

        It puts what it is given into a set, and coroutines hash by their address: made one by one, its tasks would have
        another order in every run. So the first makes all of them, in the order of the list.
        """
        if self._early is None:
            self._early = {}
        known = self._early.pop(id(coro), None)
        if known is not None:
            return known[1]
        frame = sys._getframe(2)  # noqa: SLF001 - there is no other way to see whose task it is
        for _ in range(_DEPTH):
            code = frame.f_code
            if code.co_filename == _TASKS_FILE and code.co_name in _AS_COMPLETED:
                given = frame.f_locals.get("fs", frame.f_locals.get("aws"))
                if not isinstance(given, (list, tuple)):
                    raise self.foreign("asyncio.as_completed() over anything but a list or tuple")
                for one in given:
                    if asyncio.iscoroutine(one) and id(one) not in self._early:
                        self._early[id(one)] = one, self._child(one, None)
                return self._early.pop(id(coro))[1]
            if frame.f_back is None:
                break
            frame = frame.f_back
        return None

    def _child(self, coro: Any, context: Context | None) -> asyncio.Task[Any]:
        parent = self.present
        if parent is None:
            assert self._root is not None, "only a body, which runs in the root task, makes others"
            parent = self._root.watched
        parent.children += 1
        path = f"{parent.path}.{parent.children}" if parent.path else str(parent.children)
        task = _BodyTask(coro, self, path, context)
        self._children[task] = None
        task.add_done_callback(self._forget)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        future = _BodyFuture(loop=self)
        future.number = self._number = self._number + 1
        return future

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> _Call:
        """Run it in this pump or the next, behind what is ready already."""
        call = _Call(callback, args, copy_context() if context is None else context)
        self._ready.append(call)
        return call

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody in the body asked for."""
        _log.debug("in a saga function's body: %s", context.get("message"), exc_info=context.get("exception"))

    def time(self) -> float:
        """Stands still: a body has no clock but durable timers."""
        return 0.0

    get_debug = bool
    """False, always: it would time callbacks. Each future asks, so that it is no function of ours."""

    def is_running(self) -> bool:
        """Always, as far as its tasks can tell."""
        return True

    def is_closed(self) -> bool:
        """Never, as far as its tasks can tell."""
        return False


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: SagaLoop, *_: Any, **__: Any) -> NoReturn:
        what = "waiting for time through asyncio" if name in _TIME else f"loop.{name}()"
        raise self.foreign(what)

    refused.__name__ = name
    return refused


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in vars(SagaLoop):
        setattr(SagaLoop, _name, _refuse(_name))
SagaLoop.__abstractmethods__ = frozenset()
