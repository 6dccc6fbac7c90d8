"""A worker that runs one saga on a store, and kills itself with SIGKILL at the durable operation that it was told."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tests.crash.killing import KillingStorage, serve
from tests.crash.sagas import CASES, GO, LEDGER

from event_workflow_engine import EngineConfig, SagaFailedError, WorkflowEngine
from event_workflow_engine.errors import SagaEndedError
from event_workflow_engine.storage import open_storage

SAGA_ID = "c-1"
LEASE = 0.5  # where no file lock tells that the last one is dead


async def work(job: dict[str, Any]) -> dict[str, Any]:
    os.environ[LEDGER] = job["ledger"]
    saga, value = CASES[job["case"]]
    async with open_storage(job["url"], auto_upgrade=True) as storage:
        killing = KillingStorage(storage, job["when"], job["at"])
        engine = WorkflowEngine(killing, config=EngineConfig(threads=2, lease=LEASE))  # type: ignore[arg-type]
        engine.register(saga)
        async with engine:
            handle = await engine.start(saga, value, id=SAGA_ID)
            if job["case"] == "function":
                with contextlib.suppress(SagaEndedError):
                    await handle.signal(GO, "taxi", id="go")
            try:
                result = await handle.result()
            except SagaFailedError as error:
                ended: dict[str, Any] = {"status": error.status, "compensated": error.report.compensated}
            else:
                ended = {"status": "COMPLETED", "result": dict(result) if hasattr(result, "items") else result}
    return {**ended, "counts": killing.counts}


if __name__ == "__main__":
    serve(work)
