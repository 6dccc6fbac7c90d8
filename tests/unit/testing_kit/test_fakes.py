"""Fakes that no saga came to, as a reader of the documentation would use them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.inner_pytest import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = """
import pytest
from event_workflow_engine import Saga, SagaStep, saga, step
from event_workflow_engine.testing import returns

async def charge() -> str: ...
async def ship() -> str: ...

@saga("order")
async def order() -> str:
    return await step(charge)

@pytest.fixture(params=[order, Saga("declared", [SagaStep("charge", charge)])])
async def run(request, engine):
    engine.register(request.param)
    return lambda **ids: engine.execute(request.param, **ids)

async def test_never_called(run, fake_step):
    fake_step(charge, returns("payment"))
    fake_step(ship, returns("parcel"))
    await run()

async def test_looked_at(run, fake_step):
    fake_step(charge, returns("payment"))
    parcels, boats = fake_step(ship, returns("parcel")), fake_step(len, returns(1))
    await run()
    assert parcels.count == 0
    assert boats.contexts == []

async def test_called(run, fake_step):
    payments = fake_step(charge, returns("payment"))
    await run()
    assert payments.count == 1
    assert payments.contexts == [()]

@pytest.mark.crash_everywhere
async def test_called_before_a_kill(run, fake_step):
    fake_step(charge, returns("payment"))
    await run(id="o-1")
"""


def pytest_in(folder: Path, *arguments: str) -> str:
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    (folder / "test_it.py").write_text(PROJECT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(
        command,
        cwd=folder,
        env=dict(os.environ) | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_a_fake_that_no_saga_came_to_is_told_unless_the_test_has_looked(tmp_path: Path) -> None:
    said = pytest_in(tmp_path)
    assert "8 passed, 2 warnings" in said
    assert said.count("UnusedFakeWarning: the fake of ship was never called") == 1, "pytest tells both as one"
    said = pytest_in(tmp_path, "-W", "error", "-k", "never_called or looked")
    assert "4 passed, 4 deselected, 2 errors" in said


@pytest.mark.timeout(120)
def test_a_fake_whose_step_was_done_before_a_kill_is_not_told(tmp_path: Path) -> None:
    """The process that goes on behind the kill has no need to call it."""
    at = ("--crash-kill", "--crash-at=behind:4", "-k", "before_a_kill and run0")
    said = pytest_in(tmp_path, *at, "-o", "filterwarnings=error")
    assert "1 tried, 0 failed" in said
