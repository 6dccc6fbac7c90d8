"""Many sagas, workers that are killed and stopped at any moment, and a server that is: all end once, the ledger balances."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.sagas import CASES, GO, LEDGER, read

from event_workflow_engine import EngineConfig, SagaFailedError, WorkflowEngine
from event_workflow_engine.errors import SagaEndedError, StorageError
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from tests.guarantees.recording import Tally

ROOT = Path(__file__).parents[3]
LEASE = 1.0


class Workers:
    """So many worker processes; one that is killed is replaced. `via`: what the command of each begins with."""

    def __init__(
        self, url: str, ledger: Path, number: int, *, via: Sequence[Sequence[str]] = (), lease: float = LEASE
    ) -> None:
        self._lease = lease
        self._url = url
        self._ledger = ledger
        self._via = [*via, *[()] * (number - len(via))]
        self.running = [self._start(place) for place in range(number)]

    def _start(self, place: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *self._via[place],
                sys.executable,
                "-m",
                "tests.integration.postgres.soak_worker",
                self._url,
                str(self._lease),
            ],
            cwd=ROOT,
            env={**os.environ, LEDGER: str(self._ledger)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill(self, place: int) -> None:
        _end(self.running[place])
        self.running[place] = self._start(place)

    def close(self) -> None:
        for worker in self.running:
            _end(worker)


def _end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


async def start(engine: WorkflowEngine, case: str, saga_id: str) -> None:
    """Start a saga and say to it what it waits for, however often the server is away meanwhile."""
    saga, value = CASES[case]
    while True:
        try:
            handle = await engine.start(saga, value, id=saga_id)
            if case == "function":
                await handle.signal(GO, "taxi", id="go")
        except SagaEndedError:
            return
        except StorageError:
            continue
        return


async def ended(engine: WorkflowEngine, case: str, saga_id: str) -> str:
    try:
        await engine.handle(saga_id, CASES[case][0]).result(timeout=120)
    except SagaFailedError as error:
        return str(error.status)
    return "COMPLETED"


async def soak(
    server: PostgresServer,
    folder: Path,
    rng: random.Random,
    *,
    sagas: int,
    worker_kills: int,
    server_kills: int,
    kill_server: Callable[[], None] | None = None,
) -> None:
    ledger = folder / "ledger"
    engine = WorkflowEngine(server.url(), config=EngineConfig(worker=False, auto_upgrade=True))
    engine.register(*(saga for saga, _ in CASES.values()))
    cases = {f"k-{n}": rng.choice(list(CASES)) for n in range(sagas)}
    async with engine:
        workers = Workers(server.url(), ledger, 3)
        try:
            harm = ["worker"] * worker_kills + ["server"] * server_kills + ["stop"] * (worker_kills // 4)
            rng.shuffle(harm)
            todo = list(cases.items())
            share = len(todo) // len(harm) + 1
            for place, what in enumerate(harm):
                some = todo[place * share : (place + 1) * share]
                await asyncio.gather(*(start(engine, case, saga_id) for saga_id, case in some))
                victim = rng.randrange(3)
                if what == "worker":
                    workers.kill(victim)
                elif what == "server":
                    await asyncio.to_thread(kill_server or partial(server.restart, kill=True))
                else:
                    stopped = workers.running[victim].pid
                    os.kill(stopped, signal.SIGSTOP)
                    # Longer than its lease, as long as the others need to take its sagas over.
                    loop = asyncio.get_running_loop()
                    loop.call_later(2 * LEASE, _continue, stopped)
            states = await asyncio.gather(*(ended(engine, case, saga_id) for saga_id, case in cases.items()))
        finally:
            workers.close()
        await check(engine, cases, dict(zip(cases, states, strict=True)), ledger)


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def check(engine: WorkflowEngine, cases: dict[str, str], states: dict[str, str], ledger: Path) -> None:
    lines = read(ledger)
    done = {key for operation, key in lines if operation == "do"}
    undone = {key for operation, key in lines if operation == "undo"}
    for saga_id, case in cases.items():
        wanted = "COMPENSATED" if case in ("dag", "undone") else "COMPLETED"
        assert states[saga_id] == wanted, (saga_id, case)
        mine = {key for key in done if key.startswith(f"{saga_id}:")}
        assert {key for key in undone if key.startswith(f"{saga_id}:")} == (mine if wanted == "COMPENSATED" else set())
        kinds: Counter[Any] = Counter()
        for event in await engine.handle(saga_id).history():
            kinds[event.type, getattr(event.data, "step", None)] += 1
        assert all(count == 1 for (kind, _), count in kinds.items() if kind == "step-succeeded"), saga_id
        assert sum(kinds["saga-" + end, None] for end in ("completed", "compensated", "cancelled")) == 1


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.proves("killed", "handed-over", "frozen", "database-killed", store="postgres")
async def test_a_short_soak(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    with PostgresServer(settings={"fsync": "off"}) as server:
        await soak(server, tmp_path, rng, sagas=60, worker_kills=4, server_kills=2)
    tally.count(runs=60, faults=1, kills=6)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.proves("killed", "handed-over", "frozen", "database-killed", store="postgres")
async def test_a_long_soak(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    with PostgresServer(settings={"fsync": "off"}) as server:
        await soak(server, tmp_path, rng, sagas=4000, worker_kills=200, server_kills=200)
    tally.count(runs=4000, faults=50, kills=400)
