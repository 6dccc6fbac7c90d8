"""Several processes on one SQLite file: a worker is killed at any operation beside another, which ends its saga."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from tests.crash.ground import Ground, check_end
from tests.crash.killing import WorkerFactory
from tests.crash.sagas import CASES, LEDGER
from tests.crash.worker import run

from event_workflow_engine import EngineConfig, WorkflowEngine

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guarantees.recording import Tally

SOME = 4

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.crash.worker")
    yield made
    made.close()


class Beside:
    """A second worker at the file, in the process of the test."""

    def __init__(self, factory: WorkerFactory, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._factory = factory
        self._folder = folder
        self._patch = patch

    async def kill(self, case: str, when: str, some: random.Random | None = None) -> tuple[int, int]:
        """Kill the first worker of a saga at each of the operations of that kind, or at some; how many were tried, and killed."""
        code, whole = Ground(self._factory, self._folder / f"whole-{when}", case, "").run()
        assert code == 0
        points = list(range(1, whole["counts"][when] + 1))
        chosen = points if some is None else some.sample(points, min(SOME, len(points)))
        kills = 0
        for at in chosen:
            ground = Ground(self._factory, self._folder / f"{when}-{at}", case, "")
            ground.ledger.parent.mkdir()
            self._patch.setenv(LEDGER, str(ground.ledger))
            engine = WorkflowEngine(ground.url, config=EngineConfig(threads=2))
            engine.register(CASES[case][0])
            async with engine:
                code, _ = await asyncio.to_thread(ground.run, when, at)
                assert code in (0, -signal.SIGKILL)
                killed = code != 0
                # Whoever asked it asks the one that is left; where it had accepted the saga, this is that saga.
                ended = await asyncio.wait_for(run(engine, case), 20)
            await check_end(ground, ended, whole, killed)
            kills += killed
        return len(chosen), kills


@pytest.fixture
def beside(factory: WorkerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    return Beside(factory, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.proves("killed", "handed-over", store="sqlite-shared")
async def test_a_saga_whose_worker_is_killed_is_ended_by_the_one_beside(
    beside: Beside, case: str, rng: random.Random, tally: Tally
) -> None:
    for when in ("before", "behind"):
        tried, kills = await beside.kill(case, when, rng)
        tally.count(runs=1 + tried, kills=kills)
        assert kills >= tried - 2, "the last operations are those of leaving"


@pytest.mark.proves("transactional", store="sqlite-shared")
async def test_a_worker_killed_within_a_transactional_step_lets_go_of_the_file(beside: Beside, tally: Tally) -> None:
    """It dies with the file's locks; what it wrote is there once, and the saga's result says how often."""
    tried, kills = await beside.kill("transactional", "within")
    tally.count(runs=1 + tried, kills=kills)
    assert kills == tried
