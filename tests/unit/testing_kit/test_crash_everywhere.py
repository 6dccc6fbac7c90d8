"""The marker that runs a test once for each durable operation, with the engine crashing before it and behind it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tests.inner_pytest import ENVIRONMENT

from event_workflow_engine import (
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    WorkflowEngine,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.testing.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from event_workflow_engine.testing import Effects, VirtualClock

GO = Signal("go", str)


async def reserve() -> str:
    return "reservation"


async def release() -> None: ...


def charge() -> str:
    return "payment"


def refund() -> None: ...


async def ship() -> None:
    raise ValueError("no carrier")


order = Saga(
    "order",
    [SagaStep("reserve", reserve, release), SagaStep("charge", charge, refund), SagaStep("ship", ship)],
    sequential=True,
)


@saga("approved")
async def approved(name: str) -> str:
    await step(reserve, compensation=release)
    try:
        word = await wait_for_signal(GO, timeout=timedelta(days=3))
    except TimeoutError:
        word = "too late"
    await step(charge, compensation=refund)
    await sleep(timedelta(hours=2))
    return f"{name}: {word}"


@pytest.mark.crash_everywhere
@pytest.mark.engines("memory", "sqlite", "postgres")
async def test_what_failed_is_undone_wherever_it_crashed(engine: WorkflowEngine, effects: Effects) -> None:
    engine.register(order)
    handle = await engine.start(order, id="o-1")
    with pytest.raises(SagaFailedError):
        await handle.result()
    assert effects.standing(handle.id) == []
    assert effects.undone(handle.id) == ["reserve", "charge"]


@pytest.mark.crash_everywhere
@pytest.mark.engines("memory", "sqlite")
@pytest.mark.parametrize("word", ["go", "too late"])
async def test_days_pass_in_the_same_way_wherever_it_crashed(
    engine: WorkflowEngine, clock: VirtualClock, effects: Effects, word: str
) -> None:
    engine.register(approved)
    handle = await engine.start(approved, "ann", id="a-1")
    await clock.advance(days=1)
    if word == "go":
        await handle.signal(GO, word)
    await clock.advance(days=3)
    assert await handle.result() == f"ann: {word}"
    assert effects.standing(handle.id) == ["reserve", "charge"]


PROJECT = """
import pytest
from event_workflow_engine import saga, step
from event_workflow_engine.engine import glance_at

memory = []

async def act() -> None: ...
async def other() -> None: ...

@saga("forgetful")
async def forgetful() -> None:
    memory.append("been here")
    await step(act if len(memory) == 1 else other)
    await step(act)

@pytest.mark.crash_everywhere
async def test_forgetful(engine):
    memory.clear()
    engine.register(forgetful)
    await (await engine.start(forgetful)).result()

@pytest.mark.crash_everywhere
async def test_fails_without_a_crash(engine):
    assert not glance_at(engine).is_idle, "of the test itself"

async def test_an_ordinary_one_goes_on_behind_it(engine, clock):
    await clock.advance(days=1)
    assert glance_at(engine).is_idle
"""


def pytest_in(folder: Path, *arguments: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        # Where CI is set, pytest tells failures twice.
        env={name: value for name, value in os.environ.items() if name != "CI"} | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    (tmp_path / "test_it.py").write_text(PROJECT)
    return tmp_path


def test_what_fails_is_told_with_what_plays_it_again(project: Path) -> None:
    status, said = pytest_in(project)
    assert status == 1
    assert "2 failed, 1 passed" in said
    assert said.count(">       assert not glance_at(engine).is_idle") == 1, "not once for each pass"
    (counted,) = re.findall(r"^test_it.py::test_forgetful: (\d+) tried, (\d+) failed$", said, re.MULTILINE)
    again = re.findall(r"again: pytest '(\S+)' --crash-at=(\S+)", said)
    assert 0 < int(counted[1]) == len(again) < int(counted[0])
    assert "NonDeterminismError" in said
    nodeid, point = again[0]
    assert nodeid == "test_it.py::test_forgetful"

    status, said = pytest_in(project, nodeid, f"--crash-at={point}")
    assert status == 1
    assert f"{nodeid}: 1 tried, 1 failed" in said
    status, said = pytest_in(project, nodeid, "--crash-at=before:1")
    assert status == 0
    assert f"{nodeid}: 1 tried, 0 failed" in said


KILLED = """
import os
from pathlib import Path
import pytest
from event_workflow_engine import Saga, SagaStep, current_step

