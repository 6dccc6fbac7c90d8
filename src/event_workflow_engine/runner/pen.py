"""Writes one saga's units: what it was, what was read of its inbox, and what its row says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine import history as h
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import inbox_stream, saga_stream
from event_workflow_engine.outcomes import qualified_name
from event_workflow_engine.queues import leaving
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit
from event_workflow_engine.storage.tables import GIVEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.journal import Journal
    from event_workflow_engine.runner.kit import Kit

__all__ = ["Pen"]

_type_names: Final[dict[tuple[type[Any], ...], str]] = {}
_KNOWN_ORDERS: Final = 10_000
_MICROS: Final = 1_000_000
_LONGEST_WAIT_S: Final = 60.0
_ENDS: Final = (h.StepSucceeded, h.StepFailed, h.StepUnknown, h.CompensationSucceeded, h.CompensationFailed)
LONG_HISTORY: Final = 10_000
"""Events of one saga after which a line in the log says so, and after as many more again."""

_log: Final = logging.getLogger("event_workflow_engine.runner")


def _type_of(facts: Sequence[Any]) -> str:
    """The type of a packed record: the names of its facts, each once, sorted."""
    kinds: tuple[type[Any], ...] = tuple(map(type, facts))
    name = _type_names.get(kinds)
    if name is None:
        name = "+".join(sorted({str(kind.__struct_config__.tag) for kind in kinds}))
        if len(_type_names) < _KNOWN_ORDERS:  # long batches of outcomes have no end of orders
            _type_names[kinds] = name
    return name


def _next_warning(stored: int) -> int:
    return (stored // LONG_HISTORY + 1) * LONG_HISTORY


class Pen:
    """Turns facts into units that only this worker, with this fence, can write.

    Attributes:
        gathered: Bytes of results that wait for the next unit.
        losses: See `Journal.losses`; of what is on disk.
        stored: The version of the saga's stream on disk.
        seen: The version of its inbox up to which it was read.
        undecided: Where in the inbox somebody decided about the saga while it was about to stand; 0: nowhere.
    """

    __slots__ = (
        "_check",
        "_inbox",
        "_kit",
        "_long",
        "_new_rows",
        "_owned",
        "_row_state",
        "_saga_id",
        "_sent_state",
        "_stream",
        "gathered",
        "losses",
        "seen",
        "stored",
        "undecided",
    )

    def __init__(self, kit: Kit, saga_id: str, fence: int) -> None:
        self._kit = kit
        self._saga_id = saga_id
        self._stream = saga_stream(saga_id)
        self._inbox = inbox_stream(saga_id)
        self._owned = {"owner": kit.worker.id, "fence": fence}
        self._check = (Row("sagas", "check", (saga_id,), {}, self._owned),)
        self._row_state = WorkflowState.RUNNING
        self._sent_state = self._row_state
        self._new_rows: tuple[Row, ...] = ()
        self.gathered = 0
        self.losses = 0
        self.seen = 0
        self.stored = 0
        self._long = LONG_HISTORY
        self.undecided = 0

    def new(self, rows: tuple[Row, ...]) -> None:
        """The saga is new: its first unit inserts these rows, the one of ``sagas`` first."""
        self._new_rows = rows

    @property
    def is_new(self) -> bool:
        """Whether its first unit is not on disk yet."""
        return bool(self._new_rows)

    def loaded(self, *, stored: int, seen: int, state: WorkflowState, losses: int) -> None:
        """The journal was folded from the store."""
        self.stored = stored
        self.losses = losses
        self._long = _next_warning(stored)
        self.seen = seen
        self._row_state = state

    def unit(
        self, facts: list[Any], journal: Journal, wake: int | None, *, park: bool, waits: str | None = None
    ) -> Unit:
        """The next unit, to be sent.

        Args:
            facts: What came up; may be empty where the saga only parks.
            journal: Folded with `facts`.
            wake: Where it parks, when it has to go on.
            park: It leaves memory: its row says so, and the unit asserts that the inbox holds nothing unread, as does
                the unit that ends the saga. Else what was said meanwhile would wake nobody.
            waits: Where it parks, what for.
        """
        now, unit_id = self._kit.now(), uuid7()
        self.gathered = 0
        records: tuple[NewRecord, ...] = ()
        if facts:
            records = (NewRecord(unit_id, _type_of(facts), h.encode_facts(facts), count=len(facts)),)
        appends: tuple[Append, ...] = (Append(self._stream, records, self.stored),)
        if park or journal.ended:
            appends += (Append(self._inbox, (), self.seen),)
        if park or journal.ended or self._new_rows or journal.state is not self._row_state:
            rows = self._rows(journal, wake, now, park=park, waits=waits)
        else:
            rows, self._sent_state = self._check, self._row_state
        return Unit(unit_id, now, appends, rows, self._kit.worker)

    def _rows(self, journal: Journal, wake: int | None, now: int, *, park: bool, waits: str | None) -> tuple[Row, ...]:
        state = self._sent_state = journal.state
        values: dict[str, Any] = {}
        if journal.ended:
            values = {"state": state.value, "owner": "", "wake_at": None, "cursor": self.seen, "ended_at": now}
        elif park:
            cursor = self.undecided - 1 if self.undecided else self.seen
            values = {"state": state.value, "owner": "", "wake_at": wake, "cursor": cursor, "waits_for": waits}
        elif state is not self._row_state:
            values = {"state": state.value}
        if journal.ended and journal.queue is not None:
            return (
                Row("sagas", "update", (self._saga_id,), values, self._owned),
                *leaving(self._saga_id, journal.queue),
            )
        if self._new_rows:
            index, *others = self._new_rows
            return (Row(index.table, index.op, index.key, {**index.values, **values}), *others)
        return (Row("sagas", "update", (self._saga_id,), values, self._owned),)

    def written(self, facts: list[Any]) -> None:
        """The unit of `facts` is on disk."""
        self._new_rows = ()
        self.stored += len(facts)
        if self.losses and any(isinstance(fact, _ENDS) for fact in facts):
            self.losses = 0
        if self.stored >= self._long:
            self._long = _next_warning(self.stored)
            _log.warning("saga %r has %d events, and each is read whenever it comes back to memory: have its code "
                         "start a saga for what comes next, and end", self._saga_id, self.stored)  # fmt: skip
        self._row_state = self._sent_state

    def leaving(self, facts: list[Any], journal: Journal, receiver: str, until: int) -> Unit:
        """The last unit here of a saga that goes on elsewhere. What is in its inbox is read by who has it next.

        Args:
            facts: What came up, and that it is handed over.
            journal: Folded with `facts`.
            receiver: The worker that it is given to; ``""``: whoever claims it.
            until: When anybody may claim it.
        """
        now, unit_id = self._kit.now(), uuid7()
        self._sent_state = journal.state
        self.gathered = 0
        record = NewRecord(unit_id, _type_of(facts), h.encode_facts(facts), count=len(facts))
        owner = GIVEN + receiver if receiver else ""
        values = {"state": journal.state.value, "owner": owner, "wake_at": until, "cursor": self.seen}
        row = Row("sagas", "update", (self._saga_id,), values, self._owned)
        return Unit(unit_id, now, (Append(self._stream, (record,), self.stored),), (row,), self._kit.worker)

    async def stand(self, error: BaseException) -> None:
        """Have the saga stand as it is on disk, for what it wants to write is refused and would be again."""
        now, unit_id, state = self._kit.now(), uuid7(), self._row_state
        state = WorkflowState.RUNNING if state is WorkflowState.PENDING else state
        fact = h.InterventionNeeded("size", qualified_name(type(error)), str(error), None, state.value)
        values = {"state": WorkflowState.NEEDS_INTERVENTION.value, "owner": "", "wake_at": None, "cursor": self.seen}
        row = Row("sagas", "update", (self._saga_id,), values, self._owned)
        records = (NewRecord(unit_id, _type_of([fact]), h.encode_facts([fact])),)
        appends = (Append(self._stream, records, self.stored),)
        await self._kit.storage.write(Unit(unit_id, now, appends, (row,), self._kit.worker))

    async def hand_over(self, *, lost: bool = False) -> None:
        """Give the saga to whoever claims it next, and say that what was cut off is no interruption.

        Args:
            lost: The store was lost. Nobody can tell whether something of the saga had brought it down, and nothing
                bounds how often that may be tried: so each time in a row it waits twice as long, up to a minute.
        """
        now, unit_id, fact = self._kit.now(), uuid7(), h.SagaHandedOver(lost)
        due = now + int(min(2.0**self.losses - 1, _LONGEST_WAIT_S) * _MICROS) if lost else now
        records: tuple[NewRecord, ...] = ()
        if self._row_state is not WorkflowState.NEEDS_INTERVENTION:  # of one that stands nothing was under way
            records = (NewRecord(unit_id, _type_of([fact]), h.encode_facts([fact])),)
        row = Row("sagas", "update", (self._saga_id,), {"owner": "", "wake_at": due}, self._owned)
        appends = (Append(self._stream, records, self.stored),)
        await self._kit.storage.write(Unit(unit_id, now, appends, (row,), self._kit.worker))
