"""Every error that this library raises, in one tree.

WorkflowError
├ DefinitionError             a definition, name, zone, bound or option is wrong; nothing was stored
├ NotRegisteredError          the saga, event type or function is not registered here
├ OutsideSagaError            asked for the saga's context where there is none
├ IllegalTransitionError      a state machine has no such edge
├ VersionConflictError        a stream was not at the expected version
├ EventIdConflictError        an event id is stored already, with other content
├ SagaConflictError           a saga id is in use by another saga or input
├ DuplicateSagaError          a queue has a saga with the same key
├ SagaNotFoundError           no saga has that id
├ SagaEndedError              the saga has ended, so nobody hears what is sent to it
├ SagaFailedError             a saga did not end as done
│ ├ SagaCancelledError
│ └ SagaTimeoutError
├ StepFailedError             raised in a saga function's body by a step that failed
├ StepRejectedError           raised by an action: it did not happen
├ OutcomeUnknownError         raised by an action: it may have happened
├ SignalTimeoutError          (also a TimeoutError) no signal came in time
├ CompensationFailedError     one or more compensations failed
├ NonDeterminismError         code and journal of a running saga do not match
│ └ ForeignAwaitError         a saga function awaited something that is not durable
├ EncodeError, DecodeError    a payload cannot be written or read
├ EngineStateError            used before it was entered, or after it was left
└ StorageError                the store cannot do its work
  ├ StorageUnavailableError   it may work later: locked, full, out of reach
  │ └ StorageLostError        its server was lost: restarted, failed over, cut off
  ├ StorageCorruptError       not a database of ours, or damaged
  ├ SchemaVersionError        the schema is newer, older or altered
  ├ RowConflictError          a compare-and-set row was not as expected
  ├ StoreInUseError           workers run at a store that is to be copied
  ├ StoreNotEmptyError        a copy needs a store that holds nothing
  ├ OwnershipLostError        another worker owns what this one wanted to write
  └ LogRewoundError           the log is shorter than what was read before
SagaEvicted(BaseException)    ends a body in memory; nothing happened to its saga
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from event_workflow_engine.outcomes import Outcome, RollbackReport
    from event_workflow_engine.state_machine import WorkflowState

__all__ = [
    "CompensationFailedError",
    "DecodeError",
    "DefinitionError",
    "DuplicateSagaError",
    "EncodeError",
    "EngineStateError",
    "EventIdConflictError",
    "ForeignAwaitError",
    "IllegalTransitionError",
    "LogRewoundError",
    "NonDeterminismError",
    "NotRegisteredError",
    "OutcomeUnknownError",
    "OutsideSagaError",
    "OwnershipLostError",
    "RowConflictError",
    "SagaCancelledError",
    "SagaConflictError",
    "SagaEndedError",
    "SagaEvicted",
    "SagaFailedError",
    "SagaNotFoundError",
    "SagaTimeoutError",
    "SchemaVersionError",
    "SignalTimeoutError",
    "StepFailedError",
    "StepRejectedError",
    "StorageCorruptError",
    "StorageError",
    "StorageLostError",
    "StorageUnavailableError",
    "StoreInUseError",
    "StoreNotEmptyError",
    "VersionConflictError",
    "WorkflowError",
]


class WorkflowError(Exception):
    """Base of every error of this library, but for `SagaEvicted`."""


class DefinitionError(WorkflowError):
    """A definition is wrong: a saga's graph, a name, a cron line, a zone. Nothing was stored."""


class NotRegisteredError(WorkflowError):
    """Something is used by name or value that was not registered with this engine."""


class OutsideSagaError(WorkflowError):
    """The saga's context was asked for outside of a saga."""


class IllegalTransitionError(WorkflowError):
    """A transition that `valid_transitions` does not hold, or whose guard refused. The state is unchanged."""


class VersionConflictError(WorkflowError):
    """A stream was not at the version that the append expected. Nothing was stored.

    Attributes:
        stream: The stream's name.
        expected: What the caller expected: a version, ``"no_stream"`` or ``"stream_exists"``.
        actual: The version the stream has (0: no events).
    """

    def __init__(self, stream: str, expected: int | str, actual: int) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, but {expected!r} was expected: read it again and decide anew"
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.stream, self.expected, self.actual))


class EventIdConflictError(WorkflowError):
    """An event id is in the store already, with another stream, type or payload."""


class SagaConflictError(WorkflowError):
    """A saga id is in use by another saga, or by the same one with another input."""


class DuplicateSagaError(WorkflowError):
    """A queue has a saga with the same ``dedup_key``, which has not ended. Nothing was stored.

    Attributes:
        queue: The queue's name.
        key: The key.
        saga_id: The saga that has it.
    """

    def __init__(self, queue: str, key: str, saga_id: str) -> None:
        super().__init__(
            f"queue {queue!r} has a saga {saga_id!r} with dedup_key {key!r} that has not ended: nothing was started; "
            "wait for its end, or start with on_duplicate='join' to be given that one if it is of the same definition"
        )
        self.queue = queue
        self.key = key
        self.saga_id = saga_id

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.queue, self.key, self.saga_id))


class SagaNotFoundError(WorkflowError):
    """No saga has that id in this store."""


class SagaEndedError(WorkflowError):
    """The saga has ended, and nobody hears what is sent to it."""


