"""A service that works for a while: sagas that end in all ways, signals, schedules, events, read models. Tells what it holds.

Run as ``python -m tests.e2e.soak_program URL SECONDS WAVES``: it ends when both the seconds and the waves are over, and
prints a line of JSON when all is quiet behind each wave.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from event_workflow_engine import (
    Aggregate,
    DocumentProjection,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    SqlProjection,
    StepContext,
    WorkflowEngine,
    event,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.engine import glance_at
from event_workflow_engine.snapshots import every

if TYPE_CHECKING:
    from event_workflow_engine.projections import Transaction

AT_ONCE = 60
KINDS = 6
PAGE = os.sysconf("SC_PAGE_SIZE")
APPROVAL = Signal("approval", bool)


@event("soak-counted")
@dataclass(frozen=True)
class Counted:
    key: str


@dataclass(frozen=True)
class Count:
    key: str


@dataclass
class Counter_(Aggregate[Counted], category="soak"):
    value: int = 0

    def apply(self, event: Counted, /) -> None:  # noqa: ARG002 - that there is one is what counts
        self.value += 1


@dataclass(frozen=True)
class Total:
    value: int = 0


totals = DocumentProjection("soak-totals", Total)
ledger = SqlProjection("soak-ledger", tables={"soak_ledger": "key TEXT PRIMARY KEY, n BIGINT NOT NULL"})


@totals.on(Counted, key=lambda e: e.key)
def fold(doc: Total | None, event: Counted) -> Total:
    return Total((doc or Total()).value + 1)


@ledger.on(Counted)
async def book(tx: Transaction, event: Counted) -> None:
    await tx.execute(
        "INSERT INTO {soak_ledger} VALUES (:key, 1) ON CONFLICT (key) DO UPDATE SET n = {soak_ledger}.n + 1",
        key=event.key,
    )


async def act() -> str:
    return "x" * 200


def act_in_thread() -> int:
    return 1


async def undo() -> None: ...


async def refuse() -> None:
    raise ValueError("refused")


async def flaky(ctx: StepContext[Any]) -> str:
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return "now"


async def slow() -> None:
    await asyncio.Event().wait()


SOON = RetryPolicy(attempts=3, delay=0.01, jitter=0)
done = Saga(
    "soak-done", [SagaStep("a", act, undo), SagaStep("b", act_in_thread, undo), SagaStep("c", flaky, retry=SOON)]
)
undone = Saga("soak-undone", [SagaStep("a", act, undo), SagaStep("b", refuse, after="a")])
late = Saga("soak-late", [SagaStep("a", act, undo), SagaStep("b", slow, after="a")], timeout=0.2)
tick = Saga("soak-tick", [SagaStep("a", act)])


@saga("soak-approved")
async def approved() -> bool:
    await asyncio.gather(step(act, compensation=undo), step(act_in_thread, compensation=undo))
    await sleep(timedelta(milliseconds=50))
    return await wait_for_signal(APPROVAL)


@saga("soak-refused")
async def refused() -> None:
    await step(act, compensation=undo)
    await step(refuse)


async def seen(event: Counted) -> None: ...


async def run_one(engine: WorkflowEngine, number: int) -> str:
    kind = number % KINDS
    if kind == 0:
        handle = await engine.start(approved)
        await handle.signal(APPROVAL, True)
        await handle.result()
        return "done"
    if kind == 1:
        await engine.execute(done)
        return "done"
    if kind == 2:
        await engine.commands.execute(Count(f"k{number % 20}"))
        return "counted"
    if kind == 3:
        handle = await engine.start(approved)
        await handle.cancel("soak")
        failing = handle.result()
    else:
        failing = engine.execute((undone, late)[kind - 4]) if number % 2 else engine.execute(refused)
    try:
        await failing
    except SagaFailedError:
        return "undone"
    raise AssertionError("it did not fail")


async def wave(engine: WorkflowEngine, first: int) -> None:
    ends = Counter(await asyncio.gather(*(run_one(engine, first + n) for n in range(AT_ONCE))))
    share = AT_ONCE // KINDS
    assert ends == {"done": 2 * share, "counted": share, "undone": 3 * share}, ends
    await engine.bus.drain()
    for projection in (totals, ledger):
        await engine.projections.wait_for(projection, await engine.storage.last_position(), timeout=60)


def held() -> dict[str, int]:
    gc.collect()
    ours = Counter(type(one).__qualname__ for one in gc.get_objects() if type(one).__module__.startswith("event_work"))
    return {
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "ours": ours.total(),
    }


async def main(url: str, seconds: float, waves: int) -> None:
    engine = WorkflowEngine(url)
    engine.register(done, undone, late, tick, approved, refused)
    engine.projections.register(totals, ledger)
    engine.snapshots.register(Counter_, every(50))
    engine.commands.register(
        Count, lambda _, command: [Counted(command.key)], aggregate=Counter_, key=lambda command: command.key
    )
    engine.bus.subscribe(Counted, seen, key=lambda e: e.key)
    engine.bus.subscribe(Counted, seen, durable="soak-seen")
    begun, number, glance = monotonic(), 0, glance_at(engine)
    async with engine:
        await engine.scheduler.every(0.5, tick, id="soak-tick")
        while number < waves or monotonic() - begun < seconds:
            await wave(engine, number * AT_ONCE)
            number += 1
            await engine.scheduler.pause("soak-tick")
            while not glance.is_idle:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
            print(json.dumps({"at": monotonic() - begun, **held()}), flush=True)  # noqa: T201 - whoever started it reads
            await engine.scheduler.resume("soak-tick")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
