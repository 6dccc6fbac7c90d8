"""A worker with sagas, appends and projections on one SQLite file, whose machine loses its power at the operation that it was told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.crash.killing import die, serve
from tests.crash.sagas import CASES, GO, LEDGER
from tests.integration.projections.kit import Added, expected, sums

from event_workflow_engine import NewEvent, SagaFailedError, WorkflowEngine
from event_workflow_engine.errors import SagaEndedError
from event_workflow_engine.testing.disk import FaultyDisk

if TYPE_CHECKING:
    from event_workflow_engine import SagaHandle

SAGAS = {f"{case}-{n}": case for case in CASES for n in range(2)}
APPENDS = 12
NEVER = 10**9


class Acknowledged:
    """What callers were told is done. It is kept where the power stays on."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, kind: str, name: str) -> None:
        os.write(self._file, f"{kind} {name}\n".encode())


async def play(engine: WorkflowEngine, saga_id: str, acknowledged: Acknowledged) -> str:
    """Start a saga, tell it what it waits for, and see it to its end."""
    saga, value = CASES[SAGAS[saga_id]]
    handle: SagaHandle[Any] = await engine.start(saga, value, id=saga_id)
    acknowledged.add("saga", saga_id)
    if SAGAS[saga_id] == "function":
        with contextlib.suppress(SagaEndedError):
            await handle.signal(GO, "taxi", id="go")
    try:
        await handle.result()
    except SagaFailedError as error:
        return str(error.status)
    return "COMPLETED"


async def append(engine: WorkflowEngine, key: str, acknowledged: Acknowledged) -> None:
    for n in range(APPENDS):
        event = NewEvent("projection-test-added", Added(key, 2**n), id=f"{key}-{n}")
        await engine.store.append(f"sum-{key}", event)
        acknowledged.add("event", event.id or "")


async def work(job: dict[str, Any]) -> dict[str, Any]:
    os.environ[LEDGER] = job["ledger"]
    path = job["url"].removeprefix("sqlite:///")
    acknowledged = Acknowledged(job["acknowledged"])
    behind, within = sums("power-behind"), sums("power-within", "inline")

    def power_goes() -> None:
        disk.lose_power(Path(path).parent)
        die()

    with FaultyDisk(path, random.Random(job["seed"])) as disk:
        disk.at(job["at"] or NEVER, power_goes)
        engine = WorkflowEngine(job["url"])
        engine.register(*(saga for saga, _ in CASES.values()))
        engine.projections.register(behind, within)
        async with engine:
            *states, _, _ = await asyncio.gather(
                *(play(engine, saga_id, acknowledged) for saga_id in SAGAS),
                *(append(engine, key, acknowledged) for key in "ab"),
            )
            end = await engine.store.storage.last_position()
            events: list[Any] = [event.data async for event in engine.store.read_all(types=Added)]
            for projection in (behind, within):
                await engine.projections.wait_for(projection, end, timeout=10)
                found = {one.key: one for one in await engine.projections.find(projection)}
                assert found == expected(events), projection.name
    return {"states": dict(zip(SAGAS, states, strict=True)), "operations": disk.counts.total(), "events": len(events)}


if __name__ == "__main__":
    serve(work)
