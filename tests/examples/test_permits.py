"""The permit log as sagas, with a worker that is killed on the way: every count is exact at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.guarantees.recording import Tally

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "permits"

# Published with the log.
KNOWN = {"events": 8_577, "cases": 1_434, "variants": 116}
KNOWN_ACTIVITIES = {
    "Confirmation of receipt": 1_434,
    "T06 Determine necessity of stop advice": 1_416,
    "T02 Check confirmation of receipt": 1_368,
    "T10 Determine necessity to stop indication": 1_283,
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "EWE_DATA" or "EWE_DATA" in environment}
    return subprocess.run(
        [sys.executable, str(FOLDER / "replay.py"), *arguments],
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("EWE_DATA", raising=False)
    import replay

    yield replay
    for name in ("replay", "permits"):
        sys.modules.pop(name, None)


def log_is_here() -> bool:
    named = os.environ.get("EWE_DATA")
    place = Path(named) if named else ROOT.parent / "shared" / "data"
    return (place if place.is_file() else place / "permit_receipts.csv.gz").is_file()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.proves("killed", "projected-once", store="sqlite")
def test_the_projections_equal_the_known_facts_though_the_worker_was_killed_six_times(tally: Tally) -> None:
    """Without the log the sample is replayed, against what a plain loop counts in it."""
    own = {"EWE_DATA": os.environ["EWE_DATA"]} if "EWE_DATA" in os.environ else {}
    ended = run("--json", **own)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    done: dict[str, Any] = json.loads(ended.stdout)
    assert done["differences"] == []
    assert len(done["kills"]) >= 5
    tally.count(runs=1, kills=len(done["kills"]))
    assert len({kill["pid"] for kill in done["kills"]}) == len(done["kills"])
    assert sum(kill["cases_under_way"] for kill in done["kills"]) > 0, "the kills cut nothing off"
    if log_is_here():
        assert {name: done[name] for name in KNOWN} == KNOWN
        assert len(done["activities"]) == 27
        assert {name: done["activities"][name] for name in KNOWN_ACTIVITIES} == KNOWN_ACTIVITIES
        assert sum(done["activities"].values()) == KNOWN["events"]
        assert all(kill["cases_under_way"] > 0 for kill in done["kills"])
        assert done["steps_run_again"] > 0
    else:
        assert "built-in sample" in done["source"]


def test_a_name_that_leads_nowhere_is_told_and_nothing_is_replayed(tmp_path: Path) -> None:
    ended = run(EWE_DATA=str(tmp_path / "gone.csv.gz"))
    assert ended.returncode == 1
    assert "EWE_DATA" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_without_the_log_a_sample_stands_in_and_says_so(
    replay: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    permits = sys.modules["permits"]
    monkeypatch.setattr(permits, "BESIDE_THE_PROJECT", tmp_path / "gone.csv.gz")
    cases, source = permits.read_log()
    assert "built-in sample" in source
    assert "EWE_DATA" in source
    facts = permits.facts_of(cases)
    assert (facts.cases, len(facts.variants)) == (240, 3)
    assert facts.events == sum(facts.activities.values()) == 80 * (1 + 3 + 8)


def test_a_single_count_that_differs_is_found(replay: ModuleType) -> None:
    permits = sys.modules["permits"]
    facts = permits.facts_of(permits.sample())
    wrong = {**facts.activities, "Confirmation of receipt": 239}
    done = replay.Replay("here", facts, permits.Facts(facts.events - 1, facts.cases, wrong, facts.variants))
    assert [difference.partition(":")[0] for difference in done.differences()] == ["events", "activities"]
    assert replay.Replay("here", facts, facts).differences() == []
