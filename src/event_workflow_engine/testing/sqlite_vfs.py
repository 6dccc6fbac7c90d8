"""A layer of our own between SQLite and its files, put into the very library that `sqlite3` calls, without a compiler.

SQLite lets a program register a VFS: a table of C functions for everything that it asks of the operating system. Ours
is a copy of the default table in which a few entries are Python functions; all else runs in C, as ever. So is the table
of each file that it opens.
"""

from __future__ import annotations

import _sqlite3
import ctypes as c
import os
import sqlite3
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Files", "Vfs"]

_OPEN_CREATE: Final = 0x4
_OPEN_SYNCS_FOLDER: Final = 0x800 | 0x4000 | 0x80000  # a new rollback journal, super-journal or write-ahead log
_IOERR: Final = 10
_names = count(1)
_kept: list[object] = []
"""Tables that C may still point to: a connection can outlive the VFS that it was opened with."""


class Files(Protocol):
    """Who is asked about each operation. An operation gets SQLite's result code: 0, or that of an error."""

    def create(self, path: str) -> int:
        """A file is missing and will be created."""

    def opened(self, path: str, *, created: bool, syncs_folder: bool) -> bool:
        """A file was opened; whether its operations are wanted, too.

        Args:
            path: As everywhere here, without symbolic links.
            created: It was missing before.
            syncs_folder: SQLite syncs the folder, too, when it first syncs this file.
        """

    def write(self, path: str, offset: int, data: bytes, through: Callable[[bytes], int]) -> int:
        """Write, by calling `through` with all of the data, some, or not at all."""

    def truncate(self, path: str, size: int, through: Callable[[], int]) -> int:
        """Cut a file."""

    def sync(self, path: str) -> int:
        """Sync a file. Nothing is synced for real: whoever simulates a disk needs no other."""

    def delete(self, path: str, through: Callable[[], int], *, sync_folder: bool) -> int:
        """Delete a file."""


_Close = c.CFUNCTYPE(c.c_int, c.c_void_p)
_Write = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int, c.c_int64)
_Truncate = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int64)
_Sync = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int)
_Open = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int, c.POINTER(c.c_int))
_Delete = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_int)


class _FileMethods(c.Structure):
    """``sqlite3_io_methods``, as far as version 3 of it goes; a shorter one says so in its first field."""

    _fields_ = [
        ("iVersion", c.c_int),
        ("xClose", _Close),
        ("xRead", c.c_void_p),
        ("xWrite", _Write),
        ("xTruncate", _Truncate),
        ("xSync", _Sync),
        *((name, c.c_void_p) for name in (
            "xFileSize", "xLock", "xUnlock", "xCheckReservedLock", "xFileControl", "xSectorSize",
            "xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch",
        )),
    ]  # fmt: skip


class _Methods(c.Structure):
    """``sqlite3_vfs``, as far as version 3 of it goes."""

    _fields_ = [
        ("iVersion", c.c_int),
        ("szOsFile", c.c_int),
        ("mxPathname", c.c_int),
        ("pNext", c.c_void_p),
        ("zName", c.c_char_p),
        ("pAppData", c.c_void_p),
        ("xOpen", _Open),
        ("xDelete", _Delete),
        *((name, c.c_void_p) for name in (
            "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose", "xRandomness", "xSleep",
            "xCurrentTime", "xGetLastError", "xCurrentTimeInt64", "xSetSystemCall", "xGetSystemCall", "xNextSystemCall",
        )),
    ]  # fmt: skip


