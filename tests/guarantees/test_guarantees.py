"""The page of guarantees says what was run, and only that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.guarantees.matrix import ROWS, STORES
from tests.guarantees.page import page
from tests.guarantees.recording import ROOT, Recorder, Tally, cells_of, is_there, write

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "explanation" / "guarantees.md"
SEED = 7
HERE = "tests/guarantees/test_guarantees.py"


def test_the_page_is_what_the_generator_makes_of_the_recorded_runs() -> None:
    data = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(data), "run make guarantees instead of editing the page"


def test_the_page_names_only_promises_stores_and_tests_that_exist() -> None:
    tests = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))["tests"]
    assert {nodeid for nodeid in tests if not is_there(nodeid)} == set()
    cells = {tuple(cell) for entry in tests.values() for cell in entry["cells"]}
    assert {(row, store) for row, store in cells if row not in ROWS or store not in STORES} == set()
    assert {(row, store) for row, store in cells if store in ROWS[row].apart} == set(), "said to have nothing to try"


class Runs:
    """Test processes that report, as pytest has it."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._hook = request.config.hook
        self._config = request.config
        self.recorder = Recorder(SEED)

    def report(self, nodeid: str, when: Any = "call", *, passed: bool = True, **counts: int) -> None:
        tally = Tally()
        tally.count(**counts)
        proof = {"cells": [["killed", "sqlite"]], "long": False, "counts": tally.counts if counts else {}}
        report = pytest.TestReport(
            nodeid, (HERE, 1, "test"), {}, "passed" if passed else "failed", None, when,
            user_properties=[("proof", proof)],
        )  # fmt: skip
        sent = json.loads(json.dumps(self._hook.pytest_report_to_serializable(config=self._config, report=report)))
        back = self._hook.pytest_report_from_serializable(config=self._config, data=sent)
        self.recorder.pytest_runtest_logreport(back)

    def written(self, to: Path) -> str:
        write(to, self.recorder.ran)
        return next(
            line
            for line in to.read_text(encoding="utf-8").splitlines()
            if line.startswith("| [A worker is killed (SIGKILL) before")
        )


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Runs:
    return Runs(request)


NAME = f"{HERE}::test_what_tests_did_is_summed_by_promise_and_store"
OTHER = f"{HERE}::test_a_failure_is_shown"


def test_what_tests_did_is_summed_by_promise_and_store(runs: Runs, tmp_path: Path) -> None:
    runs.report(f"{NAME}[a]", runs=3, faults=2)
    runs.report(f"{NAME}[b]", runs=1000, faults=1, seeds=5)
    runs.report(OTHER)
    line = runs.written(tmp_path / "page.md")
    assert "| **held**: 1,004 runs, 3 faults, 5 seeds | not tested | not tested | not tested |" in line
    assert f'`make test SEED=7 ARGS="{NAME}"`' in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_many_tests_of_one_file_share_a_line_and_kills_are_counted_without_the_long_ones(
    runs: Runs, tmp_path: Path
) -> None:
    for n in range(5):
        runs.report(f"{HERE}::test_a_{n}", runs=2, kills=3)
    runs.recorder.ran[f"{HERE}::test_a_4"]["long"] = True
    line = runs.written(tmp_path / "page.md")
    assert "| **held**: 10 runs, 15 faults |" in line
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"| 4 tests (`{HERE}`): a 0; a 1; a 2; a 3 | 8 runs, 12 faults | held |" in page
    assert f"`make test SEED=7 ARGS=\"{HERE} -m 'proves and not long'\"`" in page
    assert f'`make test-long SEED=7 ARGS="{HERE}::test_a_4"`' in page
    assert "`make test` ends 12 processes at work with SIGKILL" in page


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_a_failure_is_shown(runs: Runs, tmp_path: Path, when: str) -> None:
    runs.report(f"{NAME}[a]")
    if when == "teardown":
        runs.report(f"{NAME}[b]")
    runs.report(f"{NAME}[b]", when, passed=False)
    assert "**broken** in 1 of 2 tests" in runs.written(tmp_path / "page.md")


def test_a_partial_run_leaves_the_rest_as_it_was(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    first, second = Runs(request), Runs(request)
    first.report(f"{NAME}[a]", runs=5)
    first.report(f"{NAME}[gone by the next seed]", runs=5)
    first.report(OTHER, runs=10)
    first.report(f"{HERE}::test_that_is_no_more", runs=100)
    assert "120 runs" in first.written(tmp_path / "page.md")
    second.report(f"{NAME}[a]", runs=1)
    assert "11 runs" in second.written(tmp_path / "page.md")


def test_a_marker_that_names_no_cell_is_refused() -> None:
    class Item:
        nodeid = "x"

        def iter_markers(self, _: str) -> list[pytest.Mark]:
            return [pytest.mark.proves("no such row", store="sqlite").mark]

    with pytest.raises(pytest.UsageError, match="no such row"):
        cells_of(Item())  # type: ignore[arg-type]
