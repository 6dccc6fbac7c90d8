"""Where a saga runs, whose worker is killed, and what must have become of it in the end."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.crash.sagas import read
from tests.crash.worker import SAGA_ID

from event_workflow_engine.history import StepSucceeded
from event_workflow_engine.journal import Journal, saga_stream
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.crash.killing import WorkerFactory


class Ground:
    """Where a saga runs, is killed and goes on: a ledger of its effects, and a store."""

    def __init__(self, factory: WorkerFactory, place: Path, case: str, server: str) -> None:
        self._factory = factory
        self._place = place
        self.case = case
        self.url = f"{server}?schema=k_{uuid4().hex[:16]}" if server else f"sqlite:///{place}/s.db"

    async def run(self, when: str = "never", at: int = 0) -> tuple[int, dict[str, Any]]:
        job = {"url": self.url, "case": self.case, "ledger": str(self.ledger)}
        return await asyncio.to_thread(self._factory.run, self._place, when, at, **job)

    @property
    def ledger(self) -> Path:
        return self._place / "ledger"

    async def journal(self) -> tuple[Journal, list[Any]]:
        """The saga's, and its facts; empty where nothing was written."""
        journal, facts = Journal(SAGA_ID), list[Any]()
        async with open_storage(self.url, auto_upgrade=True) as storage:
            for record in await storage.read_stream(saga_stream(SAGA_ID)):
                facts += journal.load(record.data, record.version)
        return journal, facts


async def kill_and_resume(ground: Ground, when: str, points: Sequence[int], whole: dict[str, Any]) -> int:
    """Kill a worker at an operation, and whoever goes on at the next ones; check what becomes of the saga.

    Returns:
        How many were killed: one that has done all before it comes to its operation is not.
    """
    kills = 0
    before, completed = Counter[tuple[str, str]](), set[str]()
    for at in points:
        code, _ = await ground.run(when, at)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        after = Counter(read(ground.ledger))
        check_not_again(completed, before, after)
        _, facts = await ground.journal()
        before, completed = after, {fact.step for fact in facts if isinstance(fact, StepSucceeded)}
    code, ended = await ground.run()
    assert code == 0
    check_not_again(completed, before, Counter(read(ground.ledger)))
    await check_end(ground, ended, whole, kills)
    return kills


async def check_end(ground: Ground, ended: dict[str, Any], whole: dict[str, Any], kills: int) -> None:
    """The saga ended as it does without a crash, and what it did to the world is what its journal says."""
    assert {key: ended.get(key) for key in ("status", "result")} == {
        key: whole.get(key) for key in ("status", "result")
    }
    after = Counter(read(ground.ledger))
    assert all(count <= 1 + kills for count in after.values()), "at most once more for each crash"
    journal, facts = await ground.journal()
    succeeded = Counter(fact.step for fact in facts if isinstance(fact, StepSucceeded))
    assert set(succeeded.values()) <= {1}, "none was completed twice"
    check_history(journal, facts, after)


def check_not_again(completed: set[str], before: Counter[tuple[str, str]], after: Counter[tuple[str, str]]) -> None:
    for step in completed:
        line = ("do", f"{SAGA_ID}:1:{step}")
        assert after[line] == before[line], f"completed step {step} ran again"


def check_history(journal: Journal, facts: list[Any], ledger: Counter[tuple[str, str]]) -> None:
    """The saga ended exactly once, and the ledger balances."""
    names = [type(fact).__name__ for fact in facts]
    ends = [name for name in names if name in ("SagaCompleted", "SagaCompensated", "SagaCancelled")]
    assert len(ends) == 1
    assert names[-1] == ends[0]
    done = {key for operation, key in ledger if operation == "do"}
    undone = {key for operation, key in ledger if operation == "undo"}
    assert undone == (set() if ends == ["SagaCompleted"] else done)
    if journal.plan is not None:
        happened = [step for step in journal.completed if journal.steps[step].status in ("succeeded", "unknown")]
        assert {entry.step for entry in journal.plan.plan} | set(journal.plan.skipped) == set(happened)
        assert journal.saga_id == SAGA_ID
        place = {step: n for n, step in enumerate(journal.report_order)}
        assert all(place[before] < place[entry.step] for entry in journal.plan.plan for before in entry.after)
        if not any(len(entry.after) != 1 for entry in journal.plan.plan[1:]):
            assert list(journal.report_order) == [step for step in reversed(happened) if step in place]
