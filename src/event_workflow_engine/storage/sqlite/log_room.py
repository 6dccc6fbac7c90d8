"""Room in the write-ahead log, made before commits need it.

A sync of a file that has grown writes the file system's own journal, too: on ext4 a small commit takes about twice as
long as one that overwrites. A log begins anew after each checkpoint, and its commits overwrite; but the first thousand
frames of a fresh process do not. PostgreSQL makes the segments of its log whole before it uses them, for that reason.
"""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from event_workflow_engine.storage.sqlite.checkpoints import MANY_FRAMES
from event_workflow_engine.storage.sqlite.queries import QUERIES

__all__ = ["LogRoom", "make_room"]

FRAME: Final = 4096 + 24
"""Bytes of a page in the log, and of what stands before it."""

LOOK_AFTER: Final = 4
"""Jobs between two looks at the file."""

LEAST_FRAMES: Final = 64
"""What is made at a time at least: as much as the log has, as lists grow."""

MOST_FRAMES: Final = 256
"""What is made at a time at most: 1 MiB, which holds up the writer for about two milliseconds."""

SPARE: Final = 67_108_864
"""Free bytes of a disk of which none is taken for room: the checkpoint that lets the log begin anew needs some, too."""

_FEW_FRAMES: Final = 8  # in a commit: room for more costs about what it saves
_SMALL_CACHE: Final = 10  # pages: the least that SQLite keeps to


class LogRoom:
    """Sees from the file's size whether commits make it grow, and says how much room to make.

    Args:
        path: Of the database.
    """

    def __init__(self, path: str) -> None:
        self._log = Path(f"{os.path.realpath(path)}-wal")
        self._jobs: float = 0  # since the last look
        self._size = 0

    def wanted(self) -> int:
        """After each job: the bytes of room to make now, mostly 0.

        Raises:
            OSError: The file or its disk cannot be looked at.
        """
        self._jobs += 1
        if self._jobs < LOOK_AFTER:
            return 0
        jobs, self._jobs = self._jobs, 0
        try:
            size = self._log.stat().st_size
        except FileNotFoundError:
            size = 0
        grown, self._size = size - self._size, size
        if not 0 < grown <= jobs * _FEW_FRAMES * FRAME or size >= MANY_FRAMES * FRAME:
            return 0
        room = min(max(size, LEAST_FRAMES * FRAME), MOST_FRAMES * FRAME)
        if shutil.disk_usage(self._log.parent).free < room + SPARE:
            return 0
        self._size += room
        return room

    def give_up(self) -> None:
        """Want none any more: a disk that has no room to spare, or fails, is to be left alone."""
        self._jobs = -math.inf


def make_room(connection: sqlite3.Connection, size: int) -> None:
    """Have SQLite write `size` bytes behind the log's last commit, and take them back. The caller holds the lock.

    They are what a transaction too large for memory leaves when it is undone: no reader and no recovery looks at them,
    and the next commit overwrites them. Nothing is synced; the next commit does that. While a program writes that does
    not take our lock, none is made.

    Raises:
        sqlite3.Error: The disk is full or fails; the log is as it was, and perhaps longer.
    """
    (cache,) = connection.execute("PRAGMA cache_size").fetchone()
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA cache_size = {_SMALL_CACHE:d}")
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(QUERIES["make_log_longer"].sql, {"size": size})
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
    finally:
        if connection.in_transaction:  # some errors of SQLite end it unasked
            connection.execute("ROLLBACK")
        with suppress(sqlite3.Error):
            connection.execute(f"PRAGMA busy_timeout = {patience:d}")
            connection.execute(f"PRAGMA cache_size = {cache:d}")
