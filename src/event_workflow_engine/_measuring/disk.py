"""What a disk gives: bytes forced onto it, one write after another, with no database in between."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from event_workflow_engine._measuring.timing import in_turn
from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from event_workflow_engine._measuring.timing import Taken

__all__ = ["forced_writes", "fsync"]

_BLOCK = 4096


def fsync(folder: Path, *, seconds: float = 0.5) -> dict[str, float]:
    """``fsync`` and, where there is one, ``fdatasync`` of 4 KiB written behind the last: how many a second."""
    return {f"{name}_per_s": taken.per_s for name, taken in forced_writes(folder, seconds=seconds).items()}


def forced_writes(folder: Path, *, seconds: float) -> dict[str, Taken]:
    """How long each took, by the name of the call.

    Raises:
        StorageUnavailableError: The disk does not take it.
    """
    forces: dict[str, Callable[[int], None]] = {"fsync": os.fsync}
    if hasattr(os, "fdatasync"):  # neither macOS nor Windows has it
        forces["fdatasync"] = os.fdatasync
    try:
        return {name: _forced(folder / name, force, seconds) for name, force in forces.items()}
    except OSError as error:
        what = error.strerror or error
        raise StorageUnavailableError(f"{folder}: {what}: check the room on the disk, and its mount") from error


def _forced(path: Path, force: Callable[[int], None], seconds: float) -> Taken:
    block = os.urandom(_BLOCK)
    with path.open("wb", buffering=0) as file:

        async def write(_: int) -> None:
            file.write(block)
            force(file.fileno())

        return asyncio.run(in_turn(write, seconds=seconds))
