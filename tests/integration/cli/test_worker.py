"""`ewe worker`: an engine of the user's in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.cli.main import FAILED, execute
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.cli.kit import Ewe

MODULE = """
import os
from event_workflow_engine import Saga, SagaStep, WorkflowEngine


async def whoami() -> int:
    return os.getpid()


engine = WorkflowEngine({url!r})
engine.register(Saga("whoami", [SagaStep("whoami", whoami)]))
number = 7
"""


FAILING = """
from event_workflow_engine import Saga, SagaStep, WorkflowEngine


async def full():
    raise ValueError("full")


engine = WorkflowEngine({url!r})
engine.register(Saga("waiting", [SagaStep("full", full)]))
"""


async def whoami() -> int:
    return 0


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_runs_what_is_started_elsewhere_and_ends_in_order(
    store_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    if store_url == "memory://":
        store_url = f"sqlite:///{tmp_path}/other.db"
    (tmp_path / "orders.py").write_text(MODULE.format(url=store_url))
    async with open_storage(store_url, auto_upgrade=True) as storage:
        command = [sys.executable, "-m", "event_workflow_engine.cli.main", "worker", "orders:engine"]
        with start(command, tmp_path) as worker:
            try:
                assert worker.stdout is not None
                assert worker.stdout.readline().endswith("is ready\n")
                engine = WorkflowEngine(storage, config=EngineConfig(worker=False))
                saga = Saga("whoami", [SagaStep("whoami", whoami)])
                engine.register(saga)
                async with engine:
                    assert (await engine.execute(saga))["whoami"] == worker.pid
                worker.send_signal(number)
                assert worker.stdout.readline() == "handing over\n"
                assert worker.wait() == 0
            finally:
                worker.kill()
        assert await storage.query("live_workers") == []


@pytest.mark.timeout(60)
def test_its_log_tells_the_time_in_utc_wherever_it_runs(empty: Ewe, tmp_path: Path) -> None:
    empty.fill()
    (tmp_path / "failing.py").write_text(FAILING.format(url=empty.url))
    command = [sys.executable, "-m", "event_workflow_engine.cli.main", "worker", "failing:engine"]
    far = {**os.environ, "TZ": "EAST-9"}
    with subprocess.Popen(command, cwd=tmp_path, env=far, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            line = next(line for line in worker.stderr if "'w-1'" in line)
        finally:
            worker.kill()
    at, _, rest = line.partition("Z ")
    assert rest.startswith("INFO event_workflow_engine")
    assert abs(datetime.fromisoformat(f"{at}+00:00") - datetime.now(UTC)) < timedelta(hours=1)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("orders", "write module:name"),
        ("orders:", "write module:name"),
        (":engine", "write module:name"),
        ("nowhere_at_all:engine", "No module named 'nowhere_at_all'"),
        ("shop:motor", "has no attribute 'motor'"),
        ("shop:number", "has a int there, no WorkflowEngine"),
    ],
)
def test_what_is_no_engine_is_named(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shop.py").write_text(MODULE.format(url="memory://"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    assert execute(["worker", place]) == FAILED
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("ewe: DefinitionError: ")
