"""Whole clusters, one for each seed: the promises hold in all of them, and a simulation without them would be seen."""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.conftest import SEED
from tests.simulation.planted import PLANTED, SEEN_AT

from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.testing.simulation.__main__ import main
from event_workflow_engine.testing.simulation.drawing import plan_of
from event_workflow_engine.testing.simulation.plan import Plan
from event_workflow_engine.testing.simulation.shrinking import shrink
from event_workflow_engine.testing.simulation.world import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.guarantees.recording import Tally

# With every change the same seeds, so that what fails is the change; others, by the run's own seed, in the long run.
SHARES = 10
EACH = 50
LONG_EACH = 2_000
WITHIN = 2_000

PROVES = pytest.mark.proves(
    "killed", "handed-over", "frozen", "doubt", "store-errors", "partition", "clock", "compensation",
    "database-killed",
    "one-winner",  # the slots of schedules, which all workers want
    "no-gap",  # commits overtake one another on their way to the server, bells are late and reads have no answer
    "projected-once",
    store="simulated",
)  # fmt: skip

OF_ALL = """
from event_workflow_engine.testing.simulation.drawing import plan_of
from event_workflow_engine.testing.simulation.world import run
print([run(plan_of(seed)).digest for seed in range(20)])
"""


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: what is left of killed workers is not collected in the middle of another test."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def broken(seeds: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """What breaks: ``python -m event_workflow_engine.testing.simulation --seed N`` runs one again and makes it small."""
    found = {}
    for seed in seeds:
        report = run(plan_of(seed))
        if report.broken:
            found[seed] = report.broken
    return found


def shares(first: int, each: int) -> list[range]:
    return [range(n, n + each) for n in range(first, first + SHARES * each, each)]


@pytest.mark.parametrize("seeds", shares(0, EACH), ids=str)
@PROVES
def test_every_promise_holds(apart: ProcessPoolExecutor, seeds: range, tally: Tally) -> None:
    tally.count(runs=len(seeds), seeds=len(seeds))
    assert apart.submit(broken, seeds).result() == {}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", shares(SEED, LONG_EACH), ids=str)
@PROVES
def test_every_promise_holds_in_many(apart: ProcessPoolExecutor, seeds: range, tally: Tally) -> None:
    tally.count(runs=len(seeds), seeds=len(seeds))
    assert apart.submit(broken, seeds).result() == {}


FOUND = sorted((Path(__file__).parent / "found").glob("*.json"))


def play(file: Path) -> tuple[str, ...]:
    return run(msgspec.json.decode(file.read_bytes(), type=Plan)).broken


@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.stem)
def test_what_was_found_is_mended(apart: ProcessPoolExecutor, file: Path) -> None:
    assert apart.submit(play, file).result() == ()


def digests(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ran = subprocess.run([sys.executable, "-c", OF_ALL], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    first = digests("1")
    assert first.count("'") == 40
    assert digests("2") == first


def engines() -> int:
    return sum(isinstance(one, WorkflowEngine) for one in gc.get_objects())


def engines_left(seeds: Iterable[int]) -> int:
    before = engines()
    for seed in seeds:
        run(plan_of(seed))
    return engines() - before


def test_engines_of_killed_processes_do_not_stay_in_memory(apart: ProcessPoolExecutor) -> None:
    assert apart.submit(engines_left, range(12)).result() <= 0


def finds(name: str) -> bool:
    seeds = chain([SEEN_AT[name]] if name in SEEN_AT else [], range(WITHIN))
    with pytest.MonkeyPatch.context() as patch:
        PLANTED[name](patch)
        return any(run(plan_of(seed)).broken for seed in seeds)


@pytest.mark.timeout(600)  # it takes that long only where the seeds have come to mean other plans
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(apart: ProcessPoolExecutor, name: str) -> None:
    assert apart.submit(finds, name).result()


def breaks(plan: Plan) -> bool:
    return bool(run(plan).broken)


def shrunk() -> tuple[Plan, bool]:
    """The smallest plan that shows a planted bug, and whether it does."""
    with pytest.MonkeyPatch.context() as patch:
        PLANTED["unknown_steps_are_not_undone"](patch)
        whole = next(plan for plan in map(plan_of, range(WITHIN)) if len(plan.sagas) > 1 and breaks(plan))
        small = shrink(whole, breaks).plan
        return small, breaks(small)


def test_what_breaks_is_made_small(apart: ProcessPoolExecutor) -> None:
    small, still_breaks = apart.submit(shrunk).result()
    assert still_breaks
    assert len(small.sagas) == 1
    assert small.faults == ()


def commanded(arguments: list[str], bug: str | None = None) -> tuple[int, str]:
    """What the command returns and says, where a bug is planted or not."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        if bug is not None:
            PLANTED[bug](patch)
        return main(arguments), said.getvalue()


def test_the_command_counts_what_broke_and_says_how_to_play_it_again(
    apart: ProcessPoolExecutor, tmp_path: Path
) -> None:
    status, said = apart.submit(commanded, ["--seeds", "4", "--first", "7", "--jobs", "2"]).result()
    assert status == 0
    assert "seeds 7 to 10: 0 broken" in said

    bug = "each_attempt_has_a_key_of_its_own"
    status, said = apart.submit(commanded, ["--seeds", "20"], bug).result()
    again = re.findall(r"simulation --seed (\d+)", said)
    assert 0 < status == len(again)

    status, said = apart.submit(commanded, ["--seed", again[0]], bug).result()
    (plan,) = (line for line in said.splitlines() if line.startswith("{"))
    kept = tmp_path / "plan.json"
    kept.write_text(plan)
    assert status == 1
    assert apart.submit(commanded, ["--plan", str(kept)], bug).result()[0] == 1
    assert apart.submit(commanded, ["--plan", str(kept)]).result()[0] == 0
