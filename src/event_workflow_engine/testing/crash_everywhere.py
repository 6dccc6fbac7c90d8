"""The marker ``crash_everywhere``: a test is run again for each durable operation, and the engine crashes there.

Hooks of the pytest plugin.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from event_workflow_engine.testing.observed import CrashPoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        operations: How many durable operations there were.
        crashed: Whether it did.
        outcome: How many sagas of which name are in which state in the end.
    """

    def __init__(self, point: CrashPoint | None = None) -> None:
        self.point = point
        self.operations = 0
        self.crashed = False
        self.outcome: Counter[tuple[str, str]] = Counter()

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


PASS: Final = pytest.StashKey[Pass]()


class _Failure(NamedTuple):
    point: CrashPoint
    why: str


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which a failure is reproduced."""
    group = parser.getgroup("event-workflow-engine")
    group.addoption("--crash-at", metavar="WHEN:N", help="crash_everywhere: this point only, as before:7 or behind:7")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse what cannot be crashed."""
    for item in items:
        if item.get_closest_marker(_NAME) and "engine" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(
                f"{item.nodeid}: crash_everywhere crashes the fixture `engine`, which it does not use"
            )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test as often as there are points."""
    if item.get_closest_marker(_NAME) is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _everywhere(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _everywhere(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    whole = Pass()
    first = _run(item, whole, item.parent)
    tried, failures = 0, list[_Failure]()
    if all(report.passed for report in first):
        for point in _points(item, whole):
            crash = Pass(point)
            reports = _run(item, crash, item.parent)
            tried += crash.crashed
            why = _why(whole, crash, reports)
            if why:
                failures.append(_Failure(point, why))
    # Once more without a crash, behind which pytest puts away what the next test does not need.
    last = _run(item, Pass(), nextitem)
    if not all(report.passed for report in first):
        return first
    for report in last:
        if report.when == "call":
            report.user_properties += [(_TRIED, tried), (_FAILED, len(failures))]
            if failures and report.passed:
                report.outcome = "failed"
                report.longrepr = _told(item, tried, failures)
    return last


def _run(item: pytest.Item, what: Pass, nextitem: Any) -> list[pytest.TestReport]:
    item.stash[PASS] = what
    item._report_sections.clear()  # noqa: SLF001 - nothing else forgets what the passes before have said
    return runtestprotocol(item, log=False, nextitem=nextitem)


def _points(item: pytest.Item, whole: Pass) -> Iterator[CrashPoint]:
    given = item.config.getoption("--crash-at")
    if given is not None:
        when, _, at = given.partition(":")
        yield CrashPoint(when, int(at))
        return
    for n in range(1, whole.operations + 1):
        yield CrashPoint("before", n)
        yield CrashPoint("behind", n)


def _why(whole: Pass, crash: Pass, reports: list[pytest.TestReport]) -> str:
    failed = [report for report in reports if report.failed]
    if failed:
        return failed[0].longreprtext
    if crash.outcome != whole.outcome:
        return f"the sagas ended otherwise: {_states(crash)} in place of {_states(whole)}"
    return ""


def _states(one: Pass) -> str:
    return ", ".join(f"{count} {saga!r} {state}" for (saga, state), count in sorted(one.outcome.items())) or "no saga"


def _told(item: pytest.Item, tried: int, failures: list[_Failure]) -> str:
    lines = [f"{len(failures)} of {tried} crash points failed"]
    for point, why in failures:
        lines += ["", f"---- crash {point.when} durable operation {point.at}", why]
        lines += [f"again: pytest '{item.nodeid}' --crash-at={point}"]
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
