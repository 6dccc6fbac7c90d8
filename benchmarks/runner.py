"""Runs the plan: every measurement in a fresh process on a fresh file, its raw limit right before and after it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import peer_environment
from benchmarks.machine import ROOT
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.plan import Job, Probe

Figures = dict[str, float]
HERE = Path(__file__).resolve().parent
PATIENCE = 300.0
"""Seconds after which a measurement counts as failed."""


class MeasurementError(Exception):
    """A measurement's process failed; the message holds the end of what it said."""


@dataclass
class Measured:
    """What a job's runs gave.

    Attributes:
        ours: Medians.
        runs: Each run's own figures.
        limit: Medians of the raw limit's runs.
        shares: By figure of the limit and of ours, ours over the mean of the limit right before and after, the median.
        peers: By peer, medians.
        errors: What failed, in words.
    """

    ours: Figures = field(default_factory=dict)
    runs: list[Figures] = field(default_factory=list)
    limit: Figures = field(default_factory=dict)
    limit_runs: list[Figures] = field(default_factory=list)
    peers: dict[str, Figures] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def share(self, figure: str, limit_figure: str) -> float | None:
        """Ours over the mean of the limit's runs right before and after it; the median of all runs."""
        shares = [
            run[figure] / statistics.mean((self.limit_runs[n][limit_figure], self.limit_runs[n + 1][limit_figure]))
            for n, run in enumerate(self.runs)
            if n + 1 < len(self.limit_runs)
        ]
        return statistics.median(shares) if shares else None


class Runner:
    """Runs probes and jobs.

    Attributes:
        quick: Tiny sizes, one repetition: to see that everything works.
        repeat: Overrides each probe's own number of repetitions.
    """

    def __init__(self, *, quick: bool, repeat: int | None, folder: Path, say: Callable[[str], None]) -> None:
        self.quick = quick
        self.repeat = repeat
        self._folder = folder
        folder.chmod(0o755)  # the servers of root's runs are another user's
        self._say = say
        self._peer_figures: dict[str, Figures] = {}

    def probe(self, probe: Probe) -> Figures:
        """Run it once."""
        sizes = probe.sizes | (probe.quick if self.quick else {})
        if probe.peer:
            script, _, function = probe.call.partition(":")
            command = [str(peer_environment.PYTHON), str(HERE / "peers" / f"{script}.py"), function]
        else:
            command = [sys.executable, "-m", "benchmarks.child", probe.call]
        self._say(f"{probe.call} {json.dumps(sizes)}")
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="bench-", dir=self._folder, ignore_cleanup_errors=True)
            folder = stack.enter_context(made)
            if probe.server:
                sizes = {**sizes, "url": stack.enter_context(PostgresServer(folder=self._folder)).url()}
            return _run([*command, folder, json.dumps(sizes)])

    def median(self, probe: Probe) -> Figures:
        """Run it as often as it asks for; the median of each figure."""
        return medians([self.probe(probe) for _ in range(self._times(probe))])

    def job(self, job: Job, *, peers: bool) -> Measured:
        """Limit, ours, limit, ours, …, limit; then the peers. A failure is noted and the rest goes on."""
        measured = Measured()
        try:
            for _ in range(self._times(job.ours)):
                if job.limit:
                    measured.limit_runs.append(self.probe(job.limit))
                measured.runs.append(self.probe(job.ours))
            if job.limit:
                measured.limit_runs.append(self.probe(job.limit))
        except MeasurementError as error:
            measured.errors.append(f"{job.ours.call}: {error}")
        measured.ours, measured.limit = medians(measured.runs), medians(measured.limit_runs)
        for name, probe in job.peers.items() if peers else ():
            try:
                measured.peers[name] = self._peer(probe)
            except MeasurementError as error:
                measured.errors.append(f"{name}: {error}")
        return measured

    def _peer(self, probe: Probe) -> Figures:
        """Peers that stand beside several jobs run once."""
        key = json.dumps([probe.call, probe.sizes])
        if key not in self._peer_figures:
            self._peer_figures[key] = self.median(probe)
        return self._peer_figures[key]

    def _times(self, probe: Probe) -> int:
        return 1 if self.quick else self.repeat or probe.repeat


def medians(runs: list[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} if runs else {}


def _run(command: list[str]) -> Figures:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"not finished after {PATIENCE:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise MeasurementError("\n".join(done.stderr.strip().splitlines()[-40:]) or f"exit code {done.returncode}")
    figures: Figures = json.loads(lines[-1])
    return figures
