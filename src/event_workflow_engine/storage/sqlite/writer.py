"""What the writer's thread does: batches, claims, exclusive transactions, and upkeep between them."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError, StorageUnavailableError, WorkflowError
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.port import CLAIMS, Written
from event_workflow_engine.storage.sqlite.batch import Batch
from event_workflow_engine.storage.sqlite.checkpoints import Checkpoints
from event_workflow_engine.storage.sqlite.errors import storage_error
from event_workflow_engine.storage.sqlite.log_lookup import outcome
from event_workflow_engine.storage.sqlite.log_room import LogRoom
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.session import BeginError, CommitInDoubtError, WriteSession
from event_workflow_engine.storage.user_sql import UNDONE, rows_of, sql_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import InlineFolder, Rows, Unit
    from event_workflow_engine.storage.sqlite.connection import Connect

__all__ = ["Writer"]

_log = logging.getLogger("event_workflow_engine.storage")

POLL_S: Final = 0.010
"""How often an idle writer looks for commits of other processes while anybody wants to know."""

REST_POLL_S: Final = 0.030
"""The same when nothing was committed for the last `_RESTLESS_POLLS` looks: a look costs a thread's waking."""

_RESTLESS_POLLS: Final = 100

_UPKEEP_S: Final = 0.050  # how long nobody must have wanted anything before a checkpoint that is not urgent
_KEEP_UNIT_IDS_US: Final = 7 * 24 * 3600 * 1_000_000
_PRUNE_LIMIT: Final = 500


