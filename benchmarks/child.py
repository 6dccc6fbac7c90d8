"""Runs one measurement in this process and prints its figures as one line of JSON.

``python -m benchmarks.child limits:fsync FOLDER '{"seconds": 0.5}' [--profile FILE]``
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
from pathlib import Path


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("measurement", help="module:function below benchmarks")
    parser.add_argument("folder", type=Path, help="an empty folder on the disk under test")
    parser.add_argument("sizes", nargs="?", default="{}", help="keyword arguments as JSON")
    parser.add_argument("--profile", type=Path, help="write a cProfile of the calling thread here")
    arguments = parser.parse_args()
    module, _, function = arguments.measurement.partition(":")
    measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    profile = cProfile.Profile() if arguments.profile else None
    sizes = json.loads(arguments.sizes)
    figures = profile.runcall(measure, arguments.folder, **sizes) if profile else measure(arguments.folder, **sizes)
    if profile:
        profile.dump_stats(arguments.profile)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
