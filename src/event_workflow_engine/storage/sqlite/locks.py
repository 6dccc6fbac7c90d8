"""The side-file lock under which batches and checkpoints of all processes on one file run."""

from __future__ import annotations

import os
from typing import Final

from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.storage.lock_files import close_lock_file, open_lock_file, was_open_at_fork

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock and busy handler remain, fair or not
    fcntl = None  # type: ignore[assignment]

__all__ = ["StoreLock", "require_not_forked"]

_MODE: Final = 0o666  # less the umask, like SQLite's own files


def require_not_forked(database: str) -> None:
    """See that no process had the file open when it forked this one.

    SQLite counts its locks on a file in memory, too, and a forked child believes it has those of its parent: it waits
    for itself, or reads and writes without any.

    Raises:
        EngineStateError: One had.
    """
    if was_open_at_fork(_lock_of(database)):
        raise EngineStateError(
            f"{database}: the process that forked this one had it open, and SQLite cannot work with it here: start "
            'processes by the method "spawn" or "forkserver", or before the store is opened'
        )


def _lock_of(database: str) -> str:
    return f"{os.path.realpath(database)}-ewe.lock"


class StoreLock:
    """A lock that processes take in turns.

    SQLite's busy handler polls: under load the process that has just released the lock takes it again, and others
    wait for seconds. Two files make a turnstile: who waits for the lock holds the turn, so the process that releases
    the lock queues behind it. The kernel drops both locks when a process dies.

    It belongs to one thread. SQLite's own lock still guards the file against anybody who does not take this one. Names
    that lead to the same file by symbolic links have the same lock.
    """

    def __init__(self, database: str) -> None:
        """Create the side files where they are missing.

        Raises:
            OSError: They cannot be created or opened.
        """
        self._lock = open_lock_file(_lock_of(database), _MODE)
        try:
            self._turn = open_lock_file(f"{os.path.realpath(database)}-ewe.turn", _MODE)
        except OSError:
            close_lock_file(self._lock)
            raise

    def acquire(self) -> None:
        """Wait for the lock, however long another process holds it."""
        if fcntl is not None:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def release(self) -> None:
        """Let the next one in."""
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def awaited(self) -> bool:
        """Whether another waits for the lock, which is held here."""
        if fcntl is not None:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Release it and close the files, which stay for others."""
        close_lock_file(self._lock)
        close_lock_file(self._turn)

    def __enter__(self) -> None:
        """Acquire it."""
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        """Release it."""
        self.release()
