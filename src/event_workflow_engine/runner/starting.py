"""What is written when a saga is accepted: its first fact, its rows, its place in a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from event_workflow_engine import history as h
from event_workflow_engine.callables import called
from event_workflow_engine.codecs import digest
from event_workflow_engine.context import present_saga
from event_workflow_engine.errors import (
    DecodeError,
    DefinitionError,
    DuplicateSagaError,
    EncodeError,
    SagaConflictError,
    VersionConflictError,
)
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import saga_stream
from event_workflow_engine.queues import owner_of
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.codecs import Codec
    from event_workflow_engine.queues import Placement
    from event_workflow_engine.saga import Saga
    from event_workflow_engine.storage.port import Storage

__all__ = ["NewSaga", "is_id", "new_saga", "same_or_conflict", "taken_key"]

_MICROS: Final = 1_000_000
_MAX_ID: Final = 200
_ID_LIFETIME: Final = 400 * 24 * 3600 * _MICROS


class NewSaga(NamedTuple):
    """A saga that was checked and is about to be accepted."""

    saga: Saga[Any, Any]
    id: str
    value: Any
    """Its input, as its definition types it."""
    started: h.SagaStarted
    input_hash: str
    at: int
    place: Placement | None

    def owned_rows(self, worker: str) -> tuple[Row, ...]:
        """Its rows where a worker runs it at once."""
        return (self._index(WorkflowState.RUNNING, worker, 1, None), self._id_row())

    def waiting_unit(self, *others: Row) -> Unit:
        """What accepts it without running it: for a worker that has room, or in its queue."""
        unit_id = uuid7()
        record = NewRecord(unit_id, "saga-started", h.encode_facts([self.started]))
        rows: tuple[Row, ...]
        if self.place is None:
            rows = (self._index(WorkflowState.PENDING, "", 0, self.at), self._id_row())
        else:
            index = self._index(WorkflowState.PENDING, owner_of(self.place.queue), 0, None)
            rows = (index, self._id_row(), *self.place.rows(self.id, self.at))
        return Unit(unit_id, self.at, (Append(saga_stream(self.id), (record,), 0),), (*rows, *others))

    def _index(self, state: WorkflowState, owner: str, fence: int, wake_at: int | None) -> Row:
        values = {
            "saga": self.saga.name,
            "saga_version": self.saga.version,
            "state": state.value,
            "owner": owner,
            "fence": fence,
            "wake_at": wake_at,
            "cursor": 0,
            "started_at": self.at,
            "ended_at": None,
        }
        return Row("sagas", "insert", (self.id,), values)

    def _id_row(self) -> Row:
        values = {"saga": self.saga.name, "input_hash": self.input_hash, "expires_at": self.at + _ID_LIFETIME}
        return Row("saga_ids", "insert", (self.id,), values)


def new_saga(codec: Codec, saga: Saga[Any, Any], value: Any, saga_id: str, at: int, place: Placement | None) -> NewSaga:
    """Check what is to be started.

    Raises:
        DefinitionError: The id is no id, or the saga takes no input.
        EncodeError: The input is no JSON, or not of the saga's type.
    """
    _check_id(saga_id)
    what = f"input of saga {saga.name!r} {saga_id!r}"
    data = codec.encode(value, what)
    if saga.fn is not None and not saga.takes_input and value is not None:
        raise DefinitionError(f"saga {saga.name!r} takes no input")
    try:
        typed = codec.decode(data, saga.input_type or Any, what)
    except DecodeError as error:
        given = "none was given" if value is None else str(error)
        raise EncodeError(
            f"saga {saga.name!r} {saga_id!r} needs an input of type {called(saga.input_type)}: {given}; "
            "nothing was stored"
        ) from error
    around = present_saga()
    started = h.SagaStarted(
        saga.name,
        saga.version,
        h.Raw(data),
        # Of one that waits for its turn the time begins when that has come.
        None if saga.timeout is None or place is not None else at + int(saga.timeout * _MICROS),
        correlation_id=None if around is None else around.correlation_id,
        causation_id=None if around is None else around.causation_id,
        queue=None if place is None else h.InQueue(place.queue, place.dedup_key),
    )
    return NewSaga(saga, saga_id, typed, started, digest(value, what), at, place)


async def same_or_conflict(storage: Storage, new: NewSaga, refused: Exception | None) -> bool:
    """Whether the saga was accepted before, where its unit was or will be `refused`: the same id is the same saga.

    Raises:
        SagaConflictError: The id belongs to another saga, or to this one with another input.
    """
    row = await storage.get("saga_ids", (new.id,))
    if row is None:
        if not isinstance(refused, VersionConflictError) and await storage.get("sagas", (new.id,)) is None:
            return False
        raise SagaConflictError(f"saga id {new.id!r} was used before its id row was written; choose another")
    if row["saga"] != new.saga.name:
        raise SagaConflictError(f"saga id {new.id!r} belongs to a saga {row['saga']!r}, not {new.saga.name!r}")
    if row["input_hash"] != new.input_hash:
        raise SagaConflictError(
            f"saga {new.saga.name!r} {new.id!r} was started with another input: the same id is the same saga; "
            "choose another id for another run"
        )
    return True


async def taken_key(storage: Storage, new: NewSaga) -> str | None:
    """The saga that has the new one's key in its queue, where the new one is to be joined to it; ``None``: none has.

    Raises:
        DuplicateSagaError: There is one, and the policy is to reject, or it is of another definition.
    """
    place = new.place
    if place is None or place.dedup_key is None:
        return None
    row = await storage.get("queue_keys", (place.queue, place.dedup_key))
    if row is None:
        return None
    other = await storage.get("saga_ids", (row["saga"],))
    if not place.joins or (other is not None and other["saga"] != new.saga.name):
        raise DuplicateSagaError(place.queue, place.dedup_key, row["saga"])
    return str(row["saga"])


def is_id(saga_id: object) -> bool:
    """Whether it can be the id of a saga."""
    return isinstance(saga_id, str) and 0 < len(saga_id) <= _MAX_ID and saga_id.isprintable()


def _check_id(saga_id: object) -> None:
    if not is_id(saga_id):
        raise DefinitionError(f"saga id {str(saga_id)[:50]!r}: a string of 1 to {_MAX_ID} printable characters")
