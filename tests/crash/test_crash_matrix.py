"""A worker is killed with SIGKILL at every durable operation of five sagas; each of them ends, once, done or undone."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.killing import WorkerFactory
from tests.crash.sagas import CASES, read
from tests.crash.worker import SAGA_ID

from event_workflow_engine.history import StepSucceeded
from event_workflow_engine.journal import Journal, saga_stream
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from event_workflow_engine.storage.port import Storage


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.crash.worker")
    yield made
    made.close()


def run(factory: WorkerFactory, place: Path, case: str, when: str = "never", at: int = 0) -> tuple[int, dict[str, Any]]:
    return factory.run(place, when, at, case=case, ledger=str(place / "ledger"))


async def journal_of(storage: Storage) -> tuple[Journal, list[Any]]:
    journal, facts = Journal(SAGA_ID), list[Any]()
    for record in await storage.read_stream(saga_stream(SAGA_ID)):
        facts += journal.load(record.data, record.version)
    return journal, facts


async def kill_and_resume(
    factory: WorkerFactory, place: Path, case: str, when: str, at: int, whole: dict[str, Any]
) -> bool:
    """Kill a worker at one operation and check what becomes of its saga; whether there was such an operation."""
    code, _ = run(factory, place, case, when, at)
    if code == 0:
        return False
    assert code == -signal.SIGKILL
    ledger = place / "ledger"
    before = Counter(read(ledger))
    completed: set[str] = set()
    if (place / "s.db").exists():
        async with open_storage(f"sqlite:///{place}/s.db") as storage:
            _, facts = await journal_of(storage)
        completed = {fact.step for fact in facts if isinstance(fact, StepSucceeded)}
    code, ended = run(factory, place, case)
    assert code == 0
    assert {key: ended.get(key) for key in ("status", "result")} == {
        key: whole.get(key) for key in ("status", "result")
    }
    after = Counter(read(ledger))
    for step in completed:
        line = ("do", f"{SAGA_ID}:1:{step}")
        assert after[line] == before[line], f"completed step {step} ran again"
    assert all(count <= 2 for count in after.values()), "at most once more for one crash"
    async with open_storage(f"sqlite:///{place}/s.db") as storage:
        journal, facts = await journal_of(storage)
    check_history(journal, facts, after)
    return True


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


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
async def test_a_worker_killed_at_any_durable_operation(
    factory: WorkerFactory, tmp_path: Path, case: str, when: str
) -> None:
    code, whole = run(factory, tmp_path / "whole", case)
    assert code == 0
    last = whole["counts"][when]
    kills = 0
    for at in range(1, last + 1):
        kills += await kill_and_resume(factory, tmp_path / str(at), case, when, at, whole)
    # The last operations are those of leaving: group commit may make a run a batch shorter than another.
    assert kills >= last - 2
