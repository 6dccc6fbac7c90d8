"""What every test is held to: one seed for all randomness, asyncio's debug mode, and no task left behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import shutil
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from tests.guarantees.recording import OPTION, Recorder

from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SEED = int(os.environ.get("EWE_TEST_SEED", "0"))

# Two test processes share the machine with worker processes that tests start, so wall-clock deadlines would only tell
# how busy it was. The blob lets a failure of one run be replayed in another.
settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option of `make guarantees`."""
    parser.addoption(OPTION, metavar="FILE", help="write what the tests that prove something did to this page")


def pytest_configure(config: pytest.Config) -> None:
    """Let tests count what they prove."""
    config.pluginmanager.register(Recorder(SEED), "guarantees")


def pytest_report_header() -> str:
    return f"seed: {SEED} (again: make test SEED={SEED})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run. The run counts it as deselected; what CI is asked for has to run."""
    lacking = set() if os.geteuid() == 0 or "CI" in os.environ else {"needs_root"}
    if "EWE_TEST_PGBOUNCER" not in os.environ and shutil.which("pgbouncer") is None:
        lacking.add("needs_pgbouncer")
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in lacking)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of the run's seed, the same for a test whatever else runs, and in whatever order."""
    return random.Random(f"{SEED}:{request.node.nodeid}")


@pytest.fixture
async def task_ledger(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Turn asyncio's debug mode on, and fail when the test and its fixtures end with a task still running.

    Tests marked `slow` or `long` run without debug mode, which takes a traceback at every task's creation.
    """
    asyncio.get_running_loop().set_debug(not any(request.node.get_closest_marker(name) for name in ("slow", "long")))
    yield
    # A task that has been cancelled or has its result needs a turn or two of the loop to end.
    for _ in range(10):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if left:
        pytest.fail("tasks left running:\n" + "\n".join(repr(task) for task in left))


@pytest.fixture(autouse=True)
def no_task_left_behind(request: pytest.FixtureRequest) -> None:
    """Set the ledger up before every other fixture of an async test, so that it is closed after them."""
    function = getattr(request, "function", None)
    if function is not None and inspect.iscoroutinefunction(function):
        request.getfixturevalue("task_ledger")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, one for each test process; that of EWE_TEST_POSTGRES where it is set.

    Its writes are not forced to disk: what a killed server wrote is in the operating system's cache all the same.
    """
    given = os.environ.get("EWE_TEST_POSTGRES")
    if given:
        yield given
        return
    with PostgresServer(settings={"fsync": "off"}) as server:
        yield server.url()


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of a store of its own, whose schema is not made yet."""
    return f"{postgres}?schema=t_{uuid4().hex[:16]}"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new store, on each backend."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/store.db"
