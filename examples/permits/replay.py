"""Replays the permit log: starts a saga for each case, kills the worker again and again, and compares the counts.

    python examples/permits/replay.py [--json]

It ends with 0 when the projections equal the facts exactly, and with 1 when they do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine.history import StepStarted
from permits import (
    PROJECTIONS,
    Facts,
    activities,
    facts_of,
    permit,
    read_log,
    totals,
    variants,
)

if TYPE_CHECKING:
    from permits import Case

KILLS = 6
PATIENCE_S = 50
LOOK_EVERY_S = 0.01


@dataclass
class Replay:
    """What a replay did."""

    source: str
    wanted: Facts
    found: Facts
    kills: list[dict[str, int]] = field(default_factory=list)
    run_again: int = 0
    seconds: float = 0.0

    def differences(self) -> list[str]:
        said = [
            f"{name}: {getattr(self.found, name)} counted, {getattr(self.wanted, name)} wanted"
            for name in ("events", "cases")
            if getattr(self.found, name) != getattr(self.wanted, name)
        ]
        for name in ("activities", "variants"):
            wanted, found = getattr(self.wanted, name), getattr(self.found, name)
            odd = [key for key in {*wanted, *found} if wanted.get(key) != found.get(key)]
            said += [f"{name}: {key!r}: {found.get(key)} counted, {wanted.get(key)} wanted" for key in odd]
        return said


async def replay(cases: list[Case], source: str, folder: Path, kills: int = KILLS) -> Replay:
    began = time.monotonic()
    url = f"sqlite:///{folder / 'permits.db'}"
    done = Replay(source, facts_of(cases), Facts(0, 0, {}, {}))
    async with asyncio.timeout(PATIENCE_S), WorkflowEngine(url, config=EngineConfig(worker=False)) as engine:
        engine.register(permit)
        engine.projections.register(*PROJECTIONS)
        await asyncio.gather(*(engine.start(permit, case, id=case.id) for case in cases))
        for number in range(1, kills + 1):
            done.kills.append(await one_life(engine, len(cases) * number // (kills + 1)))
        await last_life(engine, len(cases))
        done.found = await counted(engine)
        interrupted = [event async for event in engine.store.read_all(types=StepStarted) if event.data.interruptions]
        done.run_again = len(interrupted)
    done.seconds = time.monotonic() - began
    return done


async def one_life(engine: WorkflowEngine, ended: int) -> dict[str, int]:
    """A worker that is killed as soon as so many cases have ended."""
    worker = await spawn(engine)
    try:
        await until(worker, engine, ended)
    finally:
        worker.kill()
        await worker.wait()
    sagas = await engine.storage.query("sagas_page", state=None, saga="permit", after="", limit=100_000)
    return {
        "pid": worker.pid,
        "cases_ended": await cases_ended(engine),
        "cases_under_way": sum(row["owner"] != "" and row["ended_at"] is None for row in sagas),
        "folded": (await engine.projections.get(totals, "all") or Facts(0, 0, {}, {})).events,
    }


async def last_life(engine: WorkflowEngine, ended: int) -> None:
    """A worker that may end its work."""
    worker = await spawn(engine)
    try:
        await until(worker, engine, ended)
        end = await engine.storage.last_position()
        for projection in PROJECTIONS:
            await engine.projections.wait_for(projection, end, timeout=PATIENCE_S)
        assert worker.stdin is not None
        worker.stdin.close()
        await worker.wait()
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


async def spawn(engine: WorkflowEngine) -> asyncio.subprocess.Process:
    program = Path(__file__).with_name("worker.py")
    return await asyncio.create_subprocess_exec(
        sys.executable, str(program), engine.storage.url, stdin=asyncio.subprocess.PIPE
    )


async def until(worker: asyncio.subprocess.Process, engine: WorkflowEngine, ended: int) -> None:
    """Look into the store until so many cases have ended."""
    while await cases_ended(engine) < ended:
        if worker.returncode is not None:
            raise RuntimeError(f"the worker ended by itself, with exit code {worker.returncode}")
        await asyncio.sleep(LOOK_EVERY_S)


async def cases_ended(engine: WorkflowEngine) -> int:
    counts = {row["state"]: row["n"] for row in await engine.storage.query("sagas_count")}
    return int(counts.get("COMPLETED", 0))


async def counted(engine: WorkflowEngine) -> Facts:
    """What the projections say."""
    whole = await engine.projections.get(totals, "all")
    assert whole is not None
    by_activity = await engine.projections.find(activities, limit=1_000)
    by_variant = await engine.projections.find(variants, limit=10_000)
    return Facts(
        events=whole.events,
        cases=whole.cases,
        activities={activity.name: activity.events for activity in by_activity},
        variants={tuple(variant.activities): variant.cases for variant in by_variant},
    )


# -- telling ---------------------------------------------------------------------------------------------------------


def as_plain(done: Replay) -> dict[str, object]:
    return {
        "source": done.source,
        "events": done.found.events,
        "cases": done.found.cases,
        "activities": done.found.activities,
        "variants": len(done.found.variants),
        "kills": done.kills,
        "steps_run_again": done.run_again,
        "differences": done.differences(),
        "seconds": round(done.seconds, 2),
    }


def tell(done: Replay) -> None:
    out = Console(highlight=False)
    out.print(f"Log: {done.source}", markup=False, soft_wrap=True)
    lives = Table(title="Workers that were killed with SIGKILL", title_justify="left", box=None)
    for title in ("kill", "pid", "cases ended", "under way", "events folded"):
        lives.add_column(title, justify="right")
    for number, kill in enumerate(done.kills, 1):
        lives.add_row(str(number), *map(str, kill.values()))
    out.print(lives)
    facts = Table(title="\nWhat the projections count at the end", title_justify="left", box=None)
    for title in ("fact", "projection", "log"):
        facts.add_column(title, justify="left" if title == "fact" else "right")
    rows = [("events", done.found.events, done.wanted.events), ("cases", done.found.cases, done.wanted.cases)]
    rows += [
        (f"distinct {name}", len(getattr(done.found, name)), len(getattr(done.wanted, name)))
        for name in ("activities", "variants")
    ]
    ordered = sorted(done.wanted.activities.items(), key=lambda item: -item[1])
    rows += [(name, done.found.activities.get(name, 0), count) for name, count in ordered]
    for name, found, wanted in rows:
        facts.add_row(name, f"{found:,}", f"{wanted:,}", style="" if found == wanted else "bold red")
    out.print(facts)
    out.print(f"\n{done.run_again} steps were cut off by a kill and run again; none was counted twice.")
    verdict = "; ".join(done.differences()) or f"All counts are equal. {done.seconds:.1f} s."
    out.print(verdict, style="red" if done.differences() else "green", markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay the permit log as sagas, with a worker that is killed.")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    wanted_json = parser.parse_args().json
    try:
        cases, source = read_log()
    except FileNotFoundError as error:
        sys.stderr.write(f"replay: {error}\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="ewe-permits-") as folder:
        done = asyncio.run(replay(cases, source, Path(folder)))
    if wanted_json:
        print(json.dumps(as_plain(done)))
    else:
        tell(done)
    return 1 if done.differences() else 0


if __name__ == "__main__":
    sys.exit(main())
