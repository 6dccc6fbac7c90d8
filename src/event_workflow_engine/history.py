"""The facts of a saga's journal, each a typed event, and what others put into its inbox.

A saga's stream ``saga-<id>`` holds only these. The facts of one unit are packed into one stored record; readers see
single events. Times are microseconds since 1970. `Raw` fields hold JSON as encoded by the action's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.codecs import Raw
from event_workflow_engine.events import REGISTRY
from event_workflow_engine.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FACTS",
    "CancelRequested",
    "CancelSent",
    "CompensationFailed",
    "CompensationStarted",
    "CompensationSucceeded",
    "Fact",
    "InQueue",
    "InboxEntry",
    "InterventionMade",
    "InterventionNeeded",
    "PauseSent",
    "PlannedCompensation",
    "Raw",
    "ResumeSent",
    "RollbackPlanned",
    "SagaAdmitted",
    "SagaCancelled",
    "SagaCompensated",
    "SagaCompleted",
    "SagaFailed",
    "SagaHandedOver",
    "SagaPaused",
    "SagaResumed",
    "SagaStarted",
    "SignalReceived",
    "SignalSent",
    "StepFailed",
    "StepStarted",
    "StepSucceeded",
    "StepUnknown",
    "TimerFired",
    "TimerSet",
    "Undo",
    "decode_facts",
    "encode_facts",
]

_NOTHING: Final = Raw(b"null")


class Fact(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="t"):
    """Base of the journal's facts."""


