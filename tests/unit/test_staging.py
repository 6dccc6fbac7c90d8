"""What is staged where nobody can stage: only what came with a copy of another store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import WorkflowEngine, staging
from event_workflow_engine.refusals import Refusals
from event_workflow_engine.staging import Intake, stage
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.memory.storage import MemoryStorage
from event_workflow_engine.storage.port import Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    from pathlib import Path

TURNS = 50


class Asked(MemoryStorage):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def query(self, name: str, /, **params: Any) -> Any:
        self.asked.append(name)
        return await super().query(name, **params)


class Joined(Asked):
    """One that could share a transaction."""

    stages = True


@pytest.mark.parametrize(("kind", "looks"), [(Asked, 1), (Joined, 4)])
async def test_others_commits_make_no_look_for_what_nobody_can_have_staged(
    kind: type[Asked], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_GATHER_S", 0)
    async with kind() as storage:
        intake = Intake(storage, lambda: 1)
        intake.start()
        for _ in range(4):
            for _ in range(TURNS):
                await asyncio.sleep(0)
            await storage.perform("bury_worker", beat=None, id="none", incarnation=1, now=1)  # rings, and tells no hook
        await intake.stop()
        assert storage.asked.count("staged_page") == looks


class Copied:
    """Takes what is staged to another store, as a copy does."""

    row: Row

    async def stage(self, _: object, row: Row) -> None:
        self.row = row


async def test_what_came_refused_with_a_copy_is_written_when_another_process_has_it_tried_again(tmp_path: Path) -> None:
    url, copied = f"sqlite:///{tmp_path / 'copy.db'}", Copied()
    unit = Unit("one", 1, (Append("things-1", (NewRecord("one", "thing", b"1"),)),))
    await stage(copied, None, unit)  # type: ignore[arg-type]
    refused = Row("staged", "insert", copied.row.key, {**copied.row.values, "refused": "for a reason"})
    async with open_storage(url) as other:
        await other.write(Unit("copy", 1, rows=(refused,)))
        async with WorkflowEngine(url) as engine, asyncio.timeout(20):
            await other.write(Unit("settle", 1))  # a file's first ring is for what may have been before
            (still,) = await engine.refusals.list()
            await Refusals(other).retry(still.id)
            async for event in engine.store.follow(after=0, categories="things"):
                assert event.id == "one"
                break
