"""What SQLite and the file system raise, in this library's words: which file, what happened, what to do."""

from __future__ import annotations

import sqlite3
from typing import Final

from event_workflow_engine.errors import (
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
    WorkflowError,
)

__all__ = ["storage_error"]

_MEANINGS: Final[dict[int, tuple[type[StorageError], str]]] = {
    sqlite3.SQLITE_FULL: (
        StorageUnavailableError,
        "there is no room: free space on the disk or raise the quota, then try again; what was acknowledged is safe",
    ),
    sqlite3.SQLITE_READONLY: (
        StorageUnavailableError,
        "the file or its directory cannot be written, which also holds -wal and -shm: check owner, mode and mount",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        StorageUnavailableError,
        "it cannot be opened: check the owner and mode of the file and of its directory",
    ),
    sqlite3.SQLITE_PERM: (StorageUnavailableError, "access was denied: check owner and mode"),
    sqlite3.SQLITE_BUSY: (
        StorageUnavailableError,
        "another program holds the database locked: end its transaction, then try again",
    ),
    sqlite3.SQLITE_LOCKED: (StorageUnavailableError, "another connection holds a table locked: try again"),
    sqlite3.SQLITE_IOERR: (
        StorageUnavailableError,
        "the disk reported an error: check it (dmesg, SMART), then try again",
    ),
    sqlite3.SQLITE_NOMEM: (StorageUnavailableError, "memory is short: free some, then try again"),
    sqlite3.SQLITE_PROTOCOL: (StorageUnavailableError, "its lock could not be taken: try again"),
    sqlite3.SQLITE_NOTADB: (
        StorageCorruptError,
        "it is no SQLite database: choose another path, or restore it from a backup",
    ),
    sqlite3.SQLITE_CORRUPT: (
        StorageCorruptError,
        "the database is damaged: stop all workers, keep a copy, and restore a backup or try sqlite3's .recover",
    ),
    sqlite3.SQLITE_SCHEMA: (StorageCorruptError, "its schema is not the one of this library"),
}


def storage_error(error: BaseException, path: str) -> WorkflowError:
    """The typed error for what was raised while working on the store at `path`. Ours pass as they are."""
    if isinstance(error, WorkflowError):
        return error
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code is not None and code & 0xFF in _MEANINGS:
            kind, remedy = _MEANINGS[code & 0xFF]
            return _chained(kind(f"{path}: {error} ({name}): {remedy}"), error)
        return _chained(StorageError(f"{path}: {error} ({name})"), error)
    if isinstance(error, OSError):
        remedy = "check the path, its owner and mode"
        return _chained(StorageUnavailableError(f"{path}: {error.strerror or error}: {remedy}"), error)
    return _chained(StorageError(f"{path}: {type(error).__name__}: {error}"), error)


def _chained(new: WorkflowError, cause: BaseException) -> WorkflowError:
    new.__cause__ = cause
    return new
