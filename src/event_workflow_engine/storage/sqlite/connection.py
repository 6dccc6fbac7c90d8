"""Connections to the database file, and what is found in it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import StorageCorruptError, StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    Connect = Callable[[str], sqlite3.Connection]

__all__ = ["APPLICATION_ID", "connect", "look_at", "open_reader", "open_writer", "use_wal"]

APPLICATION_ID: Final = 0x45574531
"""``EWE1`` in the file's header, so that `file` and we know whose database it is."""

BUSY_TIMEOUT_S: Final = 30.0
"""How long SQLite waits for a lock of a program that does not take our side-file lock."""

_OLDEST_SQLITE: Final = (3, 35, 0)  # RETURNING, MATERIALIZED
_SMALLEST_DATABASE: Final = 512  # bytes: one page of the smallest size
_CACHED_STATEMENTS: Final = 512


def connect(uri: str) -> sqlite3.Connection:
    """The default way to a connection; tests may bring one that fails on purpose."""
    return sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # we begin and commit ourselves
        check_same_thread=False,  # opened and closed here, used there; never on two threads at once
        cached_statements=_CACHED_STATEMENTS,
    )


def look_at(path: str) -> None:
    """Look at the path before SQLite does.

    Raises:
        StorageUnavailableError: The directory is missing, the path is one, or the file cannot be written.
        StorageCorruptError: The file is no SQLite database.
        StorageError: This SQLite is too old.
        OSError: The path cannot be looked at.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        wanted = ".".join(map(str, _OLDEST_SQLITE))
        raise StorageError(f"SQLite {sqlite3.sqlite_version} is too old: {wanted} or newer is needed")
    file = Path(path)
    if not file.parent.is_dir():
        raise StorageUnavailableError(f"{path}: the directory {str(file.parent)!r} does not exist: create it first")
    if file.is_dir():
        raise StorageUnavailableError(f"{path}: it is a directory: name a file in it")
    if file.exists():
        # It must not be opened here: closing it would drop the locks that SQLite holds on it for another connection of
        # this process. So SQLite itself tells other kinds of files from databases, but for those it takes to be empty.
        if 0 < file.stat().st_size < _SMALLEST_DATABASE:
            raise StorageCorruptError(f"{path}: it is no SQLite database, and was left as it is: choose another path")
        if not os.access(file, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise StorageUnavailableError(f"{path}: it cannot be read and written: check its owner, mode and mount")


def open_writer(path: str, connect: Connect) -> sqlite3.Connection:
    """A connection that writes, with every commit on disk before it returns. Opening it changes nothing.

    Raises:
        StorageCorruptError: The file is a database of another program; it was left as it is.
        sqlite3.Error: It cannot be opened.
    """
    connection = connect(_uri(path, "rwc"))
    try:
        _check_owner(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        # Checkpoints run under the side-file lock, see checkpoints.py.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: str, connect: Connect) -> sqlite3.Connection:
    """A connection that cannot write, to a file that a writer has open."""
    connection = connect(_uri(path, "ro"))
    connection.execute("PRAGMA query_only = ON")
    return connection


def _check_owner(connection: sqlite3.Connection, path: str) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or objects):
        raise StorageCorruptError(
            f"{path}: it is a database of another program, and was left as it is: choose another path"
        )


def use_wal(connection: sqlite3.Connection, path: str) -> None:
    """Put the file into WAL mode, which stays with it. The caller holds the store's lock.

    Raises:
        StorageUnavailableError: The file's system cannot do that.
    """
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageUnavailableError(
            f"{path}: its file system does not support WAL mode (it stays in {mode!r}): use a local disk"
        )


def _uri(path: str, mode: str) -> str:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    # Two leading slashes would make a host's name of what follows them.
    return f"file:{'//' if quoted.startswith('//') else ''}{quoted}?mode={mode}"
