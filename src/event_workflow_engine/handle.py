"""`SagaHandle`: one saga, from outside: wait for it, look at it, speak to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from event_workflow_engine import history as h
from event_workflow_engine._saga.specs import check_name
from event_workflow_engine.clock import Duration, seconds
from event_workflow_engine.errors import DecodeError, EncodeError, SagaEndedError, SagaNotFoundError
from event_workflow_engine.inbox import send
from event_workflow_engine.journal import saga_stream
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.waiting import living, waits_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.codecs import Codec
    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.events import RecordedEvent
    from event_workflow_engine.saga import Saga, Signal
    from event_workflow_engine.storage.port import Storage
    from event_workflow_engine.waits import Wait

__all__ = ["HandleHost", "SagaHandle", "signal_sent"]

Out = TypeVar("Out")
T = TypeVar("T")


class HandleHost(Protocol):
    """What a handle needs of the engine."""

    store: EventStore

    @property
    def storage(self) -> Storage:
        """Where rows and inboxes are."""
        ...

    @property
    def codec(self) -> Codec:
        """Encodes signals."""
        ...

    def now(self) -> int:
        """Microseconds since 1970."""
        ...

    async def wait_for_end(self, saga_id: str, saga: Saga[Any, Any] | None) -> Any:
        """The saga's result, once it has one."""
        ...


class SagaHandle(Generic[Out]):
    """A saga by its id. Made by `WorkflowEngine.start` and `WorkflowEngine.handle`; making one does no I/O.

    Attributes:
        id: The saga's id.
    """

    __slots__ = ("_host", "_saga", "id")

    def __init__(self, host: HandleHost, saga_id: str, saga: Saga[Any, Out] | None = None) -> None:
        self._host = host
        self._saga = saga
        self.id = saga_id

    def __repr__(self) -> str:
        """With the id."""
        return f"SagaHandle({self.id!r})"

    async def result(self, *, timeout: Duration | None = None) -> Out:  # noqa: ASYNC109 - part of the contract
        """Wait until the saga has ended, wherever it runs, and return its result. May be asked again.

        Cancelling the wait, or its timeout, changes nothing for the saga.

        Args:
            timeout: Seconds or timedelta; ``None``: as long as it takes.

        Raises:
            SagaFailedError: It ended as undone, failed or cancelled; or it stands at ``NEEDS_INTERVENTION``.
            SagaNotFoundError: There is no such saga.
            TimeoutError: It has not ended in time; it goes on.
        """
        waiting = self._host.wait_for_end(self.id, self._saga)
        if timeout is None:
            return await waiting  # type: ignore[no-any-return]
        limit = asyncio.timeout(seconds(timeout))
        try:
            async with limit:
                return await waiting  # type: ignore[no-any-return]
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"saga {self.id!r} has not ended within {seconds(timeout):g} s; it goes on") from None

    async def status(self) -> WorkflowState:
        """The saga's state. One that sleeps or waits is ``RUNNING``.

        Raises:
            SagaNotFoundError: There is no such saga.
        """
        row = await self._host.storage.get("sagas", (self.id,))
        if row is None:
            raise SagaNotFoundError(f"there is no saga {self.id!r} in {self._host.storage.url}")
        return WorkflowState(row["state"])

    @overload
    async def signal(self, signal: Signal[T], payload: T, *, id: str | None = None) -> None: ...
    @overload
    async def signal(self, signal: Signal[None], *, id: str | None = None) -> None: ...
    @overload
    async def signal(self, signal: str, payload: Any = None, *, id: str | None = None) -> None: ...
    async def signal(self, signal: Signal[Any] | str, payload: Any = None, *, id: str | None = None) -> None:  # noqa: A002
        """Send a signal; durable when it returns. It waits for a saga that does not wait for it yet.

        Args:
            signal: Which; a `Signal` types the payload.
            payload: What goes with it, as JSON.
            id: Sending again with the same id changes nothing.

        Raises:
            DefinitionError: The name is none that a saga could wait for.
            SagaNotFoundError: There is no such saga.
            SagaEndedError: It has ended.
            EncodeError: The payload is no JSON, or not of the signal's type.
        """
        entry = signal_sent(self._host.codec, signal, payload, self.id)
        await send(self._host.storage, self.id, entry, self._host.now(), id)

    async def cancel(self, reason: str = "") -> None:
        """Ask the saga to end: what it did is undone. Durable when it returns; `result` tells how it ended.

        A saga that has ended, or is being undone, is left as it is. One that stands at ``NEEDS_INTERVENTION`` before it
        was being undone is undone without its body; what was under way there counts as unknown.

        Raises:
            SagaNotFoundError: There is no such saga.
        """
        await self._send(h.CancelSent(reason))

    async def pause(self) -> None:
        """Let the saga start nothing new until `resume`; what runs may end.

        Raises:
            SagaNotFoundError: There is no such saga.
        """
        await self._send(h.PauseSent())

    async def resume(self) -> None:
        """Let a paused saga go on, or have one that stands at ``NEEDS_INTERVENTION`` tried again.

        Of a saga that is being undone, the compensations that failed get one further attempt each; else its code is
        replayed against its journal.

        Raises:
            SagaNotFoundError: There is no such saga.
        """
        await self._send(h.ResumeSent())

    async def _send(self, entry: h.InboxEntry) -> None:
        with suppress(SagaEndedError):
            await send(self._host.storage, self.id, entry, self._host.now())

    async def waits_for(self) -> Sequence[Wait]:
        """What the saga waits for, or does, as of now: signals, times, attempts, a queue, a worker; steps that run.

        Where a step runs a child saga, that is told by its id, with its state. Of a saga that was parked by an earlier
        version of the library only what its state and its queue tell. `said` of `event_workflow_engine.waits` puts each
        in words.

        Raises:
            SagaNotFoundError: There is no such saga.
        """
        host = self._host
        row = await host.storage.get("sagas", (self.id,))
        if row is None:
            raise SagaNotFoundError(f"there is no saga {self.id!r} in {host.storage.url}")
        facts = [event.data async for event in host.store.read(saga_stream(self.id))] if row["owner"] else []
        return await waits_of(host.storage, row, host.now(), await living(host.storage), facts=facts)

    async def history(self) -> Sequence[RecordedEvent[Any]]:
        """All that happened to the saga, as typed events (see `event_workflow_engine.history`).

        Raises:
            SagaNotFoundError: There is no such saga.
        """
        found = [event async for event in self._host.store.read(saga_stream(self.id))]
        if not found:
            raise SagaNotFoundError(f"there is no saga {self.id!r} in {self._host.storage.url}")
        return found


def signal_sent(codec: Codec, signal: Signal[Any] | str, payload: Any, saga_id: str) -> h.SignalSent:
    """The inbox entry of a signal, whose payload fits its type.

    Raises:
        DefinitionError: The name is none that a saga could wait for.
        EncodeError: The payload is no JSON, or not of the signal's type.
    """
    name = signal if isinstance(signal, str) else signal.name
    check_name(name, "signal name")
    what = f"signal {name!r} to saga {saga_id!r}"
    data = h.Raw(codec.encode(payload, what))
    if not isinstance(signal, str):
        try:
            codec.decode(data, signal.type, what)
        except DecodeError as error:
            raise EncodeError(f"{error}: nothing was sent") from None
    return h.SignalSent(name, data)
