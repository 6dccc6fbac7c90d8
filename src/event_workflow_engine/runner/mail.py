"""From a saga's inbox into its journal: signals, cancels, pauses, with the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine import history as h
from event_workflow_engine.errors import StorageError
from event_workflow_engine.journal import inbox_stream
from event_workflow_engine.state_machine import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.journal import Journal
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.storage.port import Record

__all__ = ["Mail", "is_decision"]


def is_decision(journal: Journal, entry: h.InboxEntry) -> bool:
    """Whether an entry decides about a saga that stands: to try again, or to undo what is not being undone yet."""
    return isinstance(entry, h.ResumeSent) or (isinstance(entry, h.CancelSent) and not journal.failing)


class Mail:
    """Reads the inbox of one saga in memory."""

    __slots__ = ("_again", "_reading", "_run")

    def __init__(self, run: SagaRun) -> None:
        self._run = run
        self._reading = False
        self._again = False

    def close(self) -> None:
        """The saga leaves memory: let go of it, so that no cycle is left to the garbage collector."""
        del self._run

    def look(self) -> None:
        """Something may be in the inbox: read it, soon."""
        self._again = True
        if not self._reading:
            self._reading = True
            self._run.kit.host.spawn(self._read(self._run))

    async def _read(self, run: SagaRun) -> None:
        # It may leave memory before this begins, and while it waits.
        try:
            while self._again and not run.closed:
                self._again = False
                records = await run.kit.storage.read_stream(inbox_stream(run.saga_id), after=run.pen.seen)
                if not run.closed:
                    self.receive(records)
        except StorageError as error:
            run.lose(error)
        finally:
            self._reading = False
        if not run.closed:
            run.mail_read()

    def receive(self, records: Iterable[Record]) -> None:
        """Copy entries into the journal."""
        for record in records:
            if record.version > self._run.pen.seen:
                for entry in h.decode_facts(record.data):
                    self._receive(entry, record.version)
                self._run.pen.seen = record.version

    def _receive(self, entry: Any, cursor: int) -> None:
        run, journal = self._run, self._run.journal
        if journal.ended:
            return
        if journal.state is WorkflowState.NEEDS_INTERVENTION:
            if is_decision(journal, entry) and not run.pen.undecided:
                run.pen.undecided = cursor  # whoever loads it next does as it says
            return
        if isinstance(entry, h.PauseSent):
            if journal.state in (WorkflowState.RUNNING, WorkflowState.COMPENSATING):
                run.emit(h.SagaPaused(entry.reason, cursor))
        elif isinstance(entry, h.ResumeSent):
            if run.paused:
                run.unpause(cursor)
        elif journal.failing:
            return  # it is being undone: signals and cancels change nothing
        elif isinstance(entry, h.SignalSent):
            signal = h.SignalReceived(entry.name, entry.payload, cursor)
            run.emit(signal)
            run.forward.tell(signal)
        elif isinstance(entry, h.CancelSent):
            self._cancel(h.CancelRequested(entry.reason, cursor))

    def _cancel(self, cancel: h.CancelRequested) -> None:
        run = self._run
        run.emit(cancel)
        if run.paused:
            # Who cancels a paused saga wants it undone, not asleep.
            run.unpause(cancel.cursor)
        run.forward.tell(cancel)
