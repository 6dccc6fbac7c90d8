"""The marker ``crash_everywhere``: a test is run again for each durable operation, and the engine crashes there.

Hooks of the pytest plugin. In the process of the test, or, with ``--crash-kill``, in processes that are killed.
"""

from __future__ import annotations

import inspect
from argparse import SUPPRESS
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from event_workflow_engine.testing.killing import Folder, KilledPasses, Outcome, told_apart
from event_workflow_engine.testing.observed import CrashPoint
from event_workflow_engine.testing.progress import Progress, line_writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.testing.effects import Effects
    from event_workflow_engine.testing.observed import ObservedStorage

__all__ = ["PASS", "Pass"]

_NAME: Final = "crash_everywhere"
_TRIED: Final = "crash_points_tried"
_FAILED: Final = "crash_points_failed"
_PAGE: Final = 1000


class Pass:
    """One run of a test.

    Attributes:
        point: Where the engine crashes; ``None``: it does not.
        folder: Of a process that is killed there, or goes on behind it; ``None``: the process lives.
        operations: How many durable operations there were.
        crashed: Whether it did.
        outcome: How many sagas of which name are in which state in the end.
    """

    def __init__(self, point: CrashPoint | None = None, folder: Folder | None = None) -> None:
        self.point = point
        self.folder = folder
        self.operations = 0
        self.crashed = False
        self.outcome: Outcome = Counter()

    def crash(self, effects: Effects) -> Callable[[], None]:
        """What notes that the engine crashed."""

        def crashed() -> None:
            self.crashed = True
            effects.crashed()

        return crashed

    async def note(self, engine: WorkflowEngine, observed: ObservedStorage) -> None:
        """The test has ended: see how things stand."""
        self.operations = observed.operations
        after = ""
        while page := await engine.storage.query("sagas_page", state=None, saga=None, after=after, limit=_PAGE):
            self.outcome.update((row["saga"], row["state"]) for row in page)
            after = page[-1]["id"]
        if self.folder is not None:
            self.folder.note(self.operations, self.outcome)


PASS: Final = pytest.StashKey[Pass]()


class _Failure(NamedTuple):
    point: CrashPoint | None
    """``None``: in a process that nobody killed."""
    why: str


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which a failure is reproduced."""
    group = parser.getgroup("event-workflow-engine")
    group.addoption("--crash-at", metavar="WHEN:N", help="crash_everywhere: this point only, as before:7 or behind:7")
    group.addoption("--crash-kill", action="store_true", help="crash_everywhere: kill the whole process with SIGKILL")
    group.addoption("--crash-folder", metavar="FOLDER", help=SUPPRESS)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and check the option."""
    config.addinivalue_line(
        "markers", f"{_NAME}: run the test again for each durable operation, crashing the engine before and behind it"
    )
    given = config.getoption("--crash-at")
    if given is not None:
        when, _, at = given.partition(":")
        if when not in ("before", "behind") or not at.isdecimal() or not int(at):
            raise pytest.UsageError(f"--crash-at={given}: before:N or behind:N, N from 1")


