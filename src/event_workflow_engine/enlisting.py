"""`Enlisted`: the engine, as part of a transaction of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from event_workflow_engine.errors import SagaEndedError
from event_workflow_engine.handle import SagaHandle, signal_sent
from event_workflow_engine.ids import uuid7
from event_workflow_engine.inbox import entry_unit
from event_workflow_engine.runner.starting import new_saga, same_or_conflict, taken_key
from event_workflow_engine.staging import stage
from event_workflow_engine.storage.port import ANY_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.handle import HandleHost
    from event_workflow_engine.queues import Queueing, Queues
    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.saga import Saga, Signal

__all__ = ["Enlisted"]

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")


class Enlisted:
    """Starts, appends and signals that happen if, and only if, a transaction of the user's commits.

    Made by `WorkflowEngine.enlist`. They take effect in the order in which they were asked for, a moment after the
    commit, over any process of the store; until then nobody sees them. Nothing of the store is locked meanwhile.

    What is checked at once is checked against what is committed now. Where that changes until the commit, as when
    another starts a saga with the same id and another input, nobody can be told any more: what cannot be written is
    logged as an error, and stays in the table ``staged``.
    """

    def __init__(self, host: HandleHost, connection: Any, definitions: Definitions, queues: Queues) -> None:
        self._host = host
        self._connection = connection
        self._definitions = definitions
        self._queues = queues

    @overload
    async def start(
        self, saga: Saga[In, Out], input: In, *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> SagaHandle[Out]: ...
    @overload
    async def start(
        self, saga: Saga[None, Out], *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> SagaHandle[Out]: ...
    @overload
    async def start(
        self, saga: str, input: Any = None, *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> SagaHandle[Any]: ...
    async def start(
        self,
        saga: Saga[Any, Any] | str,
        input: Any = None,  # noqa: A002
        *,
        id: str | None = None,  # noqa: A002
        **queueing: Unpack[Queueing],
    ) -> SagaHandle[Any]:
        """Start a saga with the commit: as `WorkflowEngine.start`.

        Returns:
            A handle. It finds the saga once that was started.

        Raises:
            DefinitionError: As in `WorkflowEngine.start`; or the store or the connection cannot do it.
            NotRegisteredError: It is not registered.
            SagaConflictError: The id belongs to another saga or input.
            DuplicateSagaError: Its queue has another saga with its ``dedup_key``.
            EncodeError: The input is no JSON, or not of the saga's type.
            StorageError: The connection cannot do it; its transaction has failed.
        """
        host, resolved = self._host, self._definitions.resolve(saga)
        place = self._queues.placement(queueing)
        at = host.now() if place is None else await self._queues.instant(place.queue)
        new = new_saga(host.codec, resolved, input, uuid7() if id is None else id, at, place)
        if await host.storage.get("saga_ids", (new.id,)) is not None:
            await same_or_conflict(host.storage, new, None)
            return SagaHandle(host, new.id, resolved)
        other = await taken_key(host.storage, new)
        if other is not None:
            return SagaHandle(host, other, resolved)
        await stage(host.storage, self._connection, new.waiting_unit(), joins=place is not None and place.joins)
        return SagaHandle(host, new.id, resolved)

    async def append(self, stream: str, events: Any, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Append events to a stream with the commit, whatever version it has then.

        Args:
            stream: As in `EventStore.append`, with all that follows.
            events: An event or a sequence of them.
            metadata: For all these events.

        Raises:
            DefinitionError: As in `EventStore.append`; or the store or the connection cannot do it.
            NotRegisteredError: An event's type is not registered.
            EncodeError: A payload cannot be written as JSON, or not be read back as its type.
            StorageError: The connection cannot do it; its transaction has failed.
        """
        records, _ = self._host.store.prepare(events, metadata)
        await stage(self._host.storage, self._connection, self._host.store.unit(stream, records, ANY_VERSION))

    @overload
    async def signal(self, saga_id: str, signal: Signal[T], payload: T, *, id: str | None = None) -> None: ...
    @overload
    async def signal(self, saga_id: str, signal: Signal[None], *, id: str | None = None) -> None: ...
    @overload
    async def signal(self, saga_id: str, signal: str, payload: Any = None, *, id: str | None = None) -> None: ...
    async def signal(
        self,
        saga_id: str,
        signal: Signal[Any] | str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
    ) -> None:
        """Send a signal with the commit: as `SagaHandle.signal`. The saga may be one that starts with it.

        Raises:
            SagaEndedError: It has ended.
            EncodeError: The payload is no JSON, or not of the signal's type.
            DefinitionError: The store or the connection cannot do it.
            StorageError: The connection cannot do it; its transaction has failed.
        """
        host = self._host
        entry = signal_sent(host.codec, signal, payload, saga_id)
        row = await host.storage.get("sagas", (saga_id,))
        if row is not None and row["ended_at"] is not None:
            raise SagaEndedError(f"saga {saga_id!r} has ended as {row['state']}: nothing was sent")
        await stage(host.storage, self._connection, entry_unit(saga_id, entry, host.now(), id))
