"""Files that are open for their locks. A forked child lets go of them: else it would keep them when its parent is dead.

A lock by ``flock`` belongs to the open file, and a child that is forked without another program, as `multiprocessing`
does it, shares that. So the lock of a killed process would last as long as any child of it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["close_lock_file", "open_lock_file"]

_open: Final[set[int]] = set()


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


def _let_go() -> None:
    while _open:
        with contextlib.suppress(OSError):
            os.close(_open.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
