"""Group commit, written once for every backend: units of all coroutines gather while a batch is on its way.

One batch is in flight at a time. What is submitted meanwhile waits in a queue and forms the next batch; each unit gets
a verdict of its own. A backend brings one function, `Execute`, that takes a batch and answers with its verdicts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.storage.port import CommitHook, Told, Written

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from event_workflow_engine.storage.port import Unit

__all__ = ["CommitHook", "Execute", "GroupCommitter", "Listeners", "Repeated", "Verdict"]

T = TypeVar("T")

BATCH_LIMIT: Final = 256
"""Most units in one batch: bounds a transaction's length, hence the latency of the unit behind it. Where more wait,
the next batch is on its way while those of the last one are told, so that store and loop work at the same time."""

BATCH_BYTES: Final = 33_554_432
"""Most bytes of payloads in one batch, of more than one unit: a backend may take a whole batch as one message, and
heartbeats stand in line behind it. PostgreSQL ends the connection at a message of 1 GiB."""

QUEUE_LIMIT: Final = 8192
"""Units queued before `GroupCommitter.write` makes its callers wait in line. `submit` is not bounded."""


class Repeated:
    """Verdict of a unit that was stored before this batch: its first `Written`. Commit hooks do not see it again."""

    __slots__ = ("written",)

    def __init__(self, written: Written) -> None:
        self.written = written


Verdict = Written | Repeated | Exception
"""What became of one unit. An exception says that nothing of it was stored."""


class Execute(Protocol):
    """A backend's way to run a batch."""

    def __call__(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None], /) -> None:
        """Start `units`; call `done` on the loop's thread, once, with a verdict for each in order.

        It may call `done` before it returns. Raising fails all units of the batch.
        """
        ...


_Entry = tuple["Unit | None", "asyncio.Future[Any] | Told"]
"""A unit and whom to tell; or None and the future of one who wants the store alone."""


class _Mark:
    """Marks the context of a transaction, which may be inside of another one: of this store, or of another store."""

    __slots__ = ("around",)

    def __init__(self, around: _Mark | None) -> None:
        self.around = around


_inside: ContextVar[_Mark | None] = ContextVar("ewe_inside_exclusive", default=None)


class Listeners:
    """Who wants to know of commits. Outlives the committer, so that a store may be left and entered again."""

    def __init__(self) -> None:
        self._hooks: tuple[CommitHook, ...] = ()
        self._bells: tuple[Callable[[], None], ...] = ()
        self._own_bells: tuple[Callable[[], None], ...] = ()  # those of them that ring for what hooks are told of, too

    @property
    def has_bells(self) -> bool:
        """Whether anyone wants to be woken."""
        return bool(self._bells)

    def add_commit_hook(self, hook: CommitHook) -> Callable[[], None]:
        """Call `hook` after each batch with what it committed; returns its remover, which may be called twice."""
        self._hooks += (hook,)

        def remove() -> None:
            self._hooks = _without(self._hooks, hook)

        return remove

    def add_bell(self, ring: Callable[[], None], *, own: bool = True) -> Callable[[], None]:
        """Call `ring` after each commit; returns its remover, which may be called twice.

        Args:
            ring: What to call.
            own: Also for what commit hooks are told of.
        """
        self._bells += (ring,)
        if own:
            self._own_bells += (ring,)

        def remove() -> None:
            self._bells = _without(self._bells, ring)
            if own:
                self._own_bells = _without(self._own_bells, ring)

        return remove

    def announce(self, committed: Sequence[tuple[Unit, Written]]) -> None:
        """Run the commit hooks over what was committed, then ring the bells."""
        for hook in self._hooks:
            try:
                hook(committed)
            except Exception as error:  # noqa: BLE001 - what listens must not break what is written
                _report(hook, error)
        if self._own_bells:
            self._ring(self._own_bells)

    def ring(self) -> None:
        """Ring the bells: something was committed that commit hooks are not told of, by this process or another."""
        self._ring(self._bells)

    @staticmethod
    def _ring(bells: Iterable[Callable[[], None]]) -> None:
        for bell in bells:
            try:
                bell()
            except Exception as error:  # noqa: BLE001 - as above
                _report(bell, error)


