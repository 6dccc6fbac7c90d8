"""When to move the write-ahead log into the database file: by ourselves, under the store's lock."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Final

__all__ = ["Checkpoints", "settle"]

_log = logging.getLogger("event_workflow_engine.storage")

FEW_FRAMES: Final = 500
"""Pages of 4 KiB in the log that are worth a checkpoint when nobody waits."""

MANY_FRAMES: Final = 1_000
"""Pages in the log that make a checkpoint due although somebody waits.

A file that grows is synced at twice the price of one that is overwritten, and the log begins anew after a checkpoint;
which costs half a millisecond or more. One saga alone does best with this many, of those tried (500, 750 and 1,500).
"""

_PATIENCE_MS: Final = 100  # for readers, who hold the log for single reads

_COMMIT_WORK: Final = 3  # the pages that even the smallest transaction writes, in units of work
_AGAIN_AFTER: Final = 0.25  # a checkpoint that a reader held up is tried again after this share of the usual work


class Checkpoints:
    """Estimates how long the log is, since SQLite tells that only when it checkpoints; learns from what it told.

    SQLite checkpoints by itself when a commit finds the log long, in whichever process that is, beside writers of
    other processes. Versions up to 3.51.2 could damage the file when that met a writer that restarted the log; under
    one lock the two never meet.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._work = 0.0  # since the last checkpoint
        self._frames_per_work = 0.75  # one saga alone
        self._left = 0  # frames that the last checkpoint could not reset

    def wrote(self, units: int) -> None:
        """A batch of so many units was committed."""
        self._work += units + _COMMIT_WORK

    def due(self, *, quiet: bool) -> bool:
        """Whether to checkpoint now; `quiet`: nobody waits for the writer."""
        frames = self._work * self._frames_per_work
        return frames >= (FEW_FRAMES if quiet else MANY_FRAMES)

    def run(self, connection: sqlite3.Connection) -> None:
        """Move as much of the log as no reader needs. The caller holds the store's lock; it never fails a batch."""
        try:
            _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # All that was acknowledged is in the log; it grows until this works again.
            _log.warning("%s: checkpoint failed, the write-ahead log grows until one succeeds: %s", self._path, error)
            self._work *= 1 - _AGAIN_AFTER
            return
        fresh = max(frames - self._left, 1)
        if self._work:
            self._frames_per_work = fresh / self._work
        complete = moved >= frames
        self._left = 0 if complete else frames
        self._work = 0.0 if complete else self._work * (1 - _AGAIN_AFTER)

    def truncate(self, connection: sqlite3.Connection) -> None:
        """On closing: move all and empty the log, unless others use it."""
        try:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            _log.info("%s: the write-ahead log stays for others: %s", self._path, error)


def settle(connection: sqlite3.Connection, path: str) -> None:
    """Bring to disk what is found in the file and may be in the system's memory only. The caller holds the lock.

    Whoever opens a file first takes from its log each commit that is whole. The process that wrote the last one may
    have been killed before it had synced it, or its sync has failed, after which Linux forgets what it was to write,
    and the next sync succeeds. Were such a unit taken for written, it would be acknowledged and not be on disk.

    So all of the log is written once more, to the database, and the log is begun anew by a commit that is synced: else
    what the disk kept of the old one would stand before the database after a power loss. Where others read the log,
    they have opened the file before, and saw to that.

    Raises:
        sqlite3.Error: The disk fails.
    """
    log = Path(f"{os.path.realpath(path)}-wal")
    if not log.exists() or not log.stat().st_size:
        return
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS:d}")
    try:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {patience:d}")
        # Writes a page although nothing changes.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version:d}")
    except sqlite3.OperationalError as error:
        # A full disk is no reason not to open: what there was to sync was synced before room was wanted.
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