class Writer:
    """All its methods but `interrupt` run on the writer's thread, one after the other.

    Attributes:
        folder: Folds inline projections.
        listening: Whether anybody wants to know of other processes' commits.
    """

    def __init__(self, path: str, connect: Connect, on_foreign_commit: Callable[[], None]) -> None:
        self._path = path
        self._session = WriteSession(path, connect)
        self._on_foreign_commit = on_foreign_commit
        self._checkpoints = Checkpoints(path)
        self._room = LogRoom(path)
        self._polls = 0  # since anything was committed
        self._complained = False  # that work between jobs fails, since it last succeeded
        self._failing = False  # batches fail, and one line has said so, since one last succeeded
        self._newest = 0  # the latest Unit.at seen: the clock by which ids of units grow old
        self._closed = False
        self._rests = False
        self._exclusive = False  # a transaction of several jobs has not ended, though an error may have undone it
        self.folder: InlineFolder | None = None
        self.listening = False

    def open(self, auto_upgrade: bool) -> None:
        """Open the file, create or migrate its schema. Raises typed errors only."""
        try:
            self._session.open(auto_upgrade=auto_upgrade)
        except Exception as error:
            self._closed = True
            self._session.close()
            raise storage_error(error, self._path) from error

    def close(self) -> None:
        """Checkpoint, if nobody else has the file open, and close."""
        self._closed = True
        try:
            with self._session.lock:
                self._session.settle()
                self._checkpoints.truncate(self._session.connection)
        except (WorkflowError, sqlite3.Error, OSError) as error:  # all that was acknowledged is on disk already
            _log.warning("%s", storage_error(error, self._path))
        self._session.close()

    # -- batches -------------------------------------------------------------------------------------------------

    def batch(self, units: Sequence[Unit]) -> list[Verdict]:
        """Write a batch: a verdict for each unit. Raises nothing."""
        try:
            verdicts = self._attempt(units, careful=False)
        except sqlite3.IntegrityError:
            # Most likely some id is stored already. Once more with all ids looked up: nothing is left to chance.
            verdicts = self._carefully(units)
        except Exception as error:  # noqa: BLE001 - told to those who wait
            verdicts = self._one_by_one(units, error)
        self._checkpoints.wrote(len(units))
        self._newest = max(self._newest, units[-1].at)
        return verdicts

    def _attempt(self, units: Sequence[Unit], *, careful: bool) -> list[Verdict]:
        """All units in one transaction. Where it raises nothing is stored, unless it is `CommitInDoubtError`."""
        session = self._session
        session.begin()
        try:
            verdicts = Batch(session.connection, session.cache, session.order, self.folder, careful=careful).run(units)
        except BaseException as error:
            session.rollback(reopen=_distrusted(error))
            raise
        session.commit()
        self._failing = False
        return verdicts

    def _carefully(self, units: Sequence[Unit]) -> list[Verdict]:
        try:
            return self._attempt(units, careful=True)
        except Exception as error:  # noqa: BLE001 - told to those who wait
            return self._one_by_one(units, error)

    def _one_by_one(self, units: Sequence[Unit], failure: Exception) -> list[Verdict]:
        """What becomes of units whose common transaction failed: each in one of its own.

        `SQLITE_FULL` undoes a whole transaction, savepoints or not; alone, a small unit may still find room. The ids
        are looked up first, under the lock: what landed although its commit raised is not written twice.
        """
        self._tell(failure)
        if isinstance(failure, BeginError):  # the next one would not get in either
            return [self._typed(failure)] * len(units)
        in_doubt = isinstance(failure, CommitInDoubtError)
        verdicts: list[Verdict] = []
        for unit in units:
            try:
                (verdict,) = self._attempt((unit,), careful=True)
            except BeginError as error:
                return verdicts + [self._typed(error)] * (len(units) - len(verdicts))
            except Exception as error:  # noqa: BLE001 - told to the one who waits
                verdict = self._typed(error)
            if in_doubt and isinstance(verdict, Repeated):
                verdict = verdict.written  # it landed just now, so the commit hooks have not seen it
            verdicts.append(verdict)
        return verdicts

    def _tell(self, failure: Exception) -> None:
        """Say in one line that the file or its disk fails, for callers who try again, and succeed, say nothing."""
        if isinstance(failure, (BeginError, CommitInDoubtError, sqlite3.Error)) and not self._failing:
            self._failing = True
            _log.warning("a batch could not be written: %s", self._typed(failure))

    def _typed(self, error: Exception) -> WorkflowError:
        if isinstance(error, (BeginError, CommitInDoubtError)) and error.__cause__ is not None:
            return storage_error(error.__cause__, self._path)
        return storage_error(error, self._path)

    # -- claims --------------------------------------------------------------------------------------------------

    def claim(self, name: str, params: Mapping[str, Any]) -> Rows:
        """Run a named claim in a transaction of its own; its rows by their first column."""
        if name not in CLAIMS:
            raise DefinitionError(f"there is no claim {name!r}")
        query = QUERIES[name]
        session = self._session
        rows: Rows = []
        try:
            session.begin()
            try:
                for sql in query.statements:
                    with sql_errors(name):
                        rows = rows_of(session.connection.execute(sql, dict(params)))
            except BaseException as error:
                session.rollback(reopen=_distrusted(error))
                raise
            session.commit()
        except Exception as error:
            raise self._typed(error) from error
        session.cache.changed(query.changes, query.returns, rows)
        self._checkpoints.wrote(len(rows))
        return sorted(rows, key=lambda row: next(iter(row.values())))

    # -- exclusive transactions ----------------------------------------------------------------------------------

    def begin_exclusive(self) -> None:
        """Begin a transaction that stays open over several jobs."""
        try:
            self._session.begin()
        except Exception as error:
            raise self._typed(error) from error
        self._exclusive = True

    def user_sql(self, sql: str, params: Mapping[str, Any]) -> tuple[Rows, int]:
        """Run user's SQL in the open transaction: its rows, and how many it changed."""
        try:
            cursor = self._session.guard.write(sql, params)
            return rows_of(cursor), max(cursor.rowcount, 0)
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error

    def check_exclusive(self) -> None:
        """See that the transaction is still open; raises a typed error where it is not."""
        self._session.guard.check()

    def commit_exclusive(self, unit: Unit) -> Verdict:
        """Write `unit` and commit, or undo everything: where `unit` loses, and where it had landed before."""
        self._exclusive = False
        session = self._session
        if not session.in_transaction:
            session.rollback(reopen=True)
            return StorageUnavailableError(f"{self._path}: {UNDONE}")
        try:
            (verdict,) = Batch(session.connection, session.cache, session.order, self.folder, careful=True).run((unit,))
        except Exception as error:  # noqa: BLE001 - told to the one who waits
            session.rollback(reopen=_distrusted(error))
            return self._typed(error)
        if not isinstance(verdict, Written):
            session.rollback()
            return verdict
        try:
            session.commit()
        except CommitInDoubtError as error:
            return self._landed(unit) or self._typed(error)
        self._checkpoints.wrote(1)
        return verdict

    def abort_exclusive(self) -> None:
        """Undo the open transaction."""
        self._exclusive = False
        self._session.rollback()

    def interrupt(self) -> None:
        """Abort the statement that runs now. May be called from any thread."""
        self._session.interrupt()

    def _landed(self, unit: Unit) -> Written | None:
        try:
            self._session.begin()
        except BeginError:
            return None
        try:
            return outcome(self._session.connection, unit.id)
        except sqlite3.Error:
            return None
        finally:
            self._session.rollback()

    def rest(self) -> None:
        """Leave the file alone between jobs, for it is held as a whole, until `go_on`."""
        self._rests = True

    def go_on(self) -> None:
        """Tend the file again."""
        self._rests = False

    def synchronous(self) -> str:
        """How commits are made durable."""
        (level,) = self._session.connection.execute("PRAGMA synchronous").fetchone()
        return ("OFF", "NORMAL", "FULL", "EXTRA")[level]

    # -- between jobs --------------------------------------------------------------------------------------------

    def between_jobs(self, quiet: bool) -> float | None:
        """Do what is due; returns the seconds after which to look again.

        Args:
            quiet: No job came in the time that the last call returned.
        """
        session = self._session
        if self._closed:
            return None
        if self._exclusive:  # it holds the lock, between two of its own jobs
            return _UPKEEP_S
        self._polls = self._polls + 1 if quiet else 0
        try:
            if not self._rests:
                if self._checkpoints.due(quiet=quiet):
                    self._upkeep()
                if not quiet:
                    self._make_room()
            if quiet and self.listening:
                session.notice_foreign_commits()
            self._complained = False
        except Exception as error:  # noqa: BLE001 - a job that comes will meet the same, and has someone to tell
            if not self._complained:
                self._complained = True
                _log.warning("between two jobs: %s", storage_error(error, self._path))
        if session.foreign_commits:  # also those that a batch met, which itself may have committed nothing
            session.foreign_commits = False
            self._polls = 0
            self._on_foreign_commit()
        if self.listening:
            return POLL_S if self._polls < _RESTLESS_POLLS else REST_POLL_S
        return _UPKEEP_S if self._checkpoints.due(quiet=True) else None

    def _upkeep(self) -> None:
        session = self._session
        with session.lock:
            session.connection.execute(
                QUERIES["prune_units"].sql, {"before": self._newest - _KEEP_UNIT_IDS_US, "limit": _PRUNE_LIMIT}
            )
            self._checkpoints.run(session.connection)

    def _make_room(self) -> None:
        try:
            size = self._room.wanted()
            if size:
                self._session.make_room(size)
        except Exception:
            self._room.give_up()
            raise


def _distrusted(error: BaseException) -> bool:
    """Whether an error says that the connection may be of no more use; a broken rule does not."""
    return isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError)
