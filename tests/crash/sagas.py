"""The canonical sagas, and the outside world that they act on: a ledger that only ever grows."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from event_workflow_engine import (
    CompensationContext,
    RetryPolicy,
    Saga,
    SagaStep,
    Signal,
    StepContext,
    current_step,
    saga,
    sleep,
    step,
    wait_for_signal,
)

LEDGER = "EWE_CRASH_LEDGER"
GO = Signal("go", str)
SOON = RetryPolicy(attempts=3, delay=0, jitter=0)


def write(operation: str, key: str) -> None:
    """One line for each effect, on disk for good before the action goes on: the world does not crash with us."""
    line = json.dumps({"op": operation, "key": key}) + "\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[tuple[str, str]]:
    """The ledger's lines, in order."""
    if not path.exists():
        return []
    return [(entry["op"], entry["key"]) for entry in map(json.loads, path.read_text().splitlines())]


async def act(ctx: StepContext[Any]) -> str:
    write("do", ctx.idempotency_key)
    await asyncio.sleep(0)
    return ctx.idempotency_key


async def undo(ctx: CompensationContext[Any, str]) -> None:
    await asyncio.sleep(0)
    write("undo", ctx.idempotency_key)


def act_in_thread(ctx: StepContext[Any]) -> str:
    write("do", ctx.idempotency_key)
    return ctx.idempotency_key


async def refuse() -> None:
    raise ValueError("refused")


async def hang(ctx: StepContext[Any]) -> str:
    write("do", ctx.idempotency_key)
    await asyncio.Event().wait()
    return ctx.idempotency_key


def bank(ledger: str) -> Path:
    """A file that is there when the bank is open."""
    return Path(f"{ledger}.open")


async def undo_at_the_bank(ctx: CompensationContext[Any, str]) -> None:
    if not bank(os.environ[LEDGER]).exists():
        raise RuntimeError("the bank is closed")
    await undo(ctx)


async def fail_once(ctx: StepContext[Any]) -> str:
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return await act(ctx)


sequential = Saga(
    "sequential",
    [SagaStep("a", act, undo), SagaStep("b", fail_once, undo, retry=SOON), SagaStep("c", act_in_thread, undo)],
    sequential=True,
)
concurrent = Saga("concurrent", [SagaStep(name, act, undo) for name in "abcd"])
dag = Saga(
    "dag",
    [
        SagaStep("root", act, undo),
        SagaStep("left", act, undo, after="root"),
        SagaStep("right", act_in_thread, undo, after="root"),
        SagaStep("refuse", refuse, after=("left", "right")),
    ],
)


MOVED = "SELECT count(*) AS n FROM moved WHERE place = :place"


def place_of(ctx: StepContext[Any]) -> str:
    """Tests share a database, and the sagas of a test its ledger."""
    return f"{os.environ[LEDGER]} {ctx.saga_id}"


async def move(ctx: StepContext[Any]) -> int:
    """How often it was done before; a row that nothing keeps from being there twice."""
    place = place_of(ctx)
    await ctx.transaction.execute("CREATE TABLE IF NOT EXISTS moved (place TEXT NOT NULL)")
    ((before,),) = [tuple(row.values()) for row in await ctx.transaction.fetch(MOVED, place=place)]
    await ctx.transaction.execute("INSERT INTO moved (place) VALUES (:place)", place=place)
    return int(before)


async def count_moves(ctx: StepContext[Any]) -> int:
    ((n,),) = [tuple(row.values()) for row in await ctx.transaction.fetch(MOVED, place=place_of(ctx))]
    return int(n)


transactional = Saga(
    "transactional",
    [
        SagaStep("a", act, undo),
        SagaStep("move", move, transactional=True, retry=SOON),  # two that create the table at once collide
        SagaStep("b", act, undo),
        SagaStep("count", count_moves, transactional=True),
    ],
    sequential=True,
)


async def book(what: str) -> str:
    key = current_step().idempotency_key
    write("do", key)
    return f"{what} {key}"


@saga("function")
async def function(name: str) -> list[str]:
    flight, hotel = await asyncio.gather(
        step(book, f"flight {name}", compensation=undo), step(book, f"hotel {name}", compensation=undo)
    )
    word = await wait_for_signal(GO)
    await sleep(timedelta(milliseconds=10))
    return [flight, hotel, await step(book, word, compensation=undo)]


@saga("undone")
async def undone(name: str) -> None:
    for what in ("flight", "hotel", "taxi"):
        await step(book, f"{what} {name}", compensation=undo, name=what)
    raise ValueError("refused")


CASES: dict[str, tuple[Saga[Any, Any], Any]] = {
    "sequential": (sequential, None),
    "concurrent": (concurrent, None),
    "dag": (dag, None),
    "transactional": (transactional, None),
    "function": (function, "ann"),
    "undone": (undone, "bob"),
}

stuck = Saga(
    "stuck",
    [
        SagaStep("a", act, undo),
        SagaStep("hang", hang, undo, timeout=0.05, retry=RetryPolicy(attempts=1)),
        SagaStep("refuse", refuse),
    ],
    sequential=True,
)
standing = Saga(
    "standing",
    [
        SagaStep("a", act, undo),
        SagaStep("b", act, undo_at_the_bank, compensation_retry=RetryPolicy(attempts=2, delay=0, jitter=0)),
        SagaStep("c", act, undo),
        SagaStep("refuse", refuse),
    ],
    sequential=True,
)

FAILING: dict[str, tuple[Saga[Any, Any], Any]] = {
    **{name: CASES[name] for name in ("dag", "undone")},
    "stuck": (stuck, None),
    "standing": (standing, None),
}
"""They fail, each in its way; one cannot be undone while the bank is closed."""

ALL = {**CASES, **FAILING}
