"""Which workers on one machine are alive, told by the operating system: a held file lock ends with its process.

SQLite's file is shared by processes of one machine, so no heartbeat and no lease are needed: a lock that can be taken
is death, at once, whatever the process was doing (rule 12).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from event_workflow_engine.errors import StorageUnavailableError

if os.name != "nt":
    import fcntl

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage

__all__ = ["FileLiveness", "Liveness", "ProcessLiveness", "liveness_of"]


class Liveness(Protocol):
    """Holds one worker's sign of life, and tells whether another's is gone. Sync: it takes microseconds."""

    def hold(self, worker: str) -> None:
        """Show that `worker` lives, until `release` or the end of the process."""
        ...

    def release(self, worker: str) -> None:
        """Show it no longer."""
        ...

    def is_gone(self, worker: str) -> bool:
        """Whether `worker` certainly lives no more."""
        ...


class FileLiveness:
    """One locked file for each worker, in a folder beside the database.

    The lock belongs to the open file, which child processes do not inherit; a bare ``os.fork`` does, and then the
    worker lives as long as any of the two.

    Args:
        folder: Where the files are; made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def _path(self, worker: str) -> Path:
        return self._folder / f"{worker}.lock"

    def hold(self, worker: str) -> None:
        """See `Liveness.hold`.

        Raises:
            StorageUnavailableError: The folder cannot be written.
        """
        try:
            self._folder.mkdir(exist_ok=True)
            descriptor = os.open(self._path(worker), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageUnavailableError(
                f"worker {worker}: its lock file in {self._folder} cannot be made ({error}): make the folder writable"
            ) from error
        self._held[worker] = descriptor

    def release(self, worker: str) -> None:
        """See `Liveness.release`."""
        descriptor = self._held.pop(worker, None)
        if descriptor is not None:
            # The file goes first: who finds it absent knows that the worker is gone.
            with contextlib.suppress(OSError):
                self._path(worker).unlink()
            os.close(descriptor)

    def is_gone(self, worker: str) -> bool:
        """See `Liveness.is_gone`."""
        if worker in self._held:
            return False
        try:
            descriptor = os.open(self._path(worker), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            with contextlib.suppress(OSError):
                self._path(worker).unlink()
            return True
        finally:
            os.close(descriptor)


class ProcessLiveness:
    """For a store that lives in one process: its workers are those that hold."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    def hold(self, worker: str) -> None:
        """See `Liveness.hold`."""
        self._held.add(worker)

    def release(self, worker: str) -> None:
        """See `Liveness.release`."""
        self._held.discard(worker)

    def is_gone(self, worker: str) -> bool:
        """See `Liveness.is_gone`."""
        return worker not in self._held


_of_storage: WeakKeyDictionary[Storage, ProcessLiveness] = WeakKeyDictionary()


def liveness_of(storage: Storage) -> Liveness:
    """The liveness that fits a store."""
    path = storage.url.removeprefix("sqlite:///")
    if path != storage.url and os.name != "nt":
        return FileLiveness(Path(f"{path}-ewe-workers"))
    return _of_storage.setdefault(storage, ProcessLiveness())
