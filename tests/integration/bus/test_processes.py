"""Durable subscriptions and killed processes: at least once, in order, and another worker takes over."""

from __future__ import annotations

import asyncio
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.bus.kit import Moved
from tests.integration.bus.worker import LEASE

from event_workflow_engine import EngineConfig, EventStore, WorkflowEngine
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    import random

    from tests.guarantees.recording import Tally

ROOT = Path(__file__).parents[3]
WHO = ("ann", "bob", "eve")


def proves(store: str) -> pytest.MarkDecorator:
    return pytest.mark.proves("projected-once", store=store)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, server: str) -> str:
    """The URL of a new store on that kind of server."""
    if server == "postgres":
        made: str = request.getfixturevalue("postgres_url")
        return made
    return f"sqlite:///{tmp_path}/bus.db"


async def start(url: str, ledger: Path, until: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.bus.worker", url, str(ledger), str(until),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def handled(worker: asyncio.subprocess.Process, count: int) -> None:
    """Wait until a worker has handled so many events."""
    assert worker.stdout is not None
    while count:
        line = await worker.stdout.readline()
        assert line, "the worker ended"
        count -= line == b"handled\n"


async def kill(worker: asyncio.subprocess.Process) -> None:
    worker.kill()
    assert worker.stdout is not None
    await worker.stdout.read()
    assert await worker.wait() == -signal.SIGKILL


def by_key(ledger: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {who: [] for who in WHO}
    for line in ledger.read_text().splitlines():
        who, to = line.split()
        found[who].append(int(to))
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("server", "kills"),
    [pytest.param("sqlite", 5, marks=proves("sqlite")), pytest.param("postgres", 2, marks=proves("postgres"))],
)
async def test_killed_again_and_again_it_handles_all_events_at_least_once_and_in_order(
    url: str, kills: int, tmp_path: Path, rng: random.Random, tally: Tally
) -> None:
    ledger, events = tmp_path / "ledger", 600
    async with open_storage(url, auto_upgrade=True) as storage:
        store = EventStore(storage)
        await asyncio.gather(*(store.append(f"way-{WHO[to % 3]}", Moved(WHO[to % 3], to)) for to in range(events - 1)))
        for _ in range(kills):
            worker = await start(url, ledger, events - 1)
            await handled(worker, rng.randrange(1, 120))
            await kill(worker)
        tally.count(runs=1, kills=kills)
        await store.append("way-ann", Moved("ann", events - 1))
        worker = await start(url, ledger, events - 1)
        assert worker.stdout is not None
        await worker.stdout.read()
        assert await worker.wait() == 0
    for who, seen in by_key(ledger).items():
        wanted = [to for to in range(events) if (WHO[to % 3] if to < events - 1 else "ann") == who]
        assert sorted(set(seen)) == wanted, "all of them"
        restarts = sum(later <= earlier for earlier, later in pairwise(seen))
        assert restarts <= kills, "in order, but for going back to the checkpoint after a kill"
        steps = [(wanted.index(earlier), wanted.index(later)) for earlier, later in pairwise(seen)]
        assert all(later <= earlier + 1 for earlier, later in steps), "none is left out, also not for a while"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "server",
    [pytest.param("sqlite", marks=proves("sqlite-shared")), pytest.param("postgres", marks=proves("postgres"))],
)
async def test_another_worker_takes_over_when_one_is_killed(url: str, tmp_path: Path, tally: Tally) -> None:
    ledger = tmp_path / "ledger"
    seen: list[int] = []
    enough = asyncio.Event()

    async def handle(event: Moved) -> None:
        seen.append(event.to)
        if event.to == 20:
            enough.set()

    config = EngineConfig(lease=LEASE)
    async with open_storage(url, auto_upgrade=True) as storage, WorkflowEngine(storage, config=config) as engine:
        worker = await start(url, ledger, -1)
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
        await engine.store.append("way-ann", Moved("ann", 0))
        await handled(worker, 1)
        engine.bus.subscribe(Moved, handle, durable="walks")
        for to in range(1, 11):
            await engine.store.append("way-ann", Moved("ann", to))
        await handled(worker, 10)
        await engine.bus.drain()
        assert seen == [], "the other process has it, and lives"
        await kill(worker)
        tally.count(runs=1, kills=1)
        for to in range(11, 21):
            await engine.store.append("way-ann", Moved("ann", to))
        await enough.wait()
        await engine.bus.drain()
    assert seen == list(range(seen[0], 21)), "from the checkpoint on, in order"
    assert by_key(ledger)["ann"] == list(range(11))
    assert seen[0] <= 11