class Undo(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How to undo a step of a saga function, found again without the body.

    Attributes:
        name: ``module:qualname`` of the compensation.
        retry: Its retry policy: attempts (0: without end), delay s, factor, max_delay s, jitter; empty: the default.
        compensate_failed: Also where the action FAILED.
    """

    name: str
    retry: tuple[float, ...] = ()
    compensate_failed: bool = False


class InQueue(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Where a saga was put to wait for its turn.

    Attributes:
        queue: The queue's name.
        key: What keeps a second one out of the queue until this one has ended.
    """

    queue: str
    key: str | None = None


class SagaStarted(Fact, frozen=True, gc=False, tag="saga-started"):
    """The saga was accepted."""

    saga: str
    version: int = 1
    input: Raw = _NOTHING
    deadline: int | None = None
    run: int = 1
    correlation_id: str | None = None
    causation_id: str | None = None
    queue: InQueue | None = None


class SagaAdmitted(Fact, frozen=True, gc=False, tag="saga-admitted"):
    """The queue let the saga begin. Its own timeout counts from here on."""

    queue: str
    deadline: int | None = None


class StepStarted(Fact, frozen=True, gc=False, tag="step-started"):
    """An attempt's start, on disk before its action.

    Attributes:
        interruptions: How often attempts of this step were cut off by a crash so far.
        child: The id of the child saga that it runs, where the code gave it one: else it is the saga's id, ``/`` and
            the step's name.
    """

    step: str
    attempt: int = 1
    interruptions: int = 0
    undo: Undo | None = None
    child: str | None = None


class StepSucceeded(Fact, frozen=True, gc=False, tag="step-succeeded"):
    """The action returned."""

    step: str
    result: Raw = _NOTHING


class StepFailed(Fact, frozen=True, gc=False, tag="step-failed"):
    """The action did not happen. With `retry_at` the next attempt is due then, else the step has failed."""

    step: str
    error_type: str
    message: str
    attempt: int = 1
    retry_at: int | None = None


class StepUnknown(Fact, frozen=True, gc=False, tag="step-unknown"):
    """The action may or may not have happened. With `retry_at` it is tried again with the same idempotency key."""

    step: str
    error_type: str
    message: str
    attempt: int = 1
    retry_at: int | None = None


class SignalReceived(Fact, frozen=True, gc=False, tag="signal-received"):
    """A signal, copied from the inbox. `cursor` is the version of the inbox entry."""

    name: str
    payload: Raw = _NOTHING
    cursor: int = 0


class TimerSet(Fact, frozen=True, gc=False, tag="timer-set"):
    """A durable timer."""

    timer: str
    due: int


class TimerFired(Fact, frozen=True, gc=False, tag="timer-fired"):
    """It was due."""

    timer: str


class CancelRequested(Fact, frozen=True, gc=False, tag="cancel-requested"):
    """Someone asked to cancel the saga."""

    reason: str = ""
    cursor: int = 0


class SagaFailed(Fact, frozen=True, gc=False, tag="saga-failed"):
    """The saga will not be done. What was done will be undone.

    Attributes:
        kind: ``"failed"``, ``"cancelled"`` or ``"timeout"``.
    """

    error_type: str
    message: str
    failed_step: str | None = None
    kind: str = "failed"


class PlannedCompensation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One entry of a rollback plan.

    Attributes:
        step: The step's identity.
        outcome: What is known of its action.
        after: Steps whose compensation must have ended before.
        undo: For a step of a saga function, what to call.
    """

    step: str
    outcome: Outcome
    after: tuple[str, ...] = ()
    undo: Undo | None = None


class RollbackPlanned(Fact, frozen=True, gc=False, tag="rollback-planned"):
    """What will be undone, in which order. `skipped` are steps that happened and have no compensation."""

    plan: tuple[PlannedCompensation, ...] = ()
    skipped: tuple[str, ...] = ()


class CompensationStarted(Fact, frozen=True, gc=False, tag="compensation-started"):
    """An attempt's start, on disk before it."""

    step: str
    attempt: int = 1


class CompensationSucceeded(Fact, frozen=True, gc=False, tag="compensation-succeeded"):
    """The step is undone."""

    step: str


class CompensationFailed(Fact, frozen=True, gc=False, tag="compensation-failed"):
    """It raised. With `retry_at` the next attempt is due then, else its policy is exhausted."""

    step: str
    error_type: str
    message: str
    attempt: int = 1
    retry_at: int | None = None


class SagaCompleted(Fact, frozen=True, gc=False, tag="saga-completed"):
    """Done. `unknown` are steps of unknown outcome that the body caught."""

    result: Raw = _NOTHING
    unknown: tuple[str, ...] = ()


class SagaCompensated(Fact, frozen=True, gc=False, tag="saga-compensated"):
    """Undone."""


class SagaCancelled(Fact, frozen=True, gc=False, tag="saga-cancelled"):
    """Cancelled, and there was nothing to undo."""


class SagaPaused(Fact, frozen=True, gc=False, tag="saga-paused"):
    """Nothing new starts until it is resumed."""

    reason: str = ""
    cursor: int = 0


class SagaResumed(Fact, frozen=True, gc=False, tag="saga-resumed"):
    """It goes on where it was paused."""

    cursor: int = 0


class SagaHandedOver(Fact, frozen=True, gc=False, tag="saga-handed-over"):
    """A worker gave the saga up in good order: what it cut off does not count as an interruption.

    Attributes:
        lost: It had to, for it had lost the store.
    """

    lost: bool = False


class InterventionNeeded(Fact, frozen=True, gc=False, tag="intervention-needed"):
    """The saga stands until somebody decides, or until matching code is registered.

    Attributes:
        kind: ``"nondeterminism"``, ``"compensation"``, ``"settle"``, ``"code"`` (a missing function), ``"decode"`` or
            ``"size"`` (what it wants to write is more than a store takes).
        state: The state that it came from.
    """

    kind: str
    error_type: str
    message: str
    step: str | None = None
    state: str = "RUNNING"


class InterventionMade(Fact, frozen=True, gc=False, tag="intervention-made"):
    """A decision about a saga that stood, by a person or because matching code came back."""

    verb: str
    who: str = ""
    why: str = ""
    state: str = "RUNNING"


class SignalSent(Fact, frozen=True, gc=False, tag="signal-sent"):
    """In the inbox: a signal."""

    name: str
    payload: Raw = _NOTHING


class CancelSent(Fact, frozen=True, gc=False, tag="cancel-sent"):
    """In the inbox: a wish to cancel."""

    reason: str = ""


class PauseSent(Fact, frozen=True, gc=False, tag="pause-sent"):
    """In the inbox: a wish to pause."""

    reason: str = ""


class ResumeSent(Fact, frozen=True, gc=False, tag="resume-sent"):
    """In the inbox: a wish to go on."""


JournalFact = (
    SagaStarted
    | StepStarted
    | StepSucceeded
    | StepFailed
    | StepUnknown
    | SignalReceived
    | TimerSet
    | TimerFired
    | CancelRequested
    | SagaFailed
    | RollbackPlanned
    | CompensationStarted
    | CompensationSucceeded
    | CompensationFailed
    | SagaCompleted
    | SagaCompensated
    | SagaCancelled
    | SagaPaused
    | SagaResumed
    | SagaAdmitted
    | SagaHandedOver
    | InterventionNeeded
    | InterventionMade
)
InboxEntry = SignalSent | CancelSent | PauseSent | ResumeSent

FACTS: Final[dict[str, type[Any]]] = {
    str(kind.__struct_config__.tag): kind for kind in (*JournalFact.__args__, *InboxEntry.__args__)
}
"""Every fact's class by its event type's name."""

for _name, _kind in FACTS.items():
    REGISTRY.register(_name, 1, _kind)

_decoder: Final = msgspec.json.Decoder(list[JournalFact | InboxEntry])


encode_facts: Final[Callable[[list[Any]], bytes]] = msgspec.json.Encoder().encode
"""Facts as one record's data: a JSON array."""


def decode_facts(data: bytes) -> list[Any]:
    """The facts of one record. Raises `msgspec.DecodeError` where it holds anything else."""
    return _decoder.decode(data)
