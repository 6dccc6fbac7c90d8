"""How far the passes of a test are, told where somebody looks: with ``-v``, or at a terminal."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

__all__ = ["Progress", "line_writer"]

_EVERY_S: Final = 10.0


class Progress:
    """Writes a line now and then: a test with hundreds of passes would say nothing for minutes.

    Args:
        what: The test.
        points: How many passes there will be.
        write: Writes a line.
        at_once: Whether to begin with one: where each pass is a process.
        now: Tells the time, in seconds.
    """

    def __init__(
        self,
        what: str,
        points: int,
        write: Callable[[str], None],
        *,
        at_once: bool,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._what = what
        self._points = points
        self._write = write
        self._now = now
        self._due = now() if at_once else now() + _EVERY_S

    def tell(self, passed: int, failed: int) -> None:
        """So many are over."""
        if self._now() < self._due:
            return
        self._due = self._now() + _EVERY_S
        self._write(f"{self._what}: {passed} of {self._points} crash points, {failed} failed")


def line_writer(config: pytest.Config) -> Callable[[str], None]:
    """What writes a line where it is looked at while it is written, and nothing elsewhere."""
    # A worker of xdist has no reporter.
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or reporter.verbosity < 0 or not (reporter.verbosity or reporter.isatty):
        return lambda _: None

    def write(line: str) -> None:
        reporter.ensure_newline()
        reporter.write_line(line)

    return write
