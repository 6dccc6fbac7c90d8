"""The power goes at any moment: what callers were told is on disk, and every saga that was accepted ends, once."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.killing import WorkerFactory
from tests.crash.power_worker import APPENDS, SAGAS
from tests.crash.sagas import CASES, read
from tests.integration.postgres.test_soak import check

from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine.journal import saga_stream
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guarantees.recording import Tally


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.crash.power_worker")
    yield made
    made.close()


class Machine:
    """A folder with a store, what the world saw of its sagas, and what their callers were told."""

    def __init__(self, factory: WorkerFactory, place: Path) -> None:
        self._factory = factory
        self._place = place
        self.url = f"sqlite:///{place}/s.db"
        self.ledger = place / "ledger"
        self._told = place / "acknowledged"

    def run(self, seed: int, at: int = 0) -> tuple[int, dict[str, Any]]:
        return self._factory.run(self._place, at=at, seed=seed, ledger=str(self.ledger), acknowledged=str(self._told))

    async def check_acknowledged(self) -> None:
        """Before anybody writes again."""
        told = [line.split() for line in self._told.read_text().splitlines()] if self._told.exists() else []
        async with open_storage(self.url, auto_upgrade=True) as storage:
            stored = {record.id for record in await storage.read_log(limit=100_000)}
            for kind, name in told:
                there = name in stored if kind == "event" else await storage.head(saga_stream(name)) > 0
                assert there, f"{kind} {name} was acknowledged"

    async def check_ends(self, ended: dict[str, Any]) -> None:
        assert ended["events"] == 2 * APPENDS
        engine = WorkflowEngine(self.url, config=EngineConfig(worker=False))
        engine.register(*(saga for saga, _ in CASES.values()))
        async with engine:
            await check(engine, SAGAS, ended["states"], self.ledger)
        assert all(count <= 2 for count in Counter(read(self.ledger)).values()), "at most once more for one crash"


async def lose_power(factory: WorkerFactory, folder: Path, rng: random.Random, some: int, tally: Tally) -> int:
    """Lose it at so many moments; how often a worker was running."""
    whole = Machine(factory, folder / "whole")
    code, ended = whole.run(rng.randrange(2**32))
    assert code == 0
    await whole.check_ends(ended)
    losses = 0
    for at in sorted(rng.sample(range(1, ended["operations"] + 1), some)):
        machine = Machine(factory, folder / str(at))
        code, _ = machine.run(rng.randrange(2**32), at)
        assert code in (-signal.SIGKILL, 0), "group commit may make a run a few operations shorter"
        losses += code != 0
        await machine.check_acknowledged()
        code, ended = machine.run(rng.randrange(2**32))
        assert code == 0
        await machine.check_ends(ended)
    tally.count(runs=1 + some, kills=losses)
    return losses


@pytest.mark.timeout(120)
@pytest.mark.proves("power", store="sqlite")
async def test_the_power_goes_and_every_saga_that_was_accepted_ends_once(
    factory: WorkerFactory, tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    assert await lose_power(factory, tmp_path, rng, some=5, tally=tally) >= 4


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.proves("power", store="sqlite")
async def test_the_power_goes_at_many_moments(
    factory: WorkerFactory, tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    assert await lose_power(factory, tmp_path, rng, some=200, tally=tally) >= 150
