"""A worker is killed with SIGKILL at every durable operation of five sagas; each of them ends, once, done or undone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.sagas import CASES, read
from tests.crash.worker import SAGA_ID

from event_workflow_engine.history import StepSucceeded
from event_workflow_engine.journal import Journal, saga_stream
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from event_workflow_engine.storage.port import Storage

ROOT = Path(__file__).parents[2]


class Factory:
    """Runs workers in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, place: Path, case: str, when: str, at: int) -> tuple[int, dict[str, Any]]:
        """A worker's exit code, and what it says when it lived."""
        place.mkdir(exist_ok=True)
        out = place / "out.json"
        out.unlink(missing_ok=True)
        job = {"url": f"sqlite:///{place}/s.db", "ledger": str(place / "ledger"), "out": str(out)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, "case": case, "when": when, "at": at}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, json.loads(out.read_text()) if out.exists() else {}

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    made = Factory(tmp_path_factory.mktemp("factory"))
    yield made
    made.close()


async def journal_of(storage: Storage) -> tuple[Journal, list[Any]]:
    journal, facts = Journal(SAGA_ID), list[Any]()
    for record in await storage.read_stream(saga_stream(SAGA_ID)):
        facts += journal.load(record.data, record.version)
    return journal, facts


async def kill_and_resume(factory: Factory, place: Path, case: str, when: str, at: int, whole: dict[str, Any]) -> bool:
    """Kill a worker at one operation and check what becomes of its saga; whether there was such an operation."""
    code, _ = factory.run(place, case, when, at)
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
    code, ended = factory.run(place, case, "never", 0)
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
async def test_a_worker_killed_at_any_durable_operation(factory: Factory, tmp_path: Path, case: str, when: str) -> None:
    code, whole = factory.run(tmp_path / "whole", case, "never", 0)
    assert code == 0
    last = whole["sent" if when == "before" else "landed"]
    kills = 0
    for at in range(1, last + 1):
        kills += await kill_and_resume(factory, tmp_path / str(at), case, when, at, whole)
    # The last operations are those of leaving: group commit may make a run a batch shorter than another.
    assert kills >= last - 2
