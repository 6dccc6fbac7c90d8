"""The pytest plugin: fixtures for sagas, there as soon as the library is installed beside pytest-asyncio."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # without pytest-asyncio there are no async fixtures to offer
    async_fixture = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.testing.clock import VirtualClock
    from event_workflow_engine.testing.effects import Effects
    from event_workflow_engine.testing.fakes import StepFaker
    from event_workflow_engine.testing.killing import Folder

pytest_plugins = ("event_workflow_engine.testing.crash_everywhere",)


# Imports are in the fixtures: pytest loads this module in every project that has the library installed, and coverage
# would miss what is imported before it starts.
@pytest.fixture
def clock() -> VirtualClock:
    """A `VirtualClock`, which is the ``engine`` fixture's too."""
    from event_workflow_engine.testing.clock import VirtualClock  # noqa: PLC0415

    return VirtualClock()


@pytest.fixture
def fake_step(request: pytest.FixtureRequest) -> Iterator[StepFaker]:
    """Fakes a function that sagas name as action or compensation: ``fake_step(charge, returns("payment-1"))``.

    One that was never called is told by an `UnusedFakeWarning` when the test ends.
    """
    from event_workflow_engine.testing.fakes import StepFaker  # noqa: PLC0415

    faker = StepFaker()
    yield faker
    if _folder(request) is None:  # what a process before did, a test that goes on behind a kill has no need to call
        faker.warn_of_unused()


@pytest.fixture
def effects(request: pytest.FixtureRequest) -> Effects:
    """An `Effects`: what the steps of the ``engine`` fixture did, and what was undone; checked when the test ends."""
    from event_workflow_engine.testing.effects import Effects  # noqa: PLC0415

    folder = _folder(request)
    return Effects() if folder is None else Effects(folder.effects)


def _folder(request: pytest.FixtureRequest) -> Folder | None:
    from event_workflow_engine.testing.crash_everywhere import PASS  # noqa: PLC0415

    present = request.node.stash.get(PASS, None)
    return None if present is None else present.folder


@pytest.fixture(scope="session")
def engine_postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL server: that of ``EWE_TEST_POSTGRES``, or one of our own, which ends with the session."""
    from event_workflow_engine.testing.killing import SERVER, SERVER_VARIABLE  # noqa: PLC0415
    from event_workflow_engine.testing.postgres import PostgresServer  # noqa: PLC0415

    given = os.environ.get(SERVER_VARIABLE)
    if given:
        yield given
        return
    with PostgresServer(settings={"fsync": "off"}) as server:
        request.config.stash[SERVER] = server.url()
        yield server.url()


@pytest.fixture
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of the store of the ``engine`` fixture, new for each test; the marker ``engines`` chooses backends."""
    kind = getattr(request, "param", "memory")
    folder = _folder(request)
    if kind == "postgres":
        url = f"{request.getfixturevalue('engine_postgres')}?schema=t_{uuid4().hex[:16]}"
        return url if folder is None else folder.url(url)
    if folder is not None:  # what is in memory outlives no process
        return f"sqlite:///{folder.file}"
    return "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'engine.db'}"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", "engines(*backends): run the test with an engine on each of 'memory', 'sqlite', 'postgres'"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each backend that its marker names."""
    marker = metafunc.definition.get_closest_marker("engines")
    if marker is None:
        return
    unknown = set(marker.args) - {"memory", "sqlite", "postgres"}
    if unknown or not marker.args:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: engines{marker.args}: some of 'memory', 'sqlite' and 'postgres'"
        )
    metafunc.parametrize("engine_url", marker.args, indirect=True)


if async_fixture is not None:

    @async_fixture
    async def engine(
        request: pytest.FixtureRequest, clock: VirtualClock, fake_step: StepFaker, effects: Effects, engine_url: str
    ) -> AsyncIterator[WorkflowEngine]:
        """An entered `WorkflowEngine` with the virtual clock and the fakes; the effects of its steps must balance."""
        from event_workflow_engine.storage import open_storage  # noqa: PLC0415
        from event_workflow_engine.testing.crash_everywhere import PASS  # noqa: PLC0415
        from event_workflow_engine.testing.crashing import CrashingEngine, bury  # noqa: PLC0415
        from event_workflow_engine.testing.killing import kill_this_process  # noqa: PLC0415
        from event_workflow_engine.testing.observed import ObservedStorage  # noqa: PLC0415
        from event_workflow_engine.testing.settling import is_calm, settle  # noqa: PLC0415
        from event_workflow_engine.testing.standstill import WatchedEngine  # noqa: PLC0415

        present = request.node.stash.get(PASS, None)
        kill = kill_this_process if present is not None and present.folder is not None else None
        async with open_storage(engine_url, auto_upgrade=True) as storage:
            observed = ObservedStorage(storage, None if present is None else present.point, end=kill)
            made = (
                WatchedEngine(observed, clock=clock, is_calm=lambda made: is_calm(made, observed))
                if present is None or kill is not None
                else CrashingEngine(storage, observed, clock=clock, on_crash=present.crash(effects))
            )
            made.intercept(effects.around(fake_step.find))
            clock.settle = partial(settle, made, observed, effects.threads)
            if kill is not None:
                await bury(storage, clock)
                observed.arm()
            async with made:
                yield made
                await observed.quiet()
                if present is not None:
                    await present.note(made, observed)
                await effects.check(made)
