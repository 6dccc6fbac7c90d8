"""A worker has its clock set an hour on or back: nobody dies of it, and every saga ends once."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, aclosing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.postgres.clock_worker import LEDGER, OFFSET, ROUNDS, kept, undone
from tests.integration.postgres.test_workers import heard

from event_workflow_engine import EngineConfig, Saga, SagaFailedError, WorkflowEngine
from event_workflow_engine.clock import to_micros
from event_workflow_engine.history import TimerSet
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine import RecordedEvent
    from event_workflow_engine.storage.port import Storage

ROOT = Path(__file__).parents[3]
LEASE = 1.0
HOUR = 3600
SAGAS = 60
LATER = 40
"""The others are started by the worker whose clock is set, when it is."""

ENDS_S = 30.0
"""Sagas that sleep for 3.4 seconds have ended by then, also those that a set clock woke late."""


class Town:
    """A store, the ledger of what was done, and workers with clocks of their own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        folder.mkdir()
        self._folder = folder
        self._ledger = folder / "ledger"

    def set_clock(self, name: str, offset: float) -> None:
        fresh = self._folder / "fresh"
        fresh.write_text(str(offset))
        fresh.replace(self._folder / name)

    @contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen[str]]:
        self.set_clock(name, 0)
        with ExitStack() as opened:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.postgres.clock_worker", self.url, str(LEASE)],
                cwd=ROOT,
                env={**os.environ, LEDGER: str(self._ledger), OFFSET: str(self._folder / name)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=opened.enter_context(self._said(name).open("w")),
                text=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.communicate()

    def _said(self, name: str) -> Path:
        return self._folder / f"{name}-said"

    def said(self, name: str) -> str:
        """What a worker has logged."""
        return self._said(name).read_text()

    def lines(self) -> list[tuple[str, str, int]]:
        """Operation, key and process of each effect."""
        return [tuple(json.loads(line)) for line in self._ledger.read_text().splitlines()]


class Log:
    """What a follower was given of the log, while it was written."""

    def __init__(self) -> None:
        self.events: list[RecordedEvent[object]] = []
        self._grown = asyncio.Event()

    async def follow(self, engine: WorkflowEngine) -> None:
        async with aclosing(engine.store.follow(after=0)) as events:
            async for event in events:
                self.events.append(event)
                self._grown.set()

    async def grown(self) -> None:
        self._grown.clear()
        await self._grown.wait()

    async def started(self, sagas: int) -> None:
        while sum(event.type == "saga-started" for event in self.events) < sagas:
            await self.grown()

    async def up_to(self, position: int) -> None:
        while not self.events or self.events[-1].position < position:
            await self.grown()


async def work_of(town: Town, log: Log, process: subprocess.Popen[str]) -> None:
    """Wait until that worker has done a little more."""
    before = sum(pid == process.pid for _, _, pid in town.lines())
    while sum(pid == process.pid for _, _, pid in town.lines()) < before + 10:
        await log.grown()


async def lives(storage: Storage) -> dict[tuple[int, int], int]:
    """The heartbeat counters of the workers that live, by process and life."""
    return {(row["pid"], row["incarnation"]): row["beat"] for row in await storage.query("live_workers")}


async def two_leases(storage: Storage) -> None:
    """Wait as long as both workers need for the heartbeats of two leases; who thought one dead has buried it by then."""
    before = await lives(storage)
    while any(beat < before[life] + 10 for life, beat in (await lives(storage)).items()):
        pass


def definition(end: str) -> Saga[None, None]:
    return undone if end == "COMPENSATED" else kept


async def outcome(engine: WorkflowEngine, saga_id: str) -> str:
    try:
        await engine.handle(saga_id).result(timeout=ENDS_S)
    except SagaFailedError as error:
        return str(error.status)
    return "COMPLETED"


def check_ledger(town: Town, wanted: dict[str, str]) -> None:
    count = Counter((operation, key) for operation, key, _ in town.lines())
    done = {("do", f"{saga_id}:1:book-{n}") for saga_id in wanted for n in range(ROUNDS)}
    undo = {("undo", key) for _, key in done if wanted[key.partition(":")[0]] == "COMPENSATED"}
    assert set(count) == done | undo
    assert set(count.values()) == {1}, "nobody died, so nothing was done again"


def check_log(events: list[RecordedEvent[object]], stepped: int) -> None:
    """Order is by position, and a recorded time is what the clock of its worker showed."""
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    times = [to_micros(event.recorded_at) for event in events]
    jumps = [later - earlier for earlier, later in pairwise(times)]
    away = min(jumps) if stepped < 0 else max(jumps)
    assert abs(away) > 0.9 * HOUR * 1_000_000, "the step is seen in the log"
    due: dict[tuple[str, str], int] = {}
    fired: Counter[tuple[str, str]] = Counter()
    for event in events:
        timer = (event.stream, getattr(event.data, "timer", ""))
        if isinstance(event.data, TimerSet):
            due[timer] = event.data.due
        elif event.type == "timer-fired":
            fired[timer] += 1
            early = due[timer] - to_micros(event.recorded_at)
            assert early <= HOUR * 1_000_000, "at most by the step"
    assert len(due) == SAGAS * ROUNDS
    assert fired == Counter(dict.fromkeys(due, 1))


async def set_a_clock(url: str, folder: Path, names: tuple[str, ...], step: int) -> None:
    """Forwards it stays; backwards it is set right again, for what it had in memory would wait for an hour."""
    town, log = Town(url, folder), Log()
    engine = WorkflowEngine(url, config=EngineConfig(worker=False, auto_upgrade=True))
    engine.register(kept, undone)
    wanted = {f"s-{n}": "COMPENSATED" if n % 3 else "COMPLETED" for n in range(SAGAS)}
    ids = list(wanted)
    async with engine, open_storage(url) as storage:
        with ExitStack() as opened:
            one, *_ = workers = [opened.enter_context(town.worker(name)) for name in names]
            await asyncio.gather(*(heard(worker, "ready") for worker in workers))
            following = asyncio.create_task(log.follow(engine))
            for saga_id in ids[:LATER]:
                await engine.start(definition(wanted[saga_id]), id=saga_id)
            await asyncio.gather(*(work_of(town, log, worker) for worker in workers))
            town.set_clock("set", step)
            assert one.stdin is not None
            one.stdin.writelines(f"{definition(wanted[saga_id]).name} {saga_id}\n" for saga_id in ids[LATER:])
            one.stdin.flush()
            await work_of(town, log, one)
            await log.started(SAGAS)
            if url.startswith("postgres"):  # a lock on a file needs no heartbeat
                await two_leases(storage)
            if step < 0:
                town.set_clock("set", 0)
            ends = await asyncio.gather(*(outcome(engine, saga_id) for saga_id in wanted))
            await log.up_to(await storage.last_position())
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            assert set(await lives(storage)) == {(worker.pid, 1) for worker in workers}
    assert dict(zip(wanted, ends, strict=True)) == wanted
    check_ledger(town, wanted)
    check_log(log.events, step)
    for name in names:
        assert town.said(name) == "", "nobody was taken for dead, and nothing failed"


def proves(store: str) -> pytest.MarkDecorator:
    return pytest.mark.proves("clock", store=store, runs=2, faults=2)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("server", "names"),
    [
        pytest.param("postgres", ("set", "right"), marks=proves("postgres"), id="postgres"),
        pytest.param("sqlite", ("set", "right"), marks=proves("sqlite-shared"), id="sqlite, two workers"),
        pytest.param("sqlite", ("set",), marks=proves("sqlite"), id="sqlite"),
    ],
)
async def test_a_clock_that_is_set_kills_nobody_and_repeats_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, names: tuple[str, ...]
) -> None:
    """On and back, side by side: most of both is waiting."""
    url: str = request.getfixturevalue("postgres_url") if server == "postgres" else f"sqlite:///{tmp_path}/store"
    async with asyncio.TaskGroup() as plays:
        for way, step in (("on", HOUR), ("back", -HOUR)):
            plays.create_task(set_a_clock(f"{url}_{way}", tmp_path / way, names, step))
