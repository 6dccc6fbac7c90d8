"""What it costs to import the library, in a fresh interpreter, and to import what it cannot do without.

Each function is one measurement (see `benchmarks.child`). The least of several counts: another process may hold the
core during one, but hardly during all.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROBE = "import time; begun = time.perf_counter(); import {}; print((time.perf_counter() - begun) * 1000)"


def core(folder: Path, *, runs: int = 7) -> dict[str, float]:
    """``import event_workflow_engine``."""
    del folder
    return {"import_ms": _least("event_workflow_engine", runs)}


def bare(folder: Path, *, runs: int = 7) -> dict[str, float]:
    """``import asyncio, sqlite3, msgspec``: the least that its main parts need."""
    del folder
    return {"import_ms": _least("asyncio, sqlite3, msgspec", runs)}


def _least(what: str, runs: int) -> float:
    # -I: without this process's variables and folder, as a user's program starts.
    command = [sys.executable, "-I", "-c", PROBE.format(what)]
    return min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(runs))