HERE = Path(__file__).parent

def lived(word):
    with (HERE / f"lives-{os.getpid()}").open("a") as file:
        file.write(word + " ")

async def act() -> None: ...

async def charge() -> None:
    with (HERE / "charged").open("a") as file:
        file.write(current_step().idempotency_key + " ")

@pytest.mark.crash_everywhere
async def test_order(engine, effects):
    lived("begun")
    order = Saga("order", [SagaStep("act", act), SagaStep("charge", charge, after=act)])
    engine.register(order)
    await engine.execute(order, id="o-1")
    assert effects.standing("o-1") == ["act", "charge"]
    await engine.execute(order)
    lived("ended")
"""


MISPLACED = """
import pytest

@pytest.mark.crash_everywhere
async def test_without_an_engine(clock): ...

@pytest.mark.crash_everywhere
def test_not_async(engine): ...

async def test_a_neighbour(engine): ...
"""


def test_a_marker_on_what_cannot_be_crashed_fails_that_test_alone(project: Path) -> None:
    (project / "test_it.py").write_text(MISPLACED)
    status, said = pytest_in(project)
    assert status == 1
    assert "1 passed, 2 errors" in said
    assert (
        "test_without_an_engine: crash_everywhere crashes the fixture `engine`, which this test does not use: " in said
    )
    assert "test_not_async: crash_everywhere runs async tests, in which an engine runs: make it `async def`" in said


@pytest.mark.timeout(180)
def test_who_looks_is_told_how_far_it_is(project: Path) -> None:
    (project / "test_it.py").write_text(KILLED)
    _, said = pytest_in(project, "-vv", "--crash-kill", "--crash-at=behind:8")
    assert "\ntest_it.py::test_order: 0 of 1 crash points, 0 failed\n" in said
    _, said = pytest_in(project, "-v", "--crash-kill", "--crash-at=behind:8")  # with its -q neither loud nor quiet
    assert "crash points, " not in said


@pytest.mark.parametrize(("at_once", "told"), [(False, [10, 20, 30]), (True, [0, 10, 20, 30])])
def test_a_line_comes_now_and_then(at_once: bool, told: list[int]) -> None:
    lines: list[str] = []
    time = 0.0
    progress = Progress("it", 40, lines.append, at_once=at_once, now=lambda: time)
    for number in range(40):
        progress.tell(number, number // 20)
        time += 1.0
    assert lines == [f"it: {number} of 40 crash points, {number // 20} failed" for number in told]


@pytest.mark.timeout(180)  # five runs of pytest, one after another
def test_with_the_option_the_process_is_killed_and_started_again(project: Path) -> None:
    (project / "test_it.py").write_text(KILLED)
    status, said = pytest_in(project, "--crash-kill", "--crash-at=behind:8")
    assert status == 1
    lives = sorted(path.read_text().split() for path in project.glob("lives-*"))
    # The test's own process runs it twice; then one to its end, one that is killed, and one that goes on.
    assert lives == [["begun"], ["begun", "ended"], ["begun", "ended"], ["begun", "ended", "begun", "ended"]]
    # A saga without an id is another one each time that the program is started.
    assert "test_it.py::test_order: 1 tried, 1 failed" in said
    assert "the sagas ended otherwise: 3 'order' COMPLETED in place of 2 'order' COMPLETED" in said
    assert "again: pytest 'test_it.py::test_order' --crash-kill --crash-at=behind:8" in said


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ("", ["--crash-at=behind"], "--crash-at=behind: before:N or behind:N"),
        ("@pytest.mark.crash_everywhere\nasync def test_other(engine): ...", ["--crash-at=behind:99"], "no such point"),
        ("@pytest.mark.engines('oracle')\ndef test_other(engine): ...", [], "some of 'memory', 'sqlite'"),
    ],
)
def test_what_cannot_be_is_refused(project: Path, line: str, arguments: list[str], message: str) -> None:
    (project / "test_other.py").write_text(f"import pytest\n{line}\n")
    status, said = pytest_in(project, *arguments)
    assert status != 0
    assert message in said
