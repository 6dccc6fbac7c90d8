"""A worker joins another that has all sagas: over processes that share one PostgreSQL, or one SQLite file."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.balancing.worker import LEDGER, STEPS, long

from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine.history import SagaHandedOver, StepStarted
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from event_workflow_engine.storage.port import Storage

ROOT = Path(__file__).parents[3]
SAGAS = 40
WITHIN = 12.0
"""Seconds in which those that are above their share have given it away, on a machine that is busy with other things."""

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.slow,
    pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True),
]


class Place:
    """A store, a ledger, and worker processes at them."""

    def __init__(self, url: str, folder: Path, storage: Storage) -> None:
        self.url = url
        self.storage = storage
        self._ledger = folder / "ledger"

    @contextmanager
    def worker(self, starts: int = 0) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.balancing.worker", self.url, str(starts)],
            cwd=ROOT,
            env={**os.environ, LEDGER: str(self._ledger)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def ran(self) -> list[tuple[str, str, int, int]]:
        return [tuple(json.loads(line)) for line in self._ledger.read_text().splitlines()]

    async def until(self, condition: Callable[[list[int]], bool], within: float) -> list[int]:
        """Wait until what the workers hold, in order of their coming, is as wanted; they commit all the time."""
        rang = asyncio.Event()
        remove = self.storage.add_bell(rang.set)
        try:
            async with asyncio.timeout(within):
                while True:
                    held = [row["held"] - row["given"] for row in await self.storage.query("worker_loads")]
                    if condition(held):
                        return held
                    await rang.wait()
                    rang.clear()
        finally:
            remove()

    async def ended(self) -> None:
        """Wait until all sagas have ended, and look that each step ran once and each attempt was counted once."""
        shop = WorkflowEngine(self.storage, config=EngineConfig(worker=False))
        shop.register(long)
        async with shop:
            for n in range(SAGAS):
                handle = shop.handle(f"l-{n}", long)
                assert len(await handle.result(timeout=60)) == STEPS
                facts = [event.data for event in await handle.history()]
                starts = [fact for fact in facts if isinstance(fact, StepStarted)]
                assert [fact.attempt for fact in starts if not fact.interruptions] == [1] * STEPS
                self.moved[handle.id] = sum(isinstance(fact, SagaHandedOver) for fact in facts)

    moved: Counter[str]


@pytest.fixture
async def place(store_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with open_storage(store_url, auto_upgrade=True) as storage:
        place = Place(store_url, tmp_path, storage)
        place.moved = Counter()
        yield place


async def said_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"


async def test_a_worker_that_joins_gets_its_share_of_what_runs(place: Place) -> None:
    with place.worker(SAGAS) as first:
        await said_ready(first)
        with place.worker() as second:
            await said_ready(second)
            half = range(SAGAS * 3 // 8, SAGAS * 5 // 8 + 1)
            await place.until(lambda held: len(held) == 2 and all(n in half for n in held), WITHIN)
            await place.ended()
    ran = place.ran()
    assert len(ran) == len({(saga, step) for saga, step, *_ in ran}) == SAGAS * STEPS, "each step once"
    assert {attempt for *_, attempt in ran} == {1}
    assert {pid for *_, pid, _ in ran} == {first.pid, second.pid}
    assert max(place.moved.values()) == 1, "none was given twice"


@pytest.mark.long
async def test_a_worker_that_joins_and_dies_at_once_holds_nothing_up(place: Place) -> None:
    """What it had goes back to the one that gave it; a step that it was in runs again, as the same attempt."""
    with place.worker(SAGAS) as first:
        await said_ready(first)
        with place.worker() as second:
            await said_ready(second)
            await place.until(lambda held: len(held) == 2 and held[1] > 0, WITHIN)
            second.kill()
            await place.ended()
    ran = place.ran()
    twice = {one for one, n in Counter((saga, step) for saga, step, *_ in ran).items() if n > 1}
    begun_there = {(saga, step) for saga, step, pid, _ in ran if pid == second.pid}
    assert twice <= begun_there, "only what was cut off there"
    assert len({(saga, step) for saga, step, *_ in ran}) == SAGAS * STEPS
    assert {attempt for *_, attempt in ran} == {1}
