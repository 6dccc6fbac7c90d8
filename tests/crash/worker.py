"""A process that makes worker processes: it has imported everything, has no threads, and forks one for each line it reads.

A worker runs one saga on a SQLite file and kills itself with SIGKILL at the durable operation that it was told. So a crash
costs milliseconds instead of an interpreter's start, and is as real as any.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from tests.crash.sagas import CASES, GO, LEDGER

from event_workflow_engine import EngineConfig, SagaFailedError, WorkflowEngine
from event_workflow_engine.errors import SagaNotFoundError
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage, Told, Unit

SAGA_ID = "c-1"


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Mine:
    """A store that counts what is written, and kills the process before or behind one of these writes."""

    def __init__(self, storage: Storage, when: str, at: int) -> None:
        self._storage = storage
        self._when = when
        self._at = at
        self.sent = 0
        self.landed = 0
        storage.add_commit_hook(self._committed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def _sending(self) -> None:
        self.sent += 1
        if self._when == "before" and self.sent == self._at:
            die()

    def _committed(self, batch: Any) -> None:
        self.landed += len(batch)
        if self._when == "behind" and self.landed >= self._at > 0:
            die()

    def post(self, unit: Unit, told: Told) -> None:
        self._sending()
        self._storage.post(unit, told)

    async def write(self, unit: Unit) -> Any:
        self._sending()
        return await self._storage.write(unit)

    async def perform(self, name: str, **params: Any) -> Any:
        self._sending()
        return await self._storage.perform(name, **params)


async def work(url: str, case: str, when: str, at: int) -> dict[str, Any]:
    saga, value = CASES[case]
    async with open_storage(url) as storage:
        mine = Mine(storage, when, at)
        engine = WorkflowEngine(mine, config=EngineConfig(threads=2))  # type: ignore[arg-type]
        engine.register(saga)
        async with engine:
            handle = await engine.start(saga, value, id=SAGA_ID)
            if case == "function":
                with contextlib.suppress(SagaNotFoundError):
                    await handle.signal(GO, "taxi", id="go")
            try:
                result = await handle.result()
            except SagaFailedError as error:
                ended: dict[str, Any] = {"status": error.status, "compensated": error.report.compensated}
            else:
                ended = {"status": "COMPLETED", "result": dict(result) if hasattr(result, "items") else result}
    return {**ended, "sent": mine.sent, "landed": mine.landed}


def child(job: dict[str, Any]) -> NoReturn:
    os.environ[LEDGER] = job["ledger"]
    try:
        ended = asyncio.run(work(job["url"], job["case"], job["when"], job["at"]))
        with open(job["out"], "w") as out:  # noqa: PTH123 - the process ends here
            json.dump(ended, out)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
