"""The writing connection and its transactions: the lock around them, and what is remembered between them."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage.judging.caches import StoreCache
from event_workflow_engine.storage.sqlite.checkpoints import settle
from event_workflow_engine.storage.sqlite.connection import look_at, open_writer, use_wal
from event_workflow_engine.storage.sqlite.id_order import IdOrder
from event_workflow_engine.storage.sqlite.locks import StoreLock, require_not_forked
from event_workflow_engine.storage.sqlite.log_room import make_room
from event_workflow_engine.storage.sqlite.migrate import check_known, migrate
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.sqlite.statements import OWN_TABLES
from event_workflow_engine.storage.user_sql import SqlGuard

if TYPE_CHECKING:
    from event_workflow_engine.storage.sqlite.connection import Connect

__all__ = ["BeginError", "CommitInDoubtError", "WriteSession"]

_TRIES: Final = 4  # of a disk that fails, before it is closed as it is


class BeginError(Exception):
    """No transaction could be begun, for the reason in its cause: nothing was sent."""


class CommitInDoubtError(Exception):
    """The commit raised, for the reason in its cause: what was in the transaction is stored or not."""


class WriteSession:
    """One connection, one lock, one transaction at a time. Belongs to one thread once it is open.

    Attributes:
        cache: What is known of the store inside of a transaction.
        order: Where the order of its ids stands, when the cache knows the last position.
        foreign_commits: Whether other processes' commits were met; reset by who tells of them.
    """

    def __init__(self, path: str, connect: Connect) -> None:
        self._path = path
        self._connect = connect
        self._lock: StoreLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._guard: SqlGuard | None = None
        self._data_version: int | None = None
        self._settled = False  # all that is seen in the file is on the disk below it
        self.cache = StoreCache()
        self.order = IdOrder()
        self.foreign_commits = False

    def open(self, *, auto_upgrade: bool) -> None:
        """Open the file; create or migrate its schema.

        Raises:
            WorkflowError: The file is not ours, or its schema does not fit.
            sqlite3.Error: SQLite cannot work with it.
            OSError: The file system does not allow it.
        """
        require_not_forked(self._path)
        look_at(self._path)
        connection = self.connection  # before the lock, whose files have no place beside what is not ours
        self._lock = StoreLock(self._path)
        with self._lock:
            use_wal(connection, self._path)
            migrate(connection, self._path, auto_upgrade=auto_upgrade)
            self._settle()

    def close(self) -> None:
        """Close the connection under the lock, for SQLite checkpoints when the last one closes; then the lock."""
        lock, self._lock = self._lock, None
        if lock is None:
            self._drop()
            return
        with lock:
            self._drop()
        lock.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, opened anew if an error cost us the last one."""
        if self._connection is None:
            self._connection = open_writer(self._path, self._connect)
            self._guard = SqlGuard(self._connection, OWN_TABLES)
        return self._connection

    @property
    def guard(self) -> SqlGuard:
        """What keeps user's SQL on this connection within its bounds."""
        if self._guard is None:
            raise StorageUnavailableError(f"{self._path}: the transaction was lost with its connection")
        return self._guard

    @property
    def lock(self) -> StoreLock:
        """The lock of all processes on this file."""
        if self._lock is None:
            raise StorageUnavailableError(f"{self._path}: the store is closed")
        return self._lock

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; some errors of SQLite end it unasked."""
        return self._connection is not None and self._connection.in_transaction

    def begin(self) -> None:
        """Take the lock and begin; afterwards `cache` agrees with the file.

        Raises:
            BeginError: It was not possible; the lock is free again.
        """
        try:
            self.lock.acquire()
        except (StorageUnavailableError, OSError) as error:
            raise BeginError from error
        try:
            self._settle()
            self.connection.execute("BEGIN IMMEDIATE")
            self.notice_foreign_commits()
            if self.cache.position is None:
                (self.cache.position,) = self.connection.execute(QUERIES["last_position"].sql).fetchone()
                (self.cache.last_stream,) = self.connection.execute(QUERIES["last_stream"].sql).fetchone()
                self.order.load(self.connection)
        except BaseException as error:
            self.rollback(reopen=True)
            raise BeginError from error

    def settle(self) -> None:
        """Before closing, under the lock: see that the log holds no commit whose sync had failed.

        The last connection that closes moves the log into the database and deletes it, by SQLite itself. Where the disk
        had lost a part of that log, and the power goes before the folder is synced, what was left of it would be back,
        and stand before the database, which has what was acknowledged since.

        Raises:
            sqlite3.Error: The disk fails, time after time.
        """
        for _ in range(_TRIES - 1):
            with suppress(sqlite3.Error):
                self._settle()
                return
        self._settle()

    def make_room(self, size: int) -> None:
        """Make the log longer by so many bytes, if the connection is one that was used.

        Raises:
            sqlite3.Error: The disk is full or fails.
        """
        with self.lock:
            if self._connection is None or not self._settled:
                return
            try:
                make_room(self._connection, size)
            except sqlite3.Error:
                self._drop()
                raise

    def _settle(self) -> None:
        """Once for each connection, and under the lock: what others may have left half-synced.

        Raises:
            sqlite3.Error: The disk still fails.
        """
        if not self._settled:
            settle(self.connection, self._path)
            self._settled = True

    def notice_foreign_commits(self) -> None:
        """Look whether another connection has committed since the last look; then what was remembered is forgotten.

        Raises:
            SchemaVersionError: It was a newer version of this library, and the schema is its own now.
        """
        (version,) = self.connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self.cache.clear()
            check_known(self.connection, self._path)
            # Also of a new connection, for nobody looked while there was none.
            self.foreign_commits = True
            self._data_version = version

    def commit(self) -> None:
        """Commit and let the next process in.

        Raises:
            CommitInDoubtError: It raised. The connection is closed, so that the next look is at the file.
        """
        try:
            self.connection.execute("COMMIT")
        except BaseException as error:
            self._drop()
            raise CommitInDoubtError from error
        finally:
            self.lock.release()
        self.cache.age()

    def rollback(self, *, reopen: bool = False) -> None:
        """Undo and let the next process in.

        Args:
            reopen: Trust the connection no more.
        """
        self.cache.clear()
        try:
            if self.in_transaction:
                self.connection.execute("ROLLBACK")
        except sqlite3.Error:
            reopen = True
        finally:
            if reopen:
                self._drop()
            if self._lock is not None:
                self._lock.release()

    def interrupt(self) -> None:
        """Abort the statement that runs now. May be called from any thread."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._guard = None
        self._data_version = None
        self._settled = False
        self.cache.clear()
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
