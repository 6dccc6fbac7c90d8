"""Run the mutants: ``python -m mutants [--only planner] [--show]``.

The exit code is 1 where one lives that README.md does not explain.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

from mutants import child, tool
from mutants.plan import TARGETS, Target

ROOT = Path(__file__).resolve().parent.parent
README = Path(__file__).resolve().parent / "README.md"
# What every child would load again; nothing of the package.
PRELOADED = ("asyncio", "asyncpg", "cronsim", "hypothesis.strategies", "msgspec", "pytest_asyncio", "sqlite3")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    options = _options(arguments)
    tool.ensure()
    for name in PRELOADED:
        importlib.import_module(name)
    known = README.read_text(encoding="utf-8")
    new = 0
    for target in TARGETS:
        if not options.only or target.module.endswith(tuple(options.only.split(","))):
            new += _run(target, known, show=options.show)
    return 1 if new else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--only", help="modules, parted by commas")
    parser.add_argument("--show", action="store_true", help="tell every mutant, not only those that live")
    return parser.parse_args(arguments)


def _run(target: Target, known: str, *, show: bool) -> int:
    """All mutants of a module; how many live that the README does not know."""
    begun = perf_counter()
    code, said = child.run(target.tests)
    if code != child.PASSED:
        raise SystemExit(f"{target.module}: its tests fail without a mutant, so they would tell nothing:\n{said}")
    if child.run(target.tests, target.module, "raise RuntimeError('planted')")[0] == child.PASSED:
        raise SystemExit(f"{target.module}: its tests do not run what is mutated")
    counts: Counter[str] = Counter()
    new = 0
    for mutant in tool.mutants_of((ROOT / target.path).read_text(encoding="utf-8")):
        code, _ = child.run(target.tests, target.module, mutant.code)
        what = {child.PASSED: "lives", child.HUNG: "hangs"}.get(code, "dies")
        counts[what] += 1
        told = f"`{mutant.became}`"
        if what == "lives":
            is_known = f"`{target.module}` {mutant.operator}: {told}" in known
            counts["explained"] += is_known
            new += not is_known
        if show or what == "lives":
            print(f"{what}: {target.module}:{mutant.line} {mutant.operator}: `{mutant.was}` -> {told}", flush=True)
    alive = f"{counts['lives']} live, of which README.md explains {counts['explained']}"
    seen = f"{counts['dies']} die, {counts['hangs']} hang"
    print(f"{target.module}: {counts['dies'] + counts['hangs'] + counts['lives']} mutants: {seen}, {alive}; "
          f"{perf_counter() - begun:.0f} s", flush=True)  # fmt: skip
    return new


if __name__ == "__main__":
    sys.exit(main())
