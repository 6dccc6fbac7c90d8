"""Measurements that take several processes: starting them, and hearing from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

ROOT = Path(__file__).resolve().parent.parent


def children(call: str, folder: Path, sizes: list[dict[str, Any]], stack: ExitStack) -> list[subprocess.Popen[str]]:
    """A process for each of the sizes, that runs a measurement's part."""
    command = [sys.executable, "-m", "benchmarks.child", call, str(folder)]
    return [
        stack.enter_context(
            subprocess.Popen(
                [*command, json.dumps(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
            )
        )
        for each in sizes
    ]


def lines(of: list[subprocess.Popen[str]]) -> Iterator[str]:
    """The next line of each of them."""
    for child in of:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
