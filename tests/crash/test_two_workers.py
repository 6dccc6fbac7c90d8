"""Rule 12 on one SQLite file: two processes share the sagas, and one takes over at once when the other is killed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.crash.sagas import LEDGER, read
from tests.crash.shared_worker import held, hold

from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine.storage import open_storage

ROOT = Path(__file__).parents[2]


def start_worker(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash.shared_worker", f"sqlite:///{place}/s.db"],
        cwd=ROOT,
        env={**os.environ, LEDGER: str(place / "ledger")},
        stdout=subprocess.PIPE,
        text=True,
    )


def stop_between_jobs(worker: subprocess.Popen[str], path: Path) -> None:
    """While it holds neither lock of the file: with them it would stop everybody."""
    with Path(f"{path}-ewe.turn").open("r+") as turn, Path(f"{path}-ewe.lock").open("r+") as lock:
        for file in (turn, lock):
            fcntl.flock(file, fcntl.LOCK_EX)
        os.kill(worker.pid, signal.SIGSTOP)
        os.waitpid(worker.pid, os.WUNTRACED)  # until it stands


@pytest.mark.timeout(60)
@pytest.mark.proves("handed-over", store="sqlite-shared", kills=1)
async def test_rule_12_the_second_worker_takes_over_at_once_when_the_first_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten sagas hang in the first process, which is killed; they end in the second, each step with the key it had."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    worker = start_worker(tmp_path)
    assert worker.stdout is not None
    try:
        while json.loads(worker.stdout.readline())["held"] < 10:
            pass
        async with open_storage(f"sqlite:///{tmp_path}/s.db") as storage:
            engine = WorkflowEngine(storage, config=EngineConfig(max_running=100))
            engine.register(hold)
            held.clear()
            async with engine:
                handles = [engine.handle(f"h-{n}", hold) for n in range(10)]
                assert not held, "they are the first worker's, which lives"
                worker.kill()
                killed = time.monotonic()
                results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
                took = time.monotonic() - killed
            assert [result["hold"] for result in results] == [f"h-{n}:1:hold" for n in range(10)]
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    assert took < 5, "a lock that can be taken is death, at once: no lease is waited for"
    done = [key for operation, key in read(tmp_path / "ledger") if operation == "do"]
    assert sorted(done) == sorted(f"h-{n}:1:first" for n in range(10)), "completed steps did not run again"


@pytest.mark.timeout(60)
@pytest.mark.proves("frozen", store="sqlite-shared", faults=1)
async def test_rule_12_a_worker_that_is_only_stopped_keeps_its_sagas(tmp_path: Path) -> None:
    """SIGSTOP is no death on SQLite: the lock is held, so nobody takes the sagas and nothing runs twice."""
    worker = start_worker(tmp_path)
    assert worker.stdout is not None
    try:
        while json.loads(worker.stdout.readline())["held"] < 10:
            pass
        stop_between_jobs(worker, tmp_path / "s.db")
        async with open_storage(f"sqlite:///{tmp_path}/s.db") as storage:
            engine = WorkflowEngine(storage)
            engine.register(hold)
            held.clear()
            async with engine:
                with pytest.raises(TimeoutError):
                    await engine.handle("h-1", hold).result(timeout=0.5)
                assert not held
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
