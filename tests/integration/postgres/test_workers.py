"""Rule 12 over processes that share nothing but PostgreSQL: killed, stopped and leaving workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.postgres.worker import GATE, LEDGER, gated, quick

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.feeds import Bell
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row
from event_workflow_engine.testing.conformance.kit import row_unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

ROOT = Path(__file__).parents[3]
LEASE = 1.0
LONG = 15.0
SAGAS = 5

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]


class Place:
    """A store, a ledger and a gate, and worker processes at them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.ledger = folder / "ledger"
        self.fifo = folder / "gate"
        os.mkfifo(self.fifo)
        self.opened = ExitStack()

    @contextmanager
    def worker(
        self, starts: int = 0, lease: float = LEASE, *, via: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*via, sys.executable, "-m", "tests.integration.postgres.worker", self.url, str(lease), str(starts)],
            cwd=ROOT,
            env={**os.environ, LEDGER: str(self.ledger), GATE: str(self.fifo)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()

    def open_gate(self) -> None:
        """All that wait there go through, and those that come later."""
        self.opened.callback(os.close, os.open(self.fifo, os.O_WRONLY))

    def notes(self, what: str) -> list[tuple[str, int]]:
        lines = [json.loads(line) for line in self.ledger.read_text().splitlines()]
        return [(saga_id, pid) for kind, saga_id, pid in lines if kind == what]


async def heard(process: subprocess.Popen[str], word: str, times: int = 1, *, errors: bool = False) -> None:
    """Wait until the process has said a word so many times."""
    pipe = process.stderr if errors else process.stdout
    assert pipe is not None
    while times:
        line = await asyncio.to_thread(pipe.readline)
        assert line, f"the worker ended before it said {word!r}"
        times -= word in line


@pytest.fixture
async def place(postgres_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(postgres_url, tmp_path)
    with made.opened:
        async with open_storage(postgres_url, auto_upgrade=True):
            yield made


def onlooker(place: Place, **config: Any) -> WorkflowEngine:
    """An engine of this process that runs no sagas."""
    engine = WorkflowEngine(place.url, config=EngineConfig(worker=False, **config))
    engine.register(gated, quick)
    return engine


async def left(engine: WorkflowEngine) -> set[int]:
    """Wait until all sagas have ended; the processes that ended them."""
    results = await asyncio.gather(*(engine.handle(f"g-{n}", gated).result(timeout=30) for n in range(SAGAS)))
    return {result["leave"] for result in results}


@pytest.mark.proves("handed-over", store="postgres", kills=1)
async def test_rule_12_a_killed_workers_sagas_go_on_elsewhere_within_its_lease(place: Place) -> None:
    with place.worker(SAGAS) as first, place.worker() as second:
        await heard(first, "waiting", SAGAS)
        await heard(second, "ready")
        first.kill()
        killed = time.monotonic()
        await heard(second, "waiting", SAGAS)
        took = time.monotonic() - killed
        place.open_gate()
        async with onlooker(place) as engine:
            assert await left(engine) == {second.pid}
    assert took < LEASE + 1, "all were resumed within the lease and a second"
    assert sorted(place.notes("arrived")) == [(f"g-{n}", first.pid) for n in range(SAGAS)], "done once is done"


@pytest.mark.proves("frozen", store="postgres", faults=1)
async def test_rule_12_a_stopped_worker_loses_its_sagas_and_does_not_act_when_it_comes_back(place: Place) -> None:
    """Longer than its lease it stands still; then its gate is open, but the sagas are others'."""
    with place.worker(SAGAS) as zombie, place.worker() as second:
        await heard(zombie, "waiting", SAGAS)
        await heard(second, "ready")
        os.kill(zombie.pid, signal.SIGSTOP)
        await heard(second, "waiting", SAGAS)
        place.open_gate()
        async with onlooker(place) as engine:
            assert await left(engine) == {second.pid}
            os.kill(zombie.pid, signal.SIGCONT)
            await heard(zombie, "taken for dead", errors=True)
            second.kill()
            handle = await engine.start(quick, id="q-1")
            assert (await handle.result(timeout=20))["whoami"] == zombie.pid, "it goes on as another life"
    assert {pid for _, pid in place.notes("left")} == {second.pid}
    assert sorted(saga_id for saga_id, _ in place.notes("left")) == [f"g-{n}" for n in range(SAGAS)]


async def test_rule_12_a_worker_with_a_short_lease_leaves_one_with_a_long_lease_alone(place: Place) -> None:
    """It has buried by then a worker that was as silent, but had a short lease."""
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        begun.set()
        await let_go.wait()
        return "done"

    waits = Saga("waits", [SagaStep("wait", wait)])
    long = WorkflowEngine(place.url, config=EngineConfig(lease=1000 * LEASE))
    short = WorkflowEngine(place.url, config=EngineConfig(lease=LEASE / 5))
    for engine in (long, short):
        engine.register(waits)
    async with long:
        handle = await long.start(waits, id="s-1")
        await begun.wait()
        silent = {"incarnation": 1, "alive": 1, "beat": 7, "lease": int(LEASE / 5 * 1_000_000)}
        await long.storage.write(row_unit(Row("workers", "insert", ("silent",), silent)))
        before = await long.storage.get("sagas", ("s-1",))
        with closing(Bell(long.storage)) as bell:
            async with short:
                while "silent" in await living(long):
                    await bell.wait(10)
                assert len(await living(long)) == 2
                assert await long.storage.get("sagas", ("s-1",)) == before, "with its owner and fence"
                let_go.set()
                assert (await handle.result(timeout=20))["wait"] == "done"


async def living(engine: WorkflowEngine) -> set[str]:
    return {row["id"] for row in await engine.storage.query("live_workers")}


@pytest.mark.proves("handed-over", store="postgres", kills=1)
async def test_rule_12_a_worker_with_a_long_lease_buries_one_with_a_short_lease_as_soon_as_that_is_over(
    place: Place,
) -> None:
    """It looks twice a second, however long its own is."""
    with place.worker(SAGAS) as first, place.worker(lease=1000 * LEASE) as second:
        await heard(first, "waiting", SAGAS)
        await heard(second, "ready")
        first.kill()
        await heard(second, "waiting", SAGAS)
        place.open_gate()
        async with onlooker(place) as engine:
            assert await left(engine) == {second.pid}


async def test_a_worker_that_leaves_hands_over_as_soon_as_its_threads_have_ended(place: Place) -> None:
    """Nobody waits for a lease, and nobody else runs meanwhile what they do."""
    with place.worker(SAGAS, lease=LONG) as first, place.worker(lease=LONG) as second:
        await heard(first, "waiting", SAGAS)
        await heard(second, "ready")
        assert first.stdin is not None
        first.stdin.close()
        await heard(first, "leaving waits for code in threads", errors=True)
        place.open_gate()
        begun = time.monotonic()
        async with onlooker(place) as engine:
            assert await left(engine) == {second.pid}
            assert time.monotonic() - begun < LONG / 2
            for n in range(SAGAS):
                assert [event.type for event in await engine.handle(f"g-{n}").history()].count("step-succeeded") == 3
        assert sorted(place.notes("arrived")) == [(f"g-{n}", first.pid) for n in range(SAGAS)]
        second.kill()
        assert second.stdout is not None
        assert "waiting" not in second.stdout.read()


async def test_a_saga_started_where_no_worker_is_runs_where_one_is(place: Place) -> None:
    with place.worker() as worker:
        await heard(worker, "ready")
        async with onlooker(place) as engine:
            for n in range(20):
                assert (await engine.execute(quick, id=f"q-{n}"))["whoami"] == worker.pid


@pytest.mark.proves("handed-over", store="postgres", faults=1)
async def test_a_slot_of_a_schedule_that_a_dead_worker_had_begun_is_run_by_one_that_lives(place: Place) -> None:
    ran = asyncio.Event()

    async def sweep() -> None:
        ran.set()

    engine = WorkflowEngine(place.url, config=EngineConfig(lease=LEASE, auto_upgrade=True))
    engine.scheduler.register(sweep, name="sweep")
    async with engine:
        await engine.scheduler.every(86_400, sweep, id="daily")
        died = {"incarnation": 1, "alive": 1, "beat": 1, "host": "h", "pid": 1, "started_at": 0, "lease": 1_000_000}
        begun = {"worker": "w-died", "fired_at": 7, "done": 0}
        rows = (Row("workers", "insert", ("w-died",), died), Row("slots", "insert", ("daily", 7), begun))
        await engine.store.storage.write(row_unit(*rows))
        async with asyncio.timeout(20):
            await ran.wait()
            while await engine.store.storage.query("open_slots"):
                pass