class GroupCommitter:
    """Gathers units into batches. Belongs to one event loop; none of its methods may be called from other threads.

    Order: units leave in the order in which they were submitted. In a batch's settling, first every future gets its
    verdict, then the commit hooks run, in commit order, then the bells, then those are told who posted a unit, and last
    run the futures' own callbacks and the tasks that wait for them. Whoever sees a verdict sees what the hooks did.

    Who posts a unit alone, time after time, does not wait for the end of the loop's turn: nobody else is there to share
    the batch. So it costs one saga at a time a turn of the loop less, where the backend does not answer at once.

    Cancelling a future withdraws its unit only while the unit is queued. Once sent it lands or not, whatever becomes
    of its future; `settled` waits for that.
    """

    def __init__(
        self,
        execute: Execute,
        listeners: Listeners,
        *,
        queue_limit: int = QUEUE_LIMIT,
        batch_limit: int = BATCH_LIMIT,
        answers_later: bool = False,
    ) -> None:
        """Begin, empty.

        Args:
            execute: The backend's way to run a batch.
            listeners: Told of commits.
            queue_limit: Units queued before `write` makes its callers wait in line.
            batch_limit: Most units in one batch.
            answers_later: `execute` never answers before it has returned.
        """
        self._execute = execute
        self._listeners = listeners
        self.loop = asyncio.get_running_loop()
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._queue: deque[_Entry] = deque()
        self._line: deque[_Entry] = deque()  # callers of `write` that found the queue full
        self._sent: list[_Entry] = []
        self._busy = False  # a batch is scheduled or in flight, or someone has the store alone
        self._beginning = False  # the backend is being given a batch
        self._answers_later = answers_later
        self._last = 0  # units in the batch that was sent last
        self._turns = 0  # entries in the queue that want the store alone
        self._marks: set[_Mark] = set()  # of the transactions that are open
        self._alone_id: str | None = None
        self._closed = False
        self._watchers: list[asyncio.Future[None]] = []

    # -- submitting ----------------------------------------------------------------------------------------------

    def submit(self, unit: Unit) -> asyncio.Future[Written]:
        """Queue `unit`; the future gets its verdict. Never waits and never raises."""
        future: asyncio.Future[Written] = self.loop.create_future()
        refusal = self._refusal() if self._closed or self._marks else None
        if refusal is not None:
            future.set_exception(refusal)
        else:
            self._enqueue((unit, future))
        return future

    def post(self, unit: Unit, told: Told) -> None:
        """Queue `unit`, which cannot be withdrawn; `told` is called with its verdict, and never before this returns.

        It costs less than a future, whose callback would need a turn of the loop.
        """
        refusal = self._refusal() if self._closed or self._marks else None
        if refusal is not None:
            self.loop.call_soon(told, refusal)
        elif self._answers_later and self._last == 1 and not self._busy:  # so nothing is queued
            self._busy = True
            self._hand_over([(unit, told)])
        else:
            self._enqueue((unit, told))

    def _enqueue(self, entry: _Entry) -> None:
        self._queue.append(entry)
        if not self._busy:
            self._schedule()

    async def write(self, unit: Unit) -> Written:
        """Queue `unit`, behind those that wait in line when the queue is full, and wait for its verdict."""
        if len(self._queue) < self._queue_limit and not self._line:
            return await self.submit(unit)
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        future: asyncio.Future[Written] = self.loop.create_future()
        self._line.append((unit, future))
        return await future

    def check(self) -> None:
        """See that a unit would be taken.

        Raises:
            EngineStateError: It would not: the store was closed, or a transaction of it is around this call.
        """
        refusal = self._refusal()
        if refusal is not None:
            raise refusal

    async def alone(self, work: Callable[[], Awaitable[T]], *, unit_id: str | None = None) -> T:
        """Run `work` in its turn, while no batch is in flight and none starts.

        Args:
            work: What to run. Units submitted from inside it, or from its tasks, are refused with an
                `EngineStateError`: they would wait for it while it waits for them.
            unit_id: The unit that `work` commits, so that `settled` waits for it.

        Raises:
            EngineStateError: The store was closed, or a transaction of it is around this call.
            WorkflowError: The one with which `refuse_waiting` was called.
        """
        self.check()
        turn: asyncio.Future[None] = self.loop.create_future()
        self._turns += 1
        self._enqueue((None, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # given to us, and we do not take it
                self._release()
            raise
        self._alone_id = unit_id
        try:
            with self.inside():
                return await work()
        finally:
            self._alone_id = None
            self._release()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """In this context, and in tasks that it starts, units are refused with an `EngineStateError`."""
        mark = _Mark(_inside.get())
        self._marks.add(mark)
        token = _inside.set(mark)
        try:
            yield
        finally:
            self._marks.discard(mark)
            # A call that was never awaited to its end is closed by whoever drops it, in a context of its own. The mark
            # that stays where the call was says nothing any more.
            with suppress(ValueError):
                _inside.reset(token)

    def _refusal(self) -> EngineStateError | None:
        if self._closed:
            return EngineStateError("the store was closed: enter it again before writing to it")
        mark = _inside.get() if self._marks else None
        while mark is not None:
            if mark in self._marks:
                return EngineStateError(
                    "a write was made inside of a transaction of the store, which it would not be part of, or wait for "
                    "itself: put it into the unit that commits with the work, or make it afterwards"
                )
            mark = mark.around
        return None

    def refuse_waiting(self, error: Exception) -> None:
        """Fail all that waits to be sent, and whoever waits for the store alone; what is sent goes on."""
        waiting = [*self._queue, *self._line]
        self._queue.clear()
        self._line.clear()
        self._turns = 0
        for _, waiter in waiting:
            if not isinstance(waiter, asyncio.Future):
                self.loop.call_soon(waiter, error)
            elif not waiter.done():
                waiter.set_exception(error)
        self._tell_watchers()

    # -- batches -------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        # At the end of this loop iteration, so that all that is ready to run now shares the batch.
        self._busy = True
        self.loop.call_soon(self._send)

    def _send(self) -> None:
        batch = self._take()
        if batch:
            self._hand_over(batch)
        elif not self._busy:
            self._tell_watchers()

    def _hand_over(self, batch: list[_Entry]) -> None:
        self._sent = batch
        self._last = len(batch)
        self._beginning = True
        try:
            self._execute([unit for unit, _ in batch if unit is not None], self._settle)
        except Exception as error:  # noqa: BLE001 - nobody who waits shall wait for ever
            self.loop.call_soon(self._settle, [error] * len(batch))
        finally:
            self._beginning = False

    def _take(self) -> list[_Entry]:
        """The next batch; empty when there is none (no longer busy), or when someone gets the store alone (busy)."""
        queue = self._queue
        if not self._turns and len(queue) <= self._batch_limit:
            batch = [entry for entry in queue if not _withdrawn(entry)]
            queue.clear()
        else:
            batch = []
            while queue and len(batch) < self._batch_limit:
                unit, turn = queue[0]
                withdrawn = _withdrawn(queue[0])
                if unit is None and batch and not withdrawn:
                    break
                entry = queue.popleft()
                if unit is None:
                    self._turns -= 1
                    if not withdrawn and isinstance(turn, asyncio.Future):
                        turn.set_result(None)
                        return []
                elif not withdrawn:
                    batch.append(entry)
        fits = _fitting(batch)
        if fits < len(batch):
            queue.extendleft(reversed(batch[fits:]))
            del batch[fits:]
        while self._line and len(queue) < self._queue_limit:
            queue.append(self._line.popleft())
        if not batch:
            if queue:
                return self._take()
            self._busy = False
        return batch

    def _settle(self, verdicts: Sequence[Verdict]) -> None:
        sent, self._sent = self._sent, []
        if len(sent) == 1 and not self._queue and not isinstance(sent[0][1], asyncio.Future):
            self._settle_alone(sent[0], verdicts[0])
            return
        committed: list[tuple[Unit, Written]] = []
        posted = False
        for (unit, waiter), verdict in zip(sent, verdicts, strict=True):
            if isinstance(verdict, Written) and unit is not None:
                committed.append((unit, verdict))
            if not isinstance(waiter, asyncio.Future):
                posted = True
            elif not waiter.done():
                answer = _answer(verdict)
                if isinstance(answer, Exception):
                    waiter.set_exception(answer)
                else:
                    waiter.set_result(answer)
        settled = zip(sent, verdicts, strict=True) if posted else None
        if self._beginning or len(self._queue) * 2 < self._batch_limit or self._turns:
            # Few wait, so those who are told now shall join the next batch; or the backend answers at once.
            try:
                if committed:
                    self._listeners.announce(committed)
                if settled is not None:
                    self._tell(settled)
            finally:
                self._release()
            return
        try:
            if committed:
                self._listeners.announce(committed)
        finally:
            self._tell_watchers()
            self._send()
            if settled is not None:  # behind the first turn of the loop that the backend may need to begin
                self.loop.call_soon(self._tell, settled)

    def _settle_alone(self, entry: _Entry, verdict: Verdict) -> None:
        """One that was posted, with nobody behind it: what `_settle` does, at half the price."""
        unit, told = entry
        try:
            if verdict.__class__ is Written:
                self._listeners.announce(((unit, verdict),))  # type: ignore[arg-type]
            _call(told, verdict)  # type: ignore[arg-type]
        finally:
            self._release()

    def _tell(self, settled: Iterator[tuple[_Entry, Verdict]]) -> None:
        for (_, told), verdict in settled:
            if isinstance(told, asyncio.Future):
                continue
            try:
                _call(told, verdict)
            except BaseException:
                # The loop is about to stop; if it runs again, the others still have to be told.
                for (_, other), its_verdict in settled:
                    if not isinstance(other, asyncio.Future):
                        self.loop.call_soon(other, _answer(its_verdict))
                raise

    def _release(self) -> None:
        """The store is free: on with what gathered."""
        if self._watchers:
            self._tell_watchers()
        if self._queue or self._line:
            self._schedule()
        else:
            self._busy = False

    def in_flight(self) -> list[str]:
        """The ids of the units that were sent and are not told of yet."""
        sent = [unit.id for unit, _ in self._sent if unit is not None]
        return sent if self._alone_id is None else [*sent, self._alone_id]

    # -- waiting -------------------------------------------------------------------------------------------------

    async def settled(self, unit_id: str) -> None:
        """Wait while a unit of that id is queued (and not withdrawn) or in flight."""
        while self._holds(unit_id):
            await self._next_settling()

    async def close(self) -> None:
        """Refuse further units, and wait until all that were accepted have their verdicts."""
        self._closed = True
        while self._busy or self._queue or self._line:
            await self._next_settling()

    def _holds(self, unit_id: str) -> bool:
        if self._alone_id == unit_id or any(unit is not None and unit.id == unit_id for unit, _ in self._sent):
            return True
        waiting = (*self._queue, *self._line)
        return any(entry[0] is not None and entry[0].id == unit_id and not _withdrawn(entry) for entry in waiting)

    async def _next_settling(self) -> None:
        watcher: asyncio.Future[None] = self.loop.create_future()
        self._watchers.append(watcher)
        await watcher

    def _tell_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)


def _answer(verdict: Verdict) -> Written | Exception:
    return verdict.written if isinstance(verdict, Repeated) else verdict


def _call(told: Told, verdict: Verdict) -> None:
    try:
        told(_answer(verdict))
    except Exception as error:  # noqa: BLE001 - as when a hook raises
        _report(told, error)


def _fitting(batch: Sequence[_Entry]) -> int:
    """How many of the first entries have no more payload together than a batch may have; one always fits."""
    size = place = 0
    for unit, _ in batch:
        if unit is not None:
            for append in unit.appends:
                for record in append.records:
                    size += len(record.data)
            if size > BATCH_BYTES and place:
                return place
        place += 1
    return place


def _withdrawn(entry: _Entry) -> bool:
    waiter = entry[1]
    return isinstance(waiter, asyncio.Future) and waiter.cancelled()


def _report(call: Callable[..., None], error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": f"{call!r} raised when told of a commit; the commit stands", "exception": error}
    )


def _without(listeners: tuple[T, ...], listener: T) -> tuple[T, ...]:
    """The same with one less of `listener`, if there is one."""
    if listener not in listeners:
        return listeners
    place = listeners.index(listener)
    return listeners[:place] + listeners[place + 1 :]
