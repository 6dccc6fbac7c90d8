"""`ewe bench`: how fast sagas and appends are on a database of the user's, beside what that gives by itself."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter
from rich.text import Text

from event_workflow_engine._measuring.course import LONG, SHORT, Line, Measurement, measure
from event_workflow_engine.cli.output import cell, console, print_json, table
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.opening import scratch_beside
from event_workflow_engine.storage.scratch import Scratch

__all__ = ["bench"]

_SECONDS: Final = 2.0
_QUICK: Final = 0.2
_LONGEST: Final = 60.0
_MOST: Final = 10_000
_UNSTEADY: Final = 1.5
_ENDINGS: Final = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def bench(  # noqa: D417 - the options tell of themselves
    url: str = "sqlite:///ewe.db",
    /,
    *,
    seconds: Annotated[float | None, Parameter(help="How long each measurement runs (2; at most 60).")] = None,
    quick: Annotated[bool, Parameter(negative="", help="A fifth of a second each: rough.")] = False,
    callers: Annotated[int, Parameter(help="How many writers, and how many sagas, are at once.")] = 100,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of a table.")] = False,
) -> None:
    """Measure a database: appends, steps and sagas, beside the durable writes that it makes by itself.

    The store at the URL is not touched and need not be there. What is measured is on its disk, in a folder beside its
    file; or in its database, in a schema of its own. That is removed at the end, also after Ctrl-C.

    Args:
        url: Beside which store; a SQLite file in the current folder by default.
    """
    if seconds is not None and (quick or not 0 < seconds <= _LONGEST):
        raise DefinitionError(f"--seconds {seconds:g}: it is above 0, at most {_LONGEST:g}, and not beside --quick")
    if not 1 <= callers <= _MOST:
        raise DefinitionError(f"--callers {callers}: it is a number from 1 to {_MOST:,}")
    with _place(url) as (scratch, settings):
        duration = (_QUICK if quick else _SECONDS) if seconds is None else seconds
        found = measure(scratch, settings, seconds=duration, callers=callers, tell=_tell)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        _show(found)


@contextmanager
def _place(url: str) -> Iterator[tuple[Scratch, dict[str, str]]]:
    """A place of our own, removed however the block ends; but not by a kill that no process hears of."""
    scratch = scratch_beside(url)
    # They end the block as Ctrl-C does. No signal ends the removal, which takes a moment.
    with _handled(signal.default_int_handler, *_ENDINGS):
        try:
            yield scratch, asyncio.run(scratch.make())
        finally:
            with _handled(signal.SIG_IGN, signal.SIGINT, *_ENDINGS):
                asyncio.run(scratch.drop())


@contextmanager
def _handled(how: Any, *signals: signal.Signals) -> Iterator[None]:
    """Signals handled so during the block. Only the main thread may say how; elsewhere they are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(one, signal.signal(one, how)) for one in signals]
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)


def _tell(what: str) -> None:
    sys.stderr.write(f"measuring {what}\n")
    sys.stderr.flush()


# -- showing ---------------------------------------------------------------------------------------------------------


def _show(found: Measurement) -> None:
    out = console()
    made = table("", "a second", "p50 ms", "p95 ms", "p99 ms", "limit", "of limit",
                 numbers=("a second", "p50 ms", "p95 ms", "p99 ms", "limit", "of limit"))  # fmt: skip
    for line in found.limits:
        made.add_row(*_cells(line, found, "dim"))
    made.add_section()
    for line in found.ours:
        made.add_row(*_cells(line, found))
    out.print(made)
    for sentence in _read(found):
        out.print(Text(f"\n{sentence}"), soft_wrap=True)


def _name(line: Line, found: Measurement) -> str:
    return {
        "fsync": "4 KiB written and forced to disk (fsync)",
        "fdatasync": "the same with fdatasync",
        "commits": "bare commits of one row",
        "append": "appends, one after another",
        "steps": f"steps of one saga of {LONG}",
        "saga": f"sagas of {SHORT} steps, one after another",
        "appends_at_once": f"appends, {found.callers} writers at once",
        "steps_at_once": f"steps of {found.callers} sagas at once",
    }[line.what]


def _cells(line: Line, found: Measurement, style: str = "") -> list[Text]:
    times = [None if ms is None else f"{ms:.2f}" for ms in (line.p50_ms, line.p95_ms, line.p99_ms)]
    limit = None if line.limit_per_s is None else _number(line.limit_per_s)
    share = None if line.of_limit is None else f"{line.of_limit:.2f}×"
    shown = (_name(line, found), _number(line.per_s), *times, limit, share)
    return [cell(value, style) for value in shown]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"  # noqa: PLR2004 - below it the digit behind counts


def _read(found: Measurement) -> Iterator[str]:
    """What the table says, in words."""
    lines = {line.what: line for line in (*found.limits, *found.ours)}
    commits, append, saga, many = (lines[name] for name in ("commits", "append", "saga", "steps_at_once"))
    disk = lines.get("fdatasync") or lines.get("fsync")
    if disk is None:
        yield (
            f"This database acknowledges {_number(commits.per_s)} commits of one row a second to one client: its disk "
            "and the way to it. Nothing that waits for each of its writes is faster."
        )
    else:
        yield (
            f"Your disk makes {_number(disk.per_s)} durable writes a second, and SQLite {_number(commits.per_s)} "
            "commits of one row. Nothing that waits for each of its writes is faster."
        )
    yield (
        f"One caller gets {append.of_limit:.2f} of that by appends. {found.callers} sagas at once share commits and "
        f"make {many.of_limit:.1f} times as many steps: run many sagas, not one long one."
    )
    yield (
        f"A saga of {SHORT} steps is {SHORT + 1} commits one after another and takes {saga.p50_ms:.1f} ms, 1 of 100 "
        f"more than {saga.p99_ms:.1f} ms. The steps' own work comes on top: these do nothing."
    )
    slowest, fastest = min(found.commits_per_s), max(found.commits_per_s)
    if fastest > slowest * _UNSTEADY:
        yield (
            f"Meanwhile the bare commits moved between {_number(slowest)} and {_number(fastest)} a second: the machine "
            "is busy, or its disk is shared. Measure again when it is calm, and longer (--seconds)."
        )
    for name in ("fsync", "synchronous_commit"):
        if found.settings.get(name) == "off":
            yield f"{name} is off on this server: what it acknowledged may be lost, so these are no durable writes."