class Vfs:
    """The default VFS of this process, from `install` to `remove`.

    Args:
        files: Is asked about each operation, on the thread of the connection that does it, many at a time.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._library = _library()
        self._default: int = self._library.sqlite3_vfs_find(None)
        self._real = _Methods.from_address(self._default)
        self._open: dict[int, tuple[str, _FileMethods]] = {}
        self._tables: dict[int, tuple[_FileMethods, _FileMethods]] = {}
        self._methods = _copy(self._real)
        self._methods.zName = self.name = b"ewe-%d-%d" % (os.getpid(), next(_names))
        self._methods.xOpen = _Open(_guarded(self._on_open))
        self._methods.xDelete = _Delete(_guarded(self._on_delete))
        _kept.append(self)

    def install(self) -> None:
        """Have SQLite open files by this VFS.

        Raises:
            StorageUnavailableError: The library that was found is not the one that `sqlite3` calls.
        """
        self._library.sqlite3_vfs_register(c.byref(self._methods), 1)
        try:
            sqlite3.connect(f"file::memory:?vfs={self.name.decode()}", uri=True).close()
        except sqlite3.Error as error:
            self.remove()
            raise StorageUnavailableError(_UNREACHABLE) from error

    def remove(self) -> None:
        """Have SQLite open files by its own VFS again. Files that are open stay with this one."""
        self._library.sqlite3_vfs_unregister(c.byref(self._methods))
        self._library.sqlite3_vfs_register(c.c_void_p(self._default), 1)

    def _on_open(self, _: int, name: int | None, file: int, flags: int, out: Any) -> int:
        path = os.path.realpath(os.fsdecode(c.string_at(name))) if name else ""
        created = bool(path and flags & _OPEN_CREATE and not Path(path).exists())
        # The first field of an open file points to its methods; one that could not be opened has none to be called.
        slot = c.c_void_p.from_address(file)
        slot.value = 0
        refused = self._files.create(path) if created else 0
        if refused:
            return refused
        result = self._real.xOpen(c.addressof(self._methods), name, file, flags, out)
        syncs_folder = created and bool(flags & _OPEN_SYNCS_FOLDER)
        if result or not path or not slot.value:
            return int(result)
        if self._files.opened(path, created=created, syncs_folder=syncs_folder):
            real, ours = self._table(slot.value)
            self._open[file] = path, real
            slot.value = c.addressof(ours)
        return 0

    def _table(self, address: int) -> tuple[_FileMethods, _FileMethods]:
        """SQLite's methods of a file, and ours."""
        if address not in self._tables:
            real = _FileMethods.from_address(address)
            ours = _copy(real)
            ours.xClose = _Close(_guarded(self._on_close))
            ours.xWrite = _Write(_guarded(self._on_write))
            ours.xTruncate = _Truncate(_guarded(self._on_truncate))
            ours.xSync = _Sync(_guarded(self._on_sync))
            self._tables[address] = real, ours
        return self._tables[address]

    def _on_close(self, file: int) -> int:
        _, real = self._open.pop(file)
        return int(real.xClose(file))

    def _on_write(self, file: int, data: int, size: int, offset: int) -> int:
        path, real = self._open[file]

        def through(some: bytes) -> int:
            return int(real.xWrite(file, some, len(some), offset))

        return self._files.write(path, offset, c.string_at(data, size), through)

    def _on_truncate(self, file: int, size: int) -> int:
        path, real = self._open[file]
        return self._files.truncate(path, size, lambda: int(real.xTruncate(file, size)))

    def _on_sync(self, file: int, _: int) -> int:
        return self._files.sync(self._open[file][0])

    def _on_delete(self, _: int, name: bytes, sync_folder: int) -> int:
        def through() -> int:
            return int(self._real.xDelete(c.addressof(self._methods), name, 0))

        return self._files.delete(os.path.realpath(os.fsdecode(name)), through, sync_folder=bool(sync_folder))


def _guarded(function: Callable[..., int]) -> Callable[..., int]:
    """What C calls must not raise: ctypes would print that, and answer anything."""

    def call(*args: Any) -> int:
        try:
            return function(*args)
        except Exception:  # noqa: BLE001 - told by the hook, and to SQLite as an error of the disk
            sys.excepthook(*sys.exc_info())
            return _IOERR

    return call


def _copy(table: Any) -> Any:
    return type(table).from_buffer_copy(table)


_UNREACHABLE: Final = (
    "the SQLite of this interpreter cannot be reached: it is linked into the interpreter without its symbols; "
    "use a Python whose _sqlite3 module is linked to a shared SQLite"
)


def _candidates() -> Iterator[str | None]:
    file = getattr(_sqlite3, "__file__", None)
    if file is not None:
        yield file  # a look for a name goes on in the libraries that this one is linked to
        yield str(Path(file).with_name("sqlite3.dll"))  # where it does not
    yield None  # the interpreter itself


def _library() -> c.CDLL:
    """The library that `sqlite3` calls."""
    for candidate in _candidates():
        try:
            library = c.CDLL(candidate)
            library.sqlite3_vfs_find.restype = c.c_void_p
            library.sqlite3_vfs_find.argtypes = [c.c_char_p]
            library.sqlite3_vfs_register.argtypes = [c.c_void_p, c.c_int]
            library.sqlite3_vfs_unregister.argtypes = [c.c_void_p]
        except (OSError, AttributeError, TypeError):
            continue
        else:
            return library
    raise StorageUnavailableError(_UNREACHABLE)
