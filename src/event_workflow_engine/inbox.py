"""How everybody but its owner speaks to a saga: an entry in its inbox, and its row's `wake_at`, in one unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import EncodeError, RowConflictError, SagaEndedError, SagaNotFoundError
from event_workflow_engine.history import InboxEntry, encode_facts
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import inbox_stream
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage

__all__ = ["entry_unit", "send"]

_OPEN: Final = {"ended_at": None}


async def send(storage: Storage, saga_id: str, entry: InboxEntry, now: int, entry_id: str | None = None) -> None:
    """Put an entry into a saga's inbox; its owner is woken. Durable when it returns.

    Args:
        storage: The store.
        saga_id: Which saga.
        entry: What is said.
        now: Microseconds since 1970.
        entry_id: Unique; sending the same entry with it again changes nothing.

    Raises:
        SagaNotFoundError: No such saga. Nothing was sent.
        SagaEndedError: It has ended. Nothing was sent.
        EventIdConflictError: `entry_id` was used for something else.
        EncodeError: A text in the entry is none that can be stored. Nothing was sent.
    """
    try:
        await storage.write(entry_unit(saga_id, entry, now, entry_id))
    except RowConflictError:
        row = await storage.get("sagas", (saga_id,))
        if row is None:
            raise SagaNotFoundError(f"there is no saga {saga_id!r} in {storage.url}: nothing was sent") from None
        raise SagaEndedError(
            f"saga {saga_id!r} has ended as {row['state']}: nothing was sent, there is nobody to hear it"
        ) from None


def entry_unit(saga_id: str, entry: InboxEntry, now: int, entry_id: str | None = None) -> Unit:
    """What puts an entry into an open saga's inbox. See `send`.

    Raises:
        EncodeError: A text in the entry is none that can be stored.
    """
    unit_id = uuid7() if entry_id is None else f"{inbox_stream(saga_id)}:{entry_id}"
    try:
        data = encode_facts([entry])
    except UnicodeEncodeError as error:
        raise EncodeError(
            f"what is sent to saga {saga_id!r} holds a lone surrogate, which UTF-8 cannot store: nothing was sent"
        ) from error
    record = NewRecord(unit_id, str(type(entry).__struct_config__.tag), data)
    return Unit(
        unit_id,
        now,
        (Append(inbox_stream(saga_id), (record,)),),
        (Row("sagas", "update", (saga_id,), {"wake_at": now}, _OPEN),),
    )
