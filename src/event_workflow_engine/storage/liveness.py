"""Which workers are alive (rule 12).

On one machine the operating system tells: a held file lock ends with its process. SQLite's file is shared by processes
of one machine, so no heartbeat and no lease are needed: a lock that can be taken is death, at once, whatever the
process was doing. Over several machines a worker counts heartbeats in its row, and whoever sees the count stand still
for one lease of that worker, which its row tells, by a clock of its own that nobody can set, takes it for dead.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage.lock_files import close_lock_file, open_lock_file

if os.name != "nt":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["FileLiveness", "HeartbeatLiveness", "Liveness", "ProcessLiveness"]

_MODE: Final = 0o644
_LOCK_LOOK_S: Final = 0.1
_LOOKS_A_LEASE: Final = 30
_MOST_LOOK_S: Final = 0.5
_BEATS_A_LEASE: Final = 5
_MARGIN: Final = 0.2  # of the lease
_LOOKS_OVERDUE: Final = 2
_MICROS: Final = 1_000_000


class Liveness(Protocol):
    """Holds one worker's sign of life, and tells whether another's is gone. Sync: it takes microseconds.

    Attributes:
        look_every: Seconds between two looks for those that are gone.
        beat_every: Seconds between two heartbeats; ``None`` where the sign of life needs none.
    """

    look_every: float
    beat_every: float | None

    @property
    def lease(self) -> float | None:
        """Seconds that an unchanged heartbeat leaves the held worker alive; ``None`` where there are none."""
        ...

    def hold(self, worker: str) -> None:
        """Show that `worker` lives, until `release` or the end of the process."""
        ...

    def release(self, worker: str) -> None:
        """Show it no longer."""
        ...

    def is_gone(self, worker: Mapping[str, Any]) -> bool:
        """Whether the worker of a row of ``workers`` certainly lives no more."""
        ...

    def time(self) -> float:
        """Seconds, by a clock that nobody sets."""
        ...

    def beaten(self, sent: float) -> None:
        """A heartbeat that was sent at that time, by `time`, is in the store."""
        ...

    def is_sure(self) -> bool:
        """Whether the held worker is certainly not taken for dead by others, so that it may begin to act."""
        ...


class _HeldByThePlatform:
    """A sign of life that lasts as long as the process does."""

    look_every: float = _LOCK_LOOK_S
    beat_every: float | None = None
    lease: None = None

    def time(self) -> float:
        """See `Liveness.time`."""
        return time.monotonic()

    def beaten(self, sent: float) -> None:
        """See `Liveness.beaten`."""

    def is_sure(self) -> bool:
        """See `Liveness.is_sure`."""
        return True


class FileLiveness(_HeldByThePlatform):
    """One locked file for each worker, in a folder beside the database.

    The lock belongs to the open file, which child processes do not inherit, those made by a bare fork included.

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
            descriptor = open_lock_file(self._path(worker), _MODE)
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
            close_lock_file(descriptor)

    def is_gone(self, worker: Mapping[str, Any]) -> bool:
        """See `Liveness.is_gone`."""
        name = worker["id"]
        if name in self._held:
            return False
        try:
            descriptor = os.open(self._path(name), os.O_RDWR | os.O_CLOEXEC)
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
                self._path(name).unlink()
            return True
        finally:
            os.close(descriptor)


class ProcessLiveness(_HeldByThePlatform):
    """For a store that lives in one process: its workers are those that hold."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    def hold(self, worker: str) -> None:
        """See `Liveness.hold`."""
        self._held.add(worker)

    def release(self, worker: str) -> None:
        """See `Liveness.release`."""
        self._held.discard(worker)

    def is_gone(self, worker: Mapping[str, Any]) -> bool:
        """See `Liveness.is_gone`."""
        return worker["id"] not in self._held


class HeartbeatLiveness:
    """Workers on many machines, told by the heartbeat counters of their rows.

    A worker is gone when its counter has stood still for its own lease by this process's monotonic clock, so clocks
    that are wrong or set anew move nothing. By its own, for by that it is sure of itself. This process's own worker is
    sure until a margin before the others may take it for dead: a lease after the last heartbeat that is certainly in
    the store was *sent*.

    Time in which this process did not look counts for next to nothing: where it could not reach the store, no heart
    could beat either, as far as it knows.

    Args:
        lease: The held worker's, in seconds; others' are in their rows.
        monotonic: A clock that only goes forward, in seconds.
    """

    def __init__(self, lease: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.look_every = min(lease / _LOOKS_A_LEASE, _MOST_LOOK_S)
        self.beat_every: float | None = lease / _BEATS_A_LEASE
        self.lease = lease
        self._monotonic = monotonic
        self._sure_until = float("-inf")
        self._seen: dict[str, tuple[tuple[int, int], float, float]] = {}  # beat of which life, since when, last look
        self._held = ""

    def time(self) -> float:
        """See `Liveness.time`."""
        return self._monotonic()

    def hold(self, worker: str) -> None:
        """See `Liveness.hold`."""
        self._held = worker

    def release(self, worker: str) -> None:
        """See `Liveness.release`."""
        if worker == self._held:
            self._held = ""
            self._sure_until = float("-inf")

    def is_gone(self, worker: Mapping[str, Any]) -> bool:
        """See `Liveness.is_gone`."""
        name, beat, now = worker["id"], (worker["incarnation"], worker["beat"]), self._monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != beat:
            self._seen[name] = (beat, now, now)
            return False
        lease = self.lease if worker["lease"] is None else worker["lease"] / _MICROS
        unseen = now - known[2] - max(lease / _BEATS_A_LEASE, _LOOKS_OVERDUE * self.look_every)
        since = known[1] + max(0.0, unseen)
        if name == self._held or now - since < lease:
            self._seen[name] = (beat, since, now)
            return False
        del self._seen[name]
        return True

    def beaten(self, sent: float) -> None:
        """See `Liveness.beaten`."""
        self._sure_until = sent + self.lease * (1 - _MARGIN)

    def is_sure(self) -> bool:
        """See `Liveness.is_sure`."""
        return self._monotonic() < self._sure_until
