"""The same where another process writes what is large, long and many to the same SQLite file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.limits.kit import MEBIBYTE, SIZE, check_slow_subscriber, long, of_size

from event_workflow_engine import WorkflowEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.proves("limits", store="sqlite-shared")]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/s.db"


@contextmanager
def beside(url: str, task: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-m", "tests.integration.limits.worker", url, task], cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


async def done(process: subprocess.Popen[bytes]) -> None:
    assert await asyncio.to_thread(process.wait) == 0


async def test_payloads_and_results_of_a_mebibyte_that_another_process_asks_for(url: str) -> None:
    made = of_size(MEBIBYTE)
    async with WorkflowEngine(url) as engine:
        engine.register(made)
        with beside(url, "large") as process:
            await done(process)
        read = [one.data async for one in engine.store.read("large-1")]
        assert read == [str(n) * MEBIBYTE for n in range(4)]
        for n in range(4):
            assert len((await engine.handle(f"m-{n}", made).result(timeout=20))["make"]) == MEBIBYTE - 2


async def test_a_slow_subscriber_to_what_another_process_appends(url: str) -> None:
    async def appended() -> None:
        with beside(url, "append") as process:
            await done(process)

    await check_slow_subscriber(WorkflowEngine(url), appended)


@pytest.mark.proves("killed", store="sqlite-shared", kills=1)
async def test_a_long_saga_goes_on_where_its_worker_was_killed(url: str) -> None:
    async with WorkflowEngine(url) as engine:
        engine.register(long)
        with beside(url, "walk") as process:
            rang = asyncio.Event()
            remove = engine.storage.add_bell(rang.set)
            while await engine.storage.head("saga-l-1") < SIZE[0]:
                await rang.wait()
                rang.clear()
            remove()
            process.kill()
        assert await engine.handle("l-1", long).result(timeout=60) == SIZE[0]
        assert await engine.storage.head("saga-l-1") > 2 * SIZE[0]
