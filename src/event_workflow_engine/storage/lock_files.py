"""Files that are open for their locks. A forked child lets go of them: else it would keep them when its parent is dead.

A lock by ``flock`` belongs to the open file, and a child that is forked without another program, as `multiprocessing`
does it, shares that. So the lock of a killed process would last as long as any child of it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

__all__ = ["close_lock_file", "open_lock_file", "was_open_at_fork"]

_open: Final[set[int]] = set()
_open_at_fork: Final[set[tuple[int, int]]] = set()  # by device and number


def open_lock_file(path: str | Path, mode: int) -> int:
    """The descriptor of a file for locking; made when absent.

    Raises:
        OSError: It cannot be created or opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), mode)
    _open.add(descriptor)
    return descriptor


def close_lock_file(descriptor: int) -> None:
    """Close it, and with it its lock. In a forked child, which has closed it by then, it does nothing."""
    if descriptor in _open:
        _open.remove(descriptor)
        os.close(descriptor)


def was_open_at_fork(path: str | Path) -> bool:
    """Whether a process had that file open for its locks when it forked this one."""
    with contextlib.suppress(OSError):
        file = Path(path).stat()
        return (file.st_dev, file.st_ino) in _open_at_fork
    return False


def _let_go() -> None:
    while _open:
        descriptor = _open.pop()
        with contextlib.suppress(OSError):
            file = os.fstat(descriptor)
            _open_at_fork.add((file.st_dev, file.st_ino))
            os.close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
