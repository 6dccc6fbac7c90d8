"""Measure, print the table, write the results: ``python -m benchmarks [--quick] [--peers] [--only steps,append]``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, peer_environment, report
from benchmarks.plan import JOBS, LIMITS, ROWS
from benchmarks.runner import Figures, Measured, MeasurementError, Runner

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORK = HERE / ".work"
PEERS = "peers"
"""Name of the results of the last run with peers; other runs show their peers' figures."""


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; 1 when a row is below what it must reach."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    jobs = _chosen(options.only)
    if options.peers:
        console.print("Preparing the peers' environment …", style="dim")
        peer_environment.ensure()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=options.folder))
    runner = Runner(
        quick=options.quick,
        repeat=options.repeat,
        folder=folder,
        say=lambda text: console.print(text, style="dim", markup=False, highlight=False),
    )
    limits = {} if options.only and not options.limits else _limits(runner)
    measured = {name: runner.job(JOBS[name], peers=options.peers) for name in jobs}
    shutil.rmtree(folder, ignore_errors=True)
    peers_from = None if options.peers else _recorded_peers(measured)
    rows = [report.as_json(row, measured[row.job]) for row in ROWS if row.job in measured]
    results = {
        "command": "python -m benchmarks " + " ".join(arguments if arguments is not None else sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": machine.revision(),
        "machine": machine.facts(),
        "peer_versions": peer_environment.versions(),
        "peers_measured": options.peers,
        "quick": options.quick,
        "limits": limits,
        "rows": rows,
        "runs": {name: asdict(value) for name, value in measured.items()},
    }
    _show(console, limits, rows, measured, peers_from)
    if name := _name(options):
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / f"{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        console.print(f"Written: {name}.json", style="dim")
    return 0 if all(row["holds"] for row in rows) or options.quick else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="jobs, parted by commas: " + ", ".join(JOBS) + "; a prefix takes all that fit")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once each; the figures mean nothing")
    parser.add_argument("--peers", action="store_true", help="measure the peers too, installing them when absent")
    parser.add_argument("--limits", action="store_true", help="measure the raw limits also with --only")
    parser.add_argument("--repeat", type=int, help="how often each measurement runs (default: 1 to 5, as it says)")
    parser.add_argument("--name", help="results go to NAME.json; '' writes none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--folder", type=Path, default=WORK, help="where the database files are made, and removed")
    return parser.parse_args(arguments)


def _name(options: argparse.Namespace) -> str:
    if options.name is not None:
        return str(options.name)
    if options.quick or options.only:
        return ""
    return PEERS if options.peers else "latest"


def _chosen(only: str | None) -> list[str]:
    if not only:
        return list(JOBS)
    wanted = only.split(",")
    unknown = [word for word in wanted if not any(name.startswith(word) for name in JOBS)]
    if unknown:
        raise SystemExit(f"no such job: {', '.join(unknown)}; there are {', '.join(JOBS)}")
    return [name for name in JOBS if any(name.startswith(word) for word in wanted)]


def _limits(runner: Runner) -> dict[str, Figures]:
    found = {}
    for probe in LIMITS:
        sizes = ", ".join(f"{key}={value}" for key, value in probe.sizes.items())
        name = probe.call.partition(":")[2] + (f" ({sizes})" if sizes else "")
        try:
            found[name] = runner.median(probe)
        except MeasurementError as error:
            raise SystemExit(f"{name}: {error}") from error
    return found


def _recorded_peers(measured: dict[str, Measured]) -> str | None:
    """Put the peers' figures of the last run that measured them beside ours; where they are from."""
    path = RESULTS / f"{PEERS}.json"
    if not path.exists():
        return "Peers: not measured; run with --peers."
    recorded: dict[str, Any] = json.loads(path.read_text())
    for name, value in measured.items():
        value.peers = recorded["runs"].get(name, {}).get("peers", {})
    return f"Peers: measured {recorded['date']} on {recorded['machine']['processor']}, not in this run (--peers)."


def _show(
    console: Console,
    limits: dict[str, Figures],
    rows: list[dict[str, Any]],
    measured: dict[str, Measured],
    peers_from: str | None,
) -> None:
    if limits:
        console.print(report.limits_table(limits))
    console.print(report.table(rows, peers_from=peers_from))
    for name, value in measured.items():
        for error in value.errors:
            console.print(f"{name}: {error}", style="red", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
