"""``python -m event_workflow_engine.testing.simulation``: run many seeds, and make what breaks small."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from event_workflow_engine.testing.simulation.drawing import plan_of
from event_workflow_engine.testing.simulation.plan import Plan
from event_workflow_engine.testing.simulation.shrinking import shrink
from event_workflow_engine.testing.simulation.world import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from event_workflow_engine.testing.simulation.world import Report

_SHARE = 10
"""Seeds that a process is given at a time."""

_PROGRAM = "python -m event_workflow_engine.testing.simulation"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns how many seeds broke something, 100 at most: the exit status."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description="Simulate clusters of workers, one for each seed.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run them (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--plan", type=Path, help="run a plan that was printed before, from a file")
    given = parser.parse_args(arguments)
    if given.plan is not None:
        return _one(msgspec.json.decode(given.plan.read_bytes(), type=Plan), smaller=False)
    if given.seed is not None:
        return _one(plan_of(given.seed), smaller=True)
    return _many(given.first, given.seeds, given.jobs)


def _one(plan: Plan, *, smaller: bool) -> int:
    report = run(plan)
    for broken in report.broken:
        print(broken)
    print(f"seed {plan.seed}: {_told(report)}, digest {report.digest}")
    if report.broken and smaller:
        found = shrink(plan, lambda one: bool(run(one).broken))
        print(f"the smallest of {found.tried} plans that breaks something (--plan FILE runs it again):")
        print(msgspec.json.encode(found.plan).decode())
        for broken in run(found.plan).broken:
            print(broken)
    return min(1, len(report.broken))


def _told(report: Report) -> str:
    state = "broken" if report.broken else "held"
    return f"{state}, {report.turns:,} turns, {report.seconds:,.0f} simulated seconds, {report.crashes} kills"


def _share(seeds: range) -> list[tuple[int, Report]]:
    return [(seed, run(plan_of(seed))) for seed in seeds]


def _reports(first: int, seeds: int, jobs: int) -> Iterator[tuple[int, Report]]:
    shares = [range(n, min(n + _SHARE, first + seeds)) for n in range(first, first + seeds, _SHARE)]
    if jobs == 1:
        for share in shares:
            yield from _share(share)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in pool.map(_share, shares):
            yield from done


def _many(first: int, seeds: int, jobs: int) -> int:
    began, seconds, kills, bad = time.monotonic(), 0.0, 0, list[int]()
    for seed, report in _reports(first, seeds, jobs):
        seconds += report.seconds
        kills += report.crashes
        if report.broken:
            bad.append(seed)
            print(f"seed {seed}: {report.broken[0]}\n  again, and made smaller: {_PROGRAM} --seed {seed}", flush=True)
    took = time.monotonic() - began
    print(
        f"seeds {first} to {first + seeds - 1}: {len(bad)} broken; {took:.1f} s, {seeds / took:.0f} seeds/s; "
        f"{seconds / 3600:,.1f} simulated hours, {kills:,} kills"
    )
    return min(100, len(bad))


if __name__ == "__main__":
    sys.exit(main())
