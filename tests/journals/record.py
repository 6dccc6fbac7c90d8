"""Records the journal of a version: `python -m tests.journals.record`, once for each release, before it is made.

It is a dump of a SQLite store, in SQL: what the tables were like is part of what later versions must be able to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.journals.program import CASES, GO, ORDER, Account, Deposited, Opened, balances, named

from event_workflow_engine import EngineConfig, SagaFailedError, WorkflowEngine, WorkflowError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.observed import CrashPoint, ObservedStorage

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage

FOLDER = Path(__file__).parent


async def run(storage: Storage, name: str, crash: CrashPoint | None = None) -> int:
    """Run a saga to its end, or until its engine crashes; how many durable operations that took."""
    observed = ObservedStorage(storage, crash)
    engine = WorkflowEngine(observed, config=EngineConfig(shutdown_timeout=0))  # type: ignore[arg-type]
    saga = named(name)
    engine.register(saga)
    async with engine:
        observed.arm()
        ends = asyncio.create_task(to_the_end(engine, name))
        crashes = asyncio.create_task(observed.cut.wait())
        await asyncio.wait({ends, crashes}, return_when=asyncio.FIRST_COMPLETED)
        operations = observed.operations
        for task in (ends, crashes):
            task.cancel()
        for outcome in await asyncio.gather(ends, crashes, return_exceptions=True):
            if isinstance(outcome, Exception) and not isinstance(outcome, WorkflowError):
                raise outcome
    return operations


async def to_the_end(engine: WorkflowEngine, name: str) -> Any:
    """Start the saga, tell it to go on, and wait."""
    handle = await engine.start(name, ORDER, id=name)
    await handle.signal(GO, "taxi", id="go")
    with contextlib.suppress(SagaFailedError):
        return await handle.result()


async def accounts(engine: WorkflowEngine) -> None:
    """Some events of users, and what they are folded to."""
    repository = engine.repository(Account)
    for name in ("ann", "bob"):
        account = await repository.load(name)
        await repository.save(account, [Opened(name), *(Deposited(name, cents) for cents in (500, 20, 1))])


async def record(path: Path) -> None:
    """Fill the store at `path`."""
    async with open_storage(f"sqlite:///{path}") as storage:
        engine = WorkflowEngine(storage)
        engine.projections.register(balances)
        async with engine:
            await accounts(engine)
        for case in CASES:
            operations = await run(storage, case)
            for at in range(1, operations + 1):
                await run(storage, f"{case}@before-{at}", CrashPoint("before", at))
                await run(storage, f"{case}@behind-{at}", CrashPoint("behind", at))


def main() -> None:
    """Write the journal of the version that is installed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        asyncio.run(record(path))
        with contextlib.closing(sqlite3.connect(path)) as database:
            with database:
                database.execute("UPDATE workers SET host = 'recorded', pid = 1")
            pragmas = [
                f"PRAGMA {name} = {database.execute(f'PRAGMA {name}').fetchone()[0]};"
                for name in ("application_id", "user_version")
            ]
            lines = [*pragmas, *database.iterdump()]
        (FOLDER / f"{version('event-workflow-engine')}.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
