"""`FaultyDisk`: the disk under a SQLite file fails, fills up, hangs, or keeps at a power loss only what was synced."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from event_workflow_engine.testing.sqlite_vfs import Vfs

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["FaultyDisk", "Operation"]

Operation = Literal["create", "write", "truncate", "sync", "delete"]

SECTOR: Final = 512
"""Bytes that a disk writes as a whole. What is longer may be torn."""

_CODES: Final[dict[Operation, int]] = {
    "create": sqlite3.SQLITE_CANTOPEN,
    "write": sqlite3.SQLITE_IOERR_WRITE,
    "truncate": sqlite3.SQLITE_IOERR_TRUNCATE,
    "sync": sqlite3.SQLITE_IOERR_FSYNC,
    "delete": sqlite3.SQLITE_IOERR_DELETE,
}
_SUFFIXES: Final = ("", "-wal", "-journal")


@dataclass
class _Image:
    """A file as the disk has it, and what was done to it since: pieces written, or a size to which it was cut."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    named: bool = False
    syncs_folder: bool = False

    def settle(self, keeps: Callable[[], bool]) -> None:
        """Bring to disk what `keeps` says of, sector by sector and in any order that a disk may choose."""
        for at, data in self.pending:
            if data is None:
                if keeps():
                    del self.durable[at:]
                continue
            for start in range(0, len(data), SECTOR):
                piece = data[start : start + SECTOR]
                if keeps():
                    missing = at + start - len(self.durable)
                    self.durable.extend(bytes(max(missing, 0)))
                    self.durable[at + start : at + start + len(piece)] = piece
        self.pending.clear()

    def copy(self) -> _Image:
        return _Image(bytearray(self.durable), list(self.pending))


@dataclass
class _Fault:
    """Which operations fail, counted down from when it was made."""

    operation: Operation
    code: int
    of: str
    skip: int
    times: float
    failed: int = 0


