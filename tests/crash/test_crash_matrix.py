"""A worker is killed with SIGKILL at every durable operation of the canonical sagas; each of them ends, once, done or undone."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from tests.crash.killing import WorkerFactory
from tests.crash.sagas import CASES, read
from tests.crash.worker import SAGA_ID

from event_workflow_engine.history import StepSucceeded
from event_workflow_engine.journal import Journal, saga_stream
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.guarantees.recording import Tally

SOME = 4
"""How many of the operations a short run kills at, where a kill costs a lease."""


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.crash.worker")
    yield made
    made.close()


class Ground:
    """Where a saga runs, is killed and goes on: a ledger of its effects, and a store."""

    def __init__(self, factory: WorkerFactory, place: Path, case: str, server: str) -> None:
        self._factory = factory
        self._place = place
        self._case = case
        self.url = f"{server}?schema=k_{uuid4().hex[:16]}" if server else f"sqlite:///{place}/s.db"

    def run(self, when: str = "never", at: int = 0) -> tuple[int, dict[str, Any]]:
        return self._factory.run(self._place, when, at, url=self.url, case=self._case, ledger=str(self.ledger))

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
        code, _ = ground.run(when, at)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        after = Counter(read(ground.ledger))
        check_not_again(completed, before, after)
        _, facts = await ground.journal()
        before, completed = after, {fact.step for fact in facts if isinstance(fact, StepSucceeded)}
    code, ended = ground.run()
    assert code == 0
    assert {key: ended.get(key) for key in ("status", "result")} == {
        key: whole.get(key) for key in ("status", "result")
    }
    after = Counter(read(ground.ledger))
    check_not_again(completed, before, after)
    assert all(count <= 1 + kills for count in after.values()), "at most once more for each crash"
    journal, facts = await ground.journal()
    check_history(journal, facts, after)
    return kills


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


async def kill_everywhere(
    factory: WorkerFactory,
    place: Path,
    case: str,
    when: str,
    tally: Tally,
    *,
    server: str = "",
    some: random.Random | None = None,
) -> None:
    code, whole = Ground(factory, place / "whole", case, server).run()
    assert code == 0
    last = whole["counts"][when]
    points = list(range(1, last + 1))
    chosen = points if some is None else sorted(some.sample(points, min(SOME, last)))
    kills = 0
    for at in chosen:
        kills += await kill_and_resume(Ground(factory, place / str(at), case, server), when, [at], whole)
    tally.count(runs=1 + len(chosen), kills=kills)
    # The last operations are those of leaving: group commit may make a run a batch shorter than another.
    assert kills >= len(chosen) - 2


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
@pytest.mark.proves("killed", store="sqlite")
async def test_a_worker_killed_at_any_durable_operation(
    factory: WorkerFactory, tmp_path: Path, case: str, when: str, tally: Tally
) -> None:
    await kill_everywhere(factory, tmp_path, case, when, tally)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
@pytest.mark.proves("killed", store="sqlite")
async def test_whoever_goes_on_with_a_killed_workers_saga_is_killed_too(
    factory: WorkerFactory, tmp_path: Path, case: str, rng: random.Random, tally: Tally
) -> None:
    await kill_in_a_row(factory, tmp_path, case, rng, tally, some=3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.proves("killed", store="sqlite")
async def test_whoever_goes_on_with_a_killed_workers_saga_is_killed_too_at_many_operations(
    factory: WorkerFactory, tmp_path: Path, case: str, rng: random.Random, tally: Tally
) -> None:
    await kill_in_a_row(factory, tmp_path, case, rng, tally, some=60)


async def kill_in_a_row(
    factory: WorkerFactory, folder: Path, case: str, rng: random.Random, tally: Tally, *, some: int
) -> None:
    """Three workers at most, each at one of its first operations: the later ones find that much done already."""
    code, whole = Ground(factory, folder / "whole", case, "").run()
    assert code == 0
    kills = 0
    for n in range(some):
        points = [rng.randrange(1, 6) for _ in range(3)]
        kills += await kill_and_resume(
            Ground(factory, folder / str(n), case, ""), rng.choice(("before", "behind")), points, whole
        )
    tally.count(runs=1 + some, kills=kills)
    assert kills > some


@pytest.mark.parametrize("server", ["sqlite", "postgres"])
@pytest.mark.timeout(120)
@pytest.mark.proves("transactional")
async def test_a_worker_killed_within_a_transactional_step(
    factory: WorkerFactory, tmp_path: Path, server: str, request: pytest.FixtureRequest, tally: Tally
) -> None:
    """What it wrote is there once: the saga's result says how often."""
    url = request.getfixturevalue(server) if server == "postgres" else ""
    await kill_everywhere(factory, tmp_path, "transactional", "within", tally, server=url)


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
@pytest.mark.proves("killed", store="postgres")
async def test_a_worker_killed_at_some_durable_operations_on_postgres(
    factory: WorkerFactory, tmp_path: Path, case: str, when: str, postgres: str, rng: random.Random, tally: Tally
) -> None:
    """The next one goes on as soon as the lease of the killed one is over, so each takes a while."""
    await kill_everywhere(factory, tmp_path, case, when, tally, server=postgres, some=rng)


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.proves("killed", store="postgres")
async def test_a_worker_killed_at_any_durable_operation_on_postgres(
    factory: WorkerFactory, tmp_path: Path, case: str, when: str, postgres: str, tally: Tally
) -> None:
    await kill_everywhere(factory, tmp_path, case, when, tally, server=postgres)