def _misplaced(item: pytest.Item) -> str:
    """What is to be done with the marker of a test that cannot be crashed."""
    if "engine" not in getattr(item, "fixturenames", ()):
        return "crash_everywhere crashes the fixture `engine`, which this test does not use: use it, or drop the marker"
    if not inspect.iscoroutinefunction(getattr(item, "obj", None)):
        return "crash_everywhere runs async tests, in which an engine runs: make it `async def`, or drop the marker"
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse what cannot be crashed, for itself: its neighbours run."""
    if item.get_closest_marker(_NAME) and (why := _misplaced(item)):
        pytest.fail(f"{item.nodeid}: {why}", pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test as often as there are points."""
    if item.get_closest_marker(_NAME) is None or _misplaced(item):
        return None
    folder = item.config.getoption("--crash-folder")
    if folder is not None:
        item.stash[PASS] = Pass(_given_point(item), Folder(Path(folder)))
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _everywhere(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _everywhere(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    whole = Pass()
    first = _run(item, whole, item.parent)
    if not all(report.passed for report in first):
        return first
    tried, failures = _killed(item) if item.config.getoption("--crash-kill") else _crashed(item, whole)
    # Once more without a crash, behind which pytest puts away what the next test does not need.
    last = _run(item, Pass(), nextitem)
    given = item.config.getoption("--crash-at")
    if given is not None and not tried and not failures:
        failures.append(_Failure(_given_point(item), "the test has no such point: it ended before that"))
    for report in last:
        if report.when == "call":
            report.user_properties += [(_TRIED, tried), (_FAILED, len(failures))]
            if failures and report.passed:
                report.outcome = "failed"
                report.longrepr = _told(item, tried, failures)
    return last


def _crashed(item: pytest.Item, whole: Pass) -> tuple[int, list[_Failure]]:
    tried, failures = 0, list[_Failure]()
    points = _points(item, whole.operations)
    progress = Progress(item.nodeid, len(points), line_writer(item.config), at_once=False)
    for number, point in enumerate(points):
        progress.tell(number, len(failures))
        crash = Pass(point)
        reports = _run(item, crash, item.parent)
        tried += crash.crashed
        failed = [report for report in reports if report.failed]
        if failed:
            failures.append(_Failure(point, failed[0].longreprtext))
        elif crash.outcome != whole.outcome:
            failures.append(_Failure(point, told_apart(crash.outcome, whole.outcome)))
    return tried, failures


def _killed(item: pytest.Item) -> tuple[int, list[_Failure]]:
    passes = KilledPasses(item)
    try:
        operations, outcome = passes.whole()
    except AssertionError as failed:
        return 0, [_Failure(None, str(failed))]
    tried, failures = 0, list[_Failure]()
    points = _points(item, operations)
    progress = Progress(item.nodeid, len(points), line_writer(item.config), at_once=True)
    for number, point in enumerate(points):
        progress.tell(number, len(failures))
        killed, why = passes.crash(point, outcome)
        tried += killed
        if why:
            failures.append(_Failure(point, why))
    return tried, failures


def _run(item: pytest.Item, what: Pass, nextitem: Any) -> list[pytest.TestReport]:
    item.stash[PASS] = what
    item._report_sections.clear()  # noqa: SLF001 - nothing else forgets what the passes before have said
    return runtestprotocol(item, log=False, nextitem=nextitem)


def _points(item: pytest.Item, operations: int) -> list[CrashPoint]:
    given = _given_point(item)
    if given is not None:
        return [given]
    return [point for n in range(1, operations + 1) for point in (CrashPoint("before", n), CrashPoint("behind", n))]


def _given_point(item: pytest.Item) -> CrashPoint | None:
    given = item.config.getoption("--crash-at")
    if given is None:
        return None
    when, _, at = given.partition(":")
    return CrashPoint(when, int(at))


def _told(item: pytest.Item, tried: int, failures: list[_Failure]) -> str:
    lines = [f"{len(failures)} of {tried} crash points failed"]
    kill = " --crash-kill" if item.config.getoption("--crash-kill") else ""
    for point, why in failures:
        if point is None:
            lines += ["", "---- in a process of its own it fails without a crash", why]
        else:
            lines += ["", f"---- crash {point.when} durable operation {point.at}", why]
            lines += [f"again: pytest '{item.nodeid}'{kill} --crash-at={point}"]
    return "\n".join(lines)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how many points were tried."""
    told = [
        (report.nodeid, dict(report.user_properties))
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, ())
        if any(name == _TRIED for name, _ in getattr(report, "user_properties", ()))
    ]
    if not told:
        return
    terminalreporter.section("crash points")
    for nodeid, numbers in told:
        terminalreporter.line(f"{nodeid}: {numbers[_TRIED]} tried, {numbers[_FAILED]} failed")
