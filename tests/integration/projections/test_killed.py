"""Projections are exact, each event once, however often the processes that keep them are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.projections.kit import Added, book, expected, sums

from event_workflow_engine import WorkflowEngine

if TYPE_CHECKING:
    import random

    from tests.guarantees.recording import Tally

ROOT = Path(__file__).parents[3]
KILLS = 5


async def start(url: str, seed: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.projections.worker", url, str(seed),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


async def kill(worker: asyncio.subprocess.Process, after: int) -> int:
    """Let it append so many events, then kill it; how many it said it did."""
    assert worker.stdout is not None
    for _ in range(after):
        assert await worker.stdout.readline() == b"appended\n"
    assert worker.pid != os.getpid()
    worker.send_signal(signal.SIGKILL)
    rest = await worker.stdout.read()
    assert await worker.wait() == -signal.SIGKILL
    return after + rest.count(b"\n")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.proves("projected-once", store="sqlite-shared")
async def test_projections_are_exact_over_kills(tmp_path: Path, rng: random.Random, workers: int, tally: Tally) -> None:
    url, acknowledged = f"sqlite:///{tmp_path}/killed.db", 0
    for _ in range(KILLS):
        running = [await start(url, rng.randrange(2**32)) for _ in range(workers)]
        for worker in running:
            acknowledged += await kill(worker, rng.randrange(1, 150))
    tally.count(runs=1, kills=KILLS * workers)
    behind, within, lines = sums("behind"), sums("within", "inline"), book()
    engine = WorkflowEngine(url)
    engine.projections.register(behind, within, lines)
    async with engine:
        end = await engine.store.storage.last_position()
        for projection in (behind, within, lines):
            await engine.projections.wait_for(projection, end, timeout=30)
        events: list[Any] = [event.data async for event in engine.store.read_all(types=Added)]
        assert len(events) >= acknowledged, "what was acknowledged is in the log"
        for documents in (behind, within):
            found = {one.key: one for one in await engine.projections.find(documents)}
            assert found == expected(events), documents.name
        rows = await engine.projections.fetch(lines, "SELECT key, amount FROM {lines}")
        assert Counter((row["key"], row["amount"]) for row in rows) == Counter((e.key, e.amount) for e in events)
        for projection in (behind, within, lines):
            status = await engine.projections.status(projection)
            assert (status.events, status.position, status.parked) == (len(events), end, 0), projection.name
