"""All that is measured of a database: what it gives by itself, and what the library makes of that."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine._measuring.disk import forced_writes
from event_workflow_engine._measuring.timing import Taken, in_turn, side_by_side
from event_workflow_engine._measuring.work import Measured, declared
from event_workflow_engine.config import EngineConfig
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from event_workflow_engine.storage.scratch import Scratch

__all__ = ["LONG", "SHORT", "Line", "Measurement", "measure"]

SHORT: Final = 3
"""Steps of the saga whose latency is measured."""
LONG: Final = 100
"""Steps of the saga that runs alone for its steps a second."""
WIDE: Final = 5
"""Steps of the sagas that run side by side."""

_COMMITS_OF_SHORT: Final = SHORT + 1
_ROW: Final = b"x" * 300
_WARM: Final = 20
_PERCENTILES: Final = (50, 95, 99)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of the database's, or of the library's.

    Attributes:
        what: Its name.
        unit: Of what `per_s` counts.
        per_s: How many a second.
        p50_ms: What half of the calls took at most; all three are ``None`` where no single call was timed.
        p95_ms: What 95 of 100 took at most.
        p99_ms: What 99 of 100 took at most.
        limit_per_s: The database's own, by bare commits of one row around this measurement.
        of_limit: `per_s` over that.
    """

    what: str
    unit: str
    per_s: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    limit_per_s: float | None = None
    of_limit: float | None = None


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        url: Beside which store, without a password.
        backend: ``sqlite`` or ``postgres``.
        seconds: How long each measurement ran.
        callers: How many were at once, where several were.
        settings: Those of a server that say how durable a commit is.
        limits: What the disk, or the database, gives by itself.
        commits_per_s: The bare commits again, each run of them: how steady the database was meanwhile.
        ours: What the library makes of it.
    """

    url: str
    backend: str
    seconds: float
    callers: int
    settings: dict[str, str]
    limits: list[Line]
    commits_per_s: list[float]
    ours: list[Line]


def measure(
    scratch: Scratch, settings: dict[str, str], *, seconds: float, callers: int, tell: Callable[[str], None]
) -> Measurement:
    """Measure a place that was made; what only one caller does has bare commits right before and right after it.

    Args:
        scratch: The place.
        settings: What its server says.
        seconds: How long each measurement runs; the limits half of that, each time.
        callers: How many are at once, where several are.
        tell: Told what comes next.

    Raises:
        StorageError: The database does not take it.
    """
    half = seconds / 2
    limits: list[Line] = []
    if scratch.folder is not None:
        tell("the disk")
        limits = [_line(name, "writes", taken) for name, taken in forced_writes(scratch.folder, seconds=half).items()]
    bare: list[Taken] = []

    def commits() -> None:
        tell("bare commits")
        bare.append(asyncio.run(_bare(scratch, half)))

    def around() -> float:
        commits()
        return _rate(bare[-2:])

    commits()
    tell("appends, one caller")
    append = asyncio.run(_appends_in_turn(scratch, seconds))
    ours = [_line("append", "events", append, limit=around())]
    tell("steps, one saga")
    steps = asyncio.run(_sagas_in_turn(scratch, LONG, seconds))
    ours.append(_beside(Line(what="steps", unit="steps", per_s=steps.per_s * LONG), around()))
    tell("latency of a saga")
    short = asyncio.run(_sagas_in_turn(scratch, SHORT, seconds))
    ours.append(_line("saga", "sagas", short, limit=around() / _COMMITS_OF_SHORT))
    every = _rate(bare)
    tell(f"appends, {callers} callers")
    appends = asyncio.run(_appends_at_once(scratch, callers, seconds))
    ours.append(_line("appends_at_once", "events", appends, limit=every))
    tell(f"steps, {callers} sagas")
    sagas = asyncio.run(_sagas_at_once(scratch, callers, seconds))
    ours.append(_line("steps_at_once", "steps", sagas, times=WIDE, limit=every))
    pooled = Taken.of((one for taken in bare for one in taken.calls), sum(taken.elapsed for taken in bare))
    return Measurement(
        url=scratch.shown, backend=scratch.backend, seconds=seconds, callers=callers, settings=settings,
        limits=[*limits, _line("commits", "commits", pooled)], commits_per_s=[taken.per_s for taken in bare], ours=ours,
    )  # fmt: skip


def _rate(runs: list[Taken]) -> float:
    return sum(len(taken.calls) for taken in runs) / sum(taken.elapsed for taken in runs)


def _line(what: str, unit: str, taken: Taken, *, times: int = 1, limit: float | None = None) -> Line:
    p50, p95, p99 = (taken.ms(percentile) for percentile in _PERCENTILES)
    line = Line(what=what, unit=unit, per_s=taken.per_s * times, p50_ms=p50, p95_ms=p95, p99_ms=p99)
    return line if limit is None else _beside(line, limit)


def _beside(line: Line, limit: float) -> Line:
    return msgspec.structs.replace(line, limit_per_s=limit, of_limit=line.per_s / limit)


async def _bare(scratch: Scratch, seconds: float) -> Taken:
    async with scratch.committing() as commit:
        return await in_turn(lambda _: commit(_ROW), seconds=seconds, warm=_WARM)


@asynccontextmanager
async def _store(scratch: Scratch) -> AsyncIterator[EventStore]:
    async with open_storage(scratch.url, auto_upgrade=True) as storage:
        yield EventStore(storage)


async def _appends_in_turn(scratch: Scratch, seconds: float) -> Taken:
    async with _store(scratch) as store:
        return await in_turn(
            lambda n: store.append("measured-alone", Measured(f"o-{n}", 5), expected_version=n),
            seconds=seconds, warm=_WARM,
        )  # fmt: skip


async def _appends_at_once(scratch: Scratch, callers: int, seconds: float) -> Taken:
    async with _store(scratch) as store:
        return await side_by_side(
            lambda caller, n: store.append(f"measured-{caller}", Measured(f"o-{n}", 5), expected_version=n),
            callers=callers, seconds=seconds,
        )  # fmt: skip


@asynccontextmanager
async def _engine(scratch: Scratch, callers: int, *sagas: Any) -> AsyncIterator[WorkflowEngine]:
    config = EngineConfig(auto_upgrade=True, max_running=max(callers, 1000))
    engine = WorkflowEngine(scratch.url, config=config)
    engine.register(*sagas)
    async with engine:
        yield engine


async def _sagas_in_turn(scratch: Scratch, steps: int, seconds: float) -> Taken:
    saga, warm = declared(steps), declared(1)
    async with _engine(scratch, 1, saga, warm) as engine:
        await in_turn(lambda _: engine.execute(warm), count=_WARM)
        return await in_turn(lambda _: engine.execute(saga), seconds=seconds)


async def _sagas_at_once(scratch: Scratch, callers: int, seconds: float) -> Taken:
    saga = declared(WIDE)
    async with _engine(scratch, callers, saga) as engine:
        await side_by_side(lambda *_: engine.execute(saga), callers=min(callers, _WARM), each=1)
        return await side_by_side(lambda *_: engine.execute(saga), callers=callers, seconds=seconds)
