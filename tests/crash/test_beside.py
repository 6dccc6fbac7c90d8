"""Several processes on one SQLite file: a worker is killed at any operation beside another, which ends its saga."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.ground import Ground, check_end
from tests.crash.killing import WorkerFactory
from tests.crash.sagas import ALL, CASES, FAILING, LEDGER, bank
from tests.crash.worker import SAGA_ID, run

from event_workflow_engine import EngineConfig, WorkflowEngine, WorkflowState

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guarantees.recording import Tally

SOME = 2
COMPENSATED = {"status": WorkflowState.COMPENSATED}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.crash.worker")
    yield made
    made.close()


async def resumed(engine: WorkflowEngine) -> dict[str, Any]:
    """Have a rollback go on that stands, and see it to its end."""
    rang = asyncio.Event()
    remove = engine.storage.add_bell(rang.set)
    await engine.handle(SAGA_ID).resume()
    while await engine.handle(SAGA_ID).status() is not WorkflowState.COMPENSATED:
        await rang.wait()
        rang.clear()
    remove()
    return COMPENSATED


class Beside:
    """A second worker at the file, in the process of the test."""

    def __init__(self, factory: WorkerFactory, folder: Path, patch: pytest.MonkeyPatch, tally: Tally) -> None:
        self._factory = factory
        self._folder = folder
        self._patch = patch
        self._tally = tally

    async def kill(self, case: str, when: str, some: random.Random | None = None) -> None:
        """Kill the first worker of a saga at each of the operations of that kind, or at some."""
        code, whole = await Ground(self._factory, self._folder / f"whole-{when}", case, "").run()
        assert code == 0
        points = list(range(1, whole["counts"][when] + 1))
        # The last operations are those of leaving, and group commit may make a run shorter.
        chosen = points if some is None else some.sample(points[:-2], SOME)
        for at in chosen:
            ground = Ground(self._factory, self._folder / f"{when}-{at}", case, "")
            ground.ledger.parent.mkdir()
            self._patch.setenv(LEDGER, str(ground.ledger))
            engine = WorkflowEngine(ground.url, config=EngineConfig(threads=2))
            engine.register(ALL[case][0])
            async with engine:
                code, _ = await ground.run(when, at)
                assert code == -signal.SIGKILL
                # Whoever asked it asks the one that is left; where it had accepted the saga, this is that saga.
                async with asyncio.timeout(20):
                    ended = await run(engine, case)
                    if ended["status"] == WorkflowState.NEEDS_INTERVENTION:
                        assert whole["status"] == ended["status"]
                        bank(str(ground.ledger)).touch()
                        ended = await resumed(engine)
            await check_end(ground, ended, whole if ended["status"] == whole["status"] else COMPENSATED, kills=1)
        self._tally.count(runs=1 + len(chosen), kills=len(chosen))


@pytest.fixture
def beside(factory: WorkerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> Beside:
    return Beside(factory, tmp_path, monkeypatch, tally)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.proves("killed", "handed-over", store="sqlite-shared")
async def test_a_saga_whose_worker_is_killed_is_ended_by_the_one_beside(
    beside: Beside, case: str, rng: random.Random
) -> None:
    for when in ("before", "behind"):
        await beside.kill(case, when, rng)


@pytest.mark.parametrize("case", FAILING)
@pytest.mark.proves("compensation", store="sqlite-shared")
async def test_a_rollback_whose_worker_is_killed_is_ended_by_the_one_beside(
    beside: Beside, case: str, rng: random.Random
) -> None:
    """Steps are refused, time out or are cut off; one is undone only when somebody has seen to it that it can be."""
    await beside.kill(case, rng.choice(("before", "behind")), rng)


@pytest.mark.proves("transactional", store="sqlite-shared")
async def test_a_worker_killed_within_a_transactional_step_lets_go_of_the_file(beside: Beside) -> None:
    """It dies with the file's locks; what it wrote is there once, and the saga's result says how often."""
    await beside.kill("transactional", "within")