class FaultyDisk:
    """The disk under one SQLite file, for this process and the connections that it opens meanwhile.

    What the engine writes goes to the real file, which every process sees, and is booked here: what was synced, and
    what a power loss may still take. The disk is a strict one. Only a sync makes anything durable; what was not synced
    is kept by halves of pages, and a file's name is durable when its folder was synced.

    It needs no rights, no file system and no compiler: SQLite itself is told to call it.

    Args:
        path: Of the database; its journal and its write-ahead log belong to it.
        rng: Chooses what a power loss leaves.
        on_disk: A folder into which `lose_power` wrote what the disk has of the files, where they show more: their last
            user was killed before it had synced them. Default: the disk has what they show.

    Raises:
        StorageUnavailableError: This interpreter's SQLite hides its functions.

    Example:
        >>> import random, sqlite3, tempfile
        >>> with tempfile.TemporaryDirectory() as folder, FaultyDisk(f"{folder}/a.db", random.Random(1)) as disk:
        ...     database = sqlite3.connect(f"{folder}/a.db")
        ...     disk.fail("sync")
        ...     try:
        ...         database.execute("CREATE TABLE t (a)")
        ...     except sqlite3.OperationalError as error:
        ...         print(error)
        ...     database.close()
        disk I/O error
    """

    def __init__(self, path: str | Path, rng: random.Random, *, on_disk: str | Path | None = None) -> None:
        self.path = os.path.realpath(path)
        self.counts: Counter[Operation] = Counter()
        """Operations so far, by their kinds."""
        self._rng = rng
        self._lock = threading.RLock()
        self._on_disk = None if on_disk is None else Path(on_disk)
        self._images: dict[str, _Image] = {}
        self._unlinked: dict[str, _Image] = {}
        self._fault: _Fault | None = None
        self._at: tuple[int, Callable[[], object]] | None = None
        self._free = threading.Event()
        self._free.set()
        self._hung = threading.Event()
        self._vfs = Vfs(self)

    def __enter__(self) -> Self:
        """Have SQLite call it for every file that is opened from here on."""
        self._vfs.install()
        return self

    def __exit__(self, *exc: object) -> None:
        """Let go of what hangs, fail nothing more, and leave SQLite its own way to the disk."""
        self.heal()
        self._vfs.remove()

    # -- what shall go wrong -------------------------------------------------------------------------------------

    def fail(
        self, operation: Operation, *, at: int = 1, times: float = 1, code: int | None = None, of: str | None = None
    ) -> None:
        """Have an operation fail.

        A write that fails has written its first half. A sync that fails has lost some of what it was to sync, and no
        later sync brings that to disk: so does Linux.

        Args:
            operation: Its kind.
            at: Which of them from now on: 1 is the next.
            times: How many fail in a row; ``math.inf`` for all until `heal`.
            code: SQLite's result code. Default: the I/O error of that operation; ``sqlite3.SQLITE_FULL`` is a disk
                without room.
            of: Only those of the file whose name is the database's with this suffix: ``""``, ``"-wal"`` or
                ``"-journal"``. Default: any.
        """
        with self._lock:
            suffix = of if of is not None else "*"
            self._fault = _Fault(operation, code or _CODES[operation], suffix, at - 1, times)

    @property
    def failed(self) -> int:
        """How many operations the last `fail` has failed."""
        return 0 if self._fault is None else self._fault.failed

    def hang(self) -> None:
        """Have each sync from now on wait until `heal`."""
        self._hung.clear()
        self._free.clear()

    def wait_hung(self, timeout: float | None = None) -> bool:
        """Wait, on this thread, until a sync hangs; whether one does."""
        return self._hung.wait(timeout)

    def heal(self) -> None:
        """Work from now on, and let go of what hangs."""
        with self._lock:
            if self._fault is not None:
                self._fault.times = 0
        self._free.set()

    def at(self, operation: int, call: Callable[[], object]) -> None:
        """Call a function before the n-th operation of any kind from now on, while no other goes on."""
        with self._lock:
            self._at = self.counts.total() + operation, call

    # -- a power loss --------------------------------------------------------------------------------------------

    def lose_power(self, folder: str | Path, *, keep: float | None = None) -> Path:
        """Write into a folder what a power loss would leave now. The disk goes on: whoever plays it to its end kills
        the process, and the folder may be the database's own then.

        Args:
            folder: Which may have files of these names; they are replaced.
            keep: How likely a sector is kept that was not synced: 0 leaves only what was. Default: chosen by `rng`.

        Returns:
            The database's path there. The file may be missing.
        """
        with self._lock:
            share = self._rng.choice((0.0, 1.0, self._rng.random())) if keep is None else keep

            def keeps() -> bool:
                return self._rng.random() < share

            database = Path(folder, Path(self.path).name)
            for suffix in (*_SUFFIXES, "-shm"):
                Path(f"{database}{suffix}").unlink(missing_ok=True)
            for suffix in _SUFFIXES:
                path = f"{self.path}{suffix}"
                image, before = self._images.get(path), self._unlinked.get(path)
                if image is None or not (image.named or keeps()):
                    image = before if before is not None and not keeps() else None
                if image is not None:
                    left = image.copy()
                    left.settle(keeps)
                    Path(f"{database}{suffix}").write_bytes(left.durable)
            return database

    # -- what SQLite asks for: see `sqlite_vfs.Files` ------------------------------------------------------------

    def create(self, path: str) -> int:
        """See `Files.create`."""
        if self._suffix(path) is None:
            return 0
        with self._lock:
            return self._goes_on("create", path)

    def opened(self, path: str, *, created: bool, syncs_folder: bool) -> bool:
        """See `Files.opened`."""
        if self._suffix(path) is None:
            return False
        with self._lock:
            if created:
                self._images[path] = _Image(syncs_folder=syncs_folder)
            elif path not in self._images:
                self._images[path] = self._found(Path(path))
        return True

    def _found(self, file: Path) -> _Image:
        shown = file.read_bytes()
        if self._on_disk is None:
            return _Image(bytearray(shown), named=True)
        there = self._on_disk / file.name
        durable = bytearray(there.read_bytes()) if there.exists() else bytearray()
        return _Image(durable, [(len(shown), None), (0, shown)], named=there.exists(), syncs_folder=not there.exists())

    def write(self, path: str, offset: int, data: bytes, through: Callable[[bytes], int]) -> int:
        """See `Files.write`."""
        with self._lock:
            code = self._goes_on("write", path)
            if code:
                data = data[: len(data) // 2]
            result = through(data)
            self._images[path].pending.append((offset, data))
            return code or result

    def truncate(self, path: str, size: int, through: Callable[[], int]) -> int:
        """See `Files.truncate`."""
        with self._lock:
            code = self._goes_on("truncate", path) or through()
            if not code:
                self._images[path].pending.append((size, None))
            return code

    def sync(self, path: str) -> int:
        """See `Files.sync`."""
        if not self._free.is_set():
            self._hung.set()
            self._free.wait()
        with self._lock:
            code = self._goes_on("sync", path)
            image = self._images[path]
            if code:
                share = self._rng.choice((0.0, self._rng.random()))
                image.settle(lambda: self._rng.random() < share)
                return code
            image.settle(lambda: True)
            if image.syncs_folder:
                image.syncs_folder = False
                self._sync_folder()
            return 0

    def delete(self, path: str, through: Callable[[], int], *, sync_folder: bool) -> int:
        """See `Files.delete`."""
        if self._suffix(path) is None:
            return through()
        with self._lock:
            code = self._goes_on("delete", path) or through()
            image = self._images.pop(path, None)
            if code:
                return code
            if image is not None and image.named:
                self._unlinked[path] = image
            if sync_folder:
                self._sync_folder()
            return 0

    def _sync_folder(self) -> None:
        for image in self._images.values():
            image.named = True
        self._unlinked.clear()

    def _suffix(self, path: str) -> str | None:
        suffix = path.removeprefix(self.path)
        return suffix if suffix in _SUFFIXES else None

    def _goes_on(self, operation: Operation, path: str) -> int:
        """Count an operation; the code that it fails with, 0 where it does not."""
        self.counts[operation] += 1
        if self._at is not None and self.counts.total() == self._at[0]:
            call, self._at = self._at[1], None
            call()
        fault = self._fault
        if fault is None or fault.operation != operation or fault.of not in ("*", self._suffix(path)):
            return 0
        if fault.skip:
            fault.skip -= 1
            return 0
        if fault.times <= 0:
            return 0
        fault.times -= 1
        fault.failed += 1
        return fault.code
