"""A worker that runs one saga on a store, and kills itself with SIGKILL at the durable operation that it was told."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tests.crash.killing import KillingStorage, serve
from tests.crash.sagas import ALL, GO, LEDGER

from event_workflow_engine import EngineConfig, SagaFailedError, WorkflowEngine
from event_workflow_engine.errors import SagaEndedError
from event_workflow_engine.storage import open_storage

SAGA_ID = "c-1"
LEASE = 0.5  # where no file lock tells that the last one is dead


async def run(engine: WorkflowEngine, case: str) -> dict[str, Any]:
    """Ask for the saga, say to it what it waits for, and see how it ends."""
    saga, value = ALL[case]
    handle = await engine.start(saga, value, id=SAGA_ID)
    if case == "function":
        with contextlib.suppress(SagaEndedError):
            await handle.signal(GO, "taxi", id="go")
    try:
        result = await handle.result()
    except SagaFailedError as error:
        return {"status": error.status, "compensated": error.report.compensated}
    return {"status": "COMPLETED", "result": dict(result) if hasattr(result, "items") else result}


async def work(job: dict[str, Any]) -> dict[str, Any]:
    os.environ[LEDGER] = job["ledger"]
    async with open_storage(job["url"], auto_upgrade=True) as storage:
        killing = KillingStorage(storage, job["when"], job["at"])
        engine = WorkflowEngine(killing, config=EngineConfig(threads=2, lease=LEASE))  # type: ignore[arg-type]
        engine.register(ALL[job["case"]][0])
        async with engine:
            ended = await run(engine, job["case"])
    return {**ended, "counts": killing.counts}


if __name__ == "__main__":
    serve(work)
