"""The engine at its main job: steps, many sagas at once, latency, recovery after SIGKILL, memory of sleeping sagas.

Each function is one measurement, run in a fresh process on a fresh file (see `benchmarks.child`); steps do nothing,
so what is measured is the engine and the disk. SQLite runs at its defaults, which are WAL and ``synchronous=FULL``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from time import monotonic, perf_counter, time_ns
from typing import Any

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine, saga, sleep, step
from event_workflow_engine._measuring.timing import Taken, in_turn, side_by_side
from event_workflow_engine._measuring.work import declared, work

DAY = 86_400
ROOT = Path(__file__).resolve().parent.parent


@saga("many")
async def many(steps: int) -> int:
    """Steps one after another, as a function."""
    total = 0
    for _ in range(steps):
        total += await step(work)
    return total


def engine_on(folder: Path, *, url: str = "", max_running: int = 1000) -> WorkflowEngine:
    """An engine on a file of this folder, or on a store elsewhere."""
    config = EngineConfig(max_running=max_running, auto_upgrade=True)
    return WorkflowEngine(url or f"sqlite:///{folder.resolve() / 'bench.db'}", config=config)


def sequential(folder: Path, *, form: str, steps: int = 1000, long: int = 10_000, url: str = "") -> dict[str, float]:
    """One saga of many steps, one of ten times as many, and the first again, in one process.

    ``long_share`` is the rate of the long one over the mean of the short ones around it.
    """

    async def main() -> dict[str, float]:
        short_saga, long_saga, warm = declared(steps), declared(long or 1), declared(20)
        async with engine_on(folder, url=url) as engine:
            engine.register(many, short_saga, long_saga, warm)

            async def rate(declaration: Saga[Any, Any], count: int) -> float:
                begun = perf_counter()
                if form == "function":
                    result = await engine.execute(many, count)
                    done = result
                else:
                    done = len(await engine.execute(declaration))
                elapsed = perf_counter() - begun
                if done != count:
                    raise AssertionError(f"{done} of {count} steps")
                return count / elapsed

            await rate(warm, 20)
            before = await rate(short_saga, steps)
            figures = {"steps_per_s": before}
            if long:
                figures["long_steps_per_s"] = await rate(long_saga, long)
                after = await rate(short_saga, steps)
                figures["steps_per_s"] = (before + after) / 2
                figures["long_share"] = figures["long_steps_per_s"] / figures["steps_per_s"]
            return figures

    return asyncio.run(main())


def concurrent(
    folder: Path, *, form: str, sagas: int = 1000, steps: int = 5, rounds: int = 3, url: str = ""
) -> dict[str, float]:
    """Many sagas of a few sequential steps at once; some rounds of that, the median, as its raw limit is measured.

    ``first_round_steps_per_s`` is the first one's, in which the process still grows to its size.
    """

    async def main() -> dict[str, float]:
        few = declared(steps)
        async with engine_on(folder, url=url) as engine:
            engine.register(many, few)

            async def run(count: int) -> Taken:
                if form == "function":
                    return await side_by_side(lambda *_: engine.execute(many, steps), callers=count, each=1)
                return await side_by_side(lambda *_: engine.execute(few), callers=count, each=1)

            await run(min(sagas, 50))
            rates = [(await run(sagas)).per_s for _ in range(rounds)]
        rate = statistics.median(rates)
        return {"steps_per_s": rate * steps, "sagas_per_s": rate, "first_round_steps_per_s": rates[0] * steps}

    return asyncio.run(main())


def latency(folder: Path, *, form: str, samples: int = 500, steps: int = 3, url: str = "") -> dict[str, float]:
    """`execute` of sagas of three sequential steps, one after another."""

    async def main() -> Taken:
        few = declared(steps)
        async with engine_on(folder, url=url) as engine:
            engine.register(many, few)
            if form == "function":
                return await in_turn(lambda _: engine.execute(many, steps), count=samples, warm=50)
            return await in_turn(lambda _: engine.execute(few), count=samples, warm=50)

    taken = asyncio.run(main())
    return {"p50_ms": taken.ms(50), "p99_ms": taken.ms(99), "max_ms": taken.ms(100)}


class Interrupted:
    """Sagas whose second step hangs in the process to be killed, and ends in the one that takes over."""

    def __init__(self, expected: int, *, hangs: bool) -> None:
        self.running = 0
        self.all_running = asyncio.Event()
        self._expected = expected
        self._hangs = hangs

    async def second(self) -> int:
        """Count that it runs."""
        self.running += 1
        if self.running == self._expected:
            self.all_running.set()
        if self._hangs:
            await asyncio.Event().wait()
        return 2

    def definition(self, form: str) -> Saga[Any, Any]:
        """The saga in the form asked for."""
        if form == "declared":
            steps: list[SagaStep[Any]] = [SagaStep("first", work), SagaStep("second", self.second)]
            return Saga("interrupted", steps, sequential=True)

        @saga("interrupted")
        async def interrupted() -> int:
            return await step(work) + await step(self.second)

        return interrupted


def recovery(folder: Path, *, form: str, sagas: int = 1000) -> dict[str, float]:
    """Kill a process with many sagas in their second step, start another and wait until all of them have resumed.

    ``resumed_s`` counts from entering the engine until each saga's second step runs again, ``from_exec_s`` the same
    from starting the process, ``ended_s`` from entering the engine until all sagas have ended.
    """
    command = [sys.executable, "-m", "benchmarks.child"]
    sizes: dict[str, Any] = {"form": form, "sagas": sagas}
    start = [*command, "sagas:die", str(folder), json.dumps(sizes)]
    with subprocess.Popen(start, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        if child.stdout.readline().strip() != b"ready":
            raise RuntimeError("the process to be killed did not get its sagas under way")
        child.send_signal(signal.SIGKILL)
    sizes["spawned"] = monotonic()
    again = [*command, "sagas:resume", str(folder), json.dumps(sizes)]
    done = subprocess.run(again, stdout=subprocess.PIPE, cwd=ROOT, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def die(folder: Path, *, form: str, sagas: int) -> dict[str, float]:
    """The process to be killed: it never returns by itself."""

    async def main() -> None:
        steps = Interrupted(sagas, hangs=True)
        definition = steps.definition(form)
        async with engine_on(folder, max_running=sagas) as engine:
            engine.register(definition)
            await in_turns(engine, definition, sagas)
            await steps.all_running.wait()
            print("ready", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
    return {}


async def in_turns(engine: WorkflowEngine, definition: Saga[Any, Any], count: int, *, at_once: int = 1000) -> None:
    """Start sagas, so many at once."""
    for first in range(0, count, at_once):
        async with asyncio.TaskGroup() as tasks:
            for n in range(first, min(first + at_once, count)):
                tasks.create_task(engine.start(definition, id=f"s-{n}"))


def resume(folder: Path, *, form: str, sagas: int, spawned: float) -> dict[str, float]:
    """The process that takes over."""

    async def main() -> dict[str, float]:
        steps = Interrupted(sagas, hangs=False)
        begun = monotonic()
        engine = engine_on(folder, max_running=sagas)
        engine.register(steps.definition(form))
        async with engine:
            await steps.all_running.wait()
            resumed = monotonic()
            with closing(sqlite3.connect(folder / "bench.db")) as look:
                await until(look, "SELECT count(*) FROM sagas WHERE ended_at IS NOT NULL", sagas)
            ended = monotonic()
            if await engine.handle("s-0").result() != 3 and form == "function":
                raise AssertionError("a resumed saga has another result")
        if steps.running != sagas:
            raise AssertionError(f"{steps.running} second steps ran, of {sagas}")
        return {"resumed_s": resumed - begun, "from_exec_s": resumed - spawned, "ended_s": ended - begun}

    return asyncio.run(main())


@saga("sleeper")
async def sleeper() -> None:
    """Sleeps a day."""
    await sleep(DAY)


def memory(folder: Path, *, sagas: int = 100_000) -> dict[str, float]:
    """What sagas asleep on a timer add to the resident memory of an idle engine, in MB (millions of bytes)."""

    async def main() -> dict[str, float]:
        async with engine_on(folder) as engine:
            engine.register(sleeper, many)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(1000):
                    tasks.create_task(engine.execute(many, 3))
            gc.collect()
            idle = resident()
            begun = perf_counter()
            await in_turns(engine, sleeper, sagas)
            with closing(sqlite3.connect(folder / "bench.db")) as look:
                # Rows that nobody owns, due in the future: the sagas have left memory.
                later = time_ns() // 1000 + 3600 * 1_000_000
                query = "SELECT count(*) FROM sagas WHERE owner = '' AND ended_at IS NULL AND wake_at > ?"
                await until(look, query, sagas, later)
            elapsed = perf_counter() - begun
            gc.collect()
            full = resident()
        return {"mb": (full - idle) / 1e6, "idle_mb": idle / 1e6, "put_to_sleep_per_s": sagas / elapsed}

    return asyncio.run(main())


async def until(look: sqlite3.Connection, query: str, sagas: int, *params: int) -> None:
    """Wait until the query counts so many sagas."""
    count = 0
    for _ in range(6000):
        (count,) = look.execute(query, params).fetchone()
        if count == sagas:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{count} of {sagas} sagas after two minutes")


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