class SagaFailedError(WorkflowError):
    """A saga did not end as done. What the failing step raised is chained as the cause when it is known.

    Attributes:
        saga_id: Which saga.
        status: How it ended (``COMPENSATED``, ``FAILED``, ``CANCELLED``), or ``NEEDS_INTERVENTION`` where it stands.
        failed_step: The name of the step that failed, ``None`` where it was none.
        report: What was compensated, skipped and failed.
    """

    def __init__(
        self,
        message: str,
        *,
        saga_id: str,
        status: WorkflowState,
        failed_step: str | None,
        report: RollbackReport,
    ) -> None:
        super().__init__(message)
        self.saga_id = saga_id
        self.status = status
        self.failed_step = failed_step
        self.report = report


class SagaCancelledError(SagaFailedError):
    """The saga was cancelled and undone."""


class SagaTimeoutError(SagaFailedError):
    """The saga passed its own deadline and was undone."""


class StepFailedError(WorkflowError):
    """Raised in the body of a saga function by a step that did not succeed, live and in replay alike.

    Attributes:
        step: The step's identity.
        outcome: ``FAILED`` (it did not happen) or ``UNKNOWN`` (it may have).
        error_type: The qualified name of what the action raised.
        message: The text of what the action raised.
    """

    def __init__(self, step: str, outcome: Outcome, error_type: str, message: str) -> None:
        super().__init__(f"step {step!r} is {outcome.name}: {error_type}: {message}")
        self.step = step
        self.outcome = outcome
        self.error_type = error_type
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.step, self.outcome, self.error_type, self.message))


class StepRejectedError(WorkflowError):
    """Raise it in an action to say: this was refused, it did not happen, and no repetition will help.

    It speaks for all attempts with the same idempotency key, also for one whose outcome nobody knows.
    """


class OutcomeUnknownError(WorkflowError):
    """Raise it in an action to say: this may or may not have happened."""


class SignalTimeoutError(WorkflowError, TimeoutError):
    """No signal of that name came in time."""


class CompensationFailedError(WorkflowError):
    """One or more compensations failed; the others ran.

    Attributes:
        failed: The exceptions, by the name of the compensation.
        succeeded: The names of those that succeeded, in the order in which they ran.
    """

    def __init__(self, failed: Mapping[str, BaseException], succeeded: Sequence[str]) -> None:
        names = ", ".join(f"{name} ({type(error).__name__}: {error})" for name, error in failed.items())
        super().__init__(f"{len(failed)} of {len(failed) + len(succeeded)} compensations failed: {names}")
        self.failed = dict(failed)
        self.succeeded = tuple(succeeded)


class NonDeterminismError(WorkflowError):
    """The code of a saga does not match the journal of one that is running."""


class ForeignAwaitError(NonDeterminismError):
    """A saga function awaited something that is not durable, so it cannot be replayed."""


class EncodeError(WorkflowError):
    """A value cannot be written as JSON, or is too large for a payload; the message names its type and the field."""


class DecodeError(WorkflowError):
    """JSON, stored or on its way there, does not fit the type that the code wants; the message says whose it is."""


class EngineStateError(WorkflowError):
    """An engine, store or manager was used before it was entered or after it was left."""


class StorageError(WorkflowError):
    """The store could not do its work. What it had acknowledged before is safe."""


class StorageUnavailableError(StorageError):
    """The store cannot work now: disk full, read-only, locked, or out of reach. Trying again may help."""


class StorageLostError(StorageUnavailableError):
    """This process lost the store's server as a whole: it was restarted, failed over, or could not be reached.

    What was under way is not to blame: for a step it counts as no interruption.
    """


class StorageCorruptError(StorageError):
    """The file is no database, or a damaged one."""


class SchemaVersionError(StorageError):
    """The schema is newer than this version of the library, or was altered by hand."""


class RowConflictError(StorageError):
    """A compare-and-set row was not as expected. Nothing of its unit was stored.

    Attributes:
        table: The table's name.
        key: The row's key.
    """

    def __init__(self, table: str, key: tuple[Any, ...], expected: str) -> None:
        super().__init__(f"row {key!r} of {table!r} is not as expected ({expected}): read it again")
        self.table = table
        self.key = key
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.table, self.key, self.expected))


class StoreInUseError(StorageError):
    """Workers run at a store that is to be copied. Nothing was copied.

    Attributes:
        workers: Their ids.
    """

    def __init__(self, message: str, workers: Sequence[str]) -> None:
        super().__init__(message)
        self.workers = tuple(workers)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.workers))


class StoreNotEmptyError(StorageError):
    """The target of a copy holds something already. It was left as it is."""


class OwnershipLostError(StorageError):
    """This worker was declared dead, or another owns the saga: it must not write for it."""


class LogRewoundError(StorageError):
    """What was read from the log before is not in it any more: a restored backup, or a failover that lost its end.

    Whoever had read it stops, for what it built or told others is of events that never were.

    Attributes:
        position: Up to where the reader had read.
        end: The log's last position, as the reader found it.
    """

    def __init__(self, reader: str, url: str, position: int, end: int) -> None:
        ending = f"ends at position {end}" if end < position else f"holds another event there, and ends at {end}"
        super().__init__(
            f"{reader} had read the log of {url} up to position {position}, but the log now {ending}: it was restored "
            "from an older copy, or a failover lost its last commits. Check what was made of the lost events, then "
            "begin anew: a reader with a checkpoint goes on from that when its engine is entered again"
        )
        self.reader = reader
        self.url = url
        self.position = position
        self.end = end

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.reader, self.url, self.position, self.end))


class SagaEvicted(BaseException):
    """Ends the body of a saga function that leaves memory. Its saga goes on later, maybe elsewhere.

    A `BaseException`, so that ``except Exception`` in a body does not take it for a failure. Engine calls made
    while it unwinds raise it again and record nothing.
    """
