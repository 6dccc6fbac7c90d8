"""A worker is killed with SIGKILL at every durable operation of the canonical sagas; each of them ends, once, done or undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.ground import Ground, kill_and_resume
from tests.crash.killing import WorkerFactories
from tests.crash.sagas import CASES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from tests.crash.killing import WorkerFactory
    from tests.guarantees.recording import Tally

    Play = Callable[[WorkerFactory], Coroutine[Any, Any, int]]

SOME = 4
"""How many of the operations a short run kills at, where a kill costs a lease."""


@pytest.fixture(scope="module")
def factories() -> Iterator[WorkerFactories]:
    made = WorkerFactories("tests.crash.worker")
    yield made
    made.close()


async def whole_run(factories: WorkerFactories, folder: Path, case: str, server: str = "") -> dict[str, Any]:
    """What a run says that nobody kills."""
    ((code, whole),) = await factories.play([lambda factory: Ground(factory, folder / "whole", case, server).run()])
    assert code == 0
    return whole


async def kill_everywhere(
    factories: WorkerFactories,
    place: Path,
    case: str,
    when: str,
    tally: Tally,
    *,
    server: str = "",
    some: random.Random | None = None,
) -> None:
    whole = await whole_run(factories, place, case, server)
    last = whole["counts"][when]
    points = list(range(1, last + 1))
    chosen = points if some is None else sorted(some.sample(points, min(SOME, last)))

    def killed(at: int) -> Play:
        return lambda factory: kill_and_resume(Ground(factory, place / str(at), case, server), when, [at], whole)

    kills = sum(await factories.play(map(killed, chosen)))
    tally.count(runs=1 + len(chosen), kills=kills)
    # The last operations are those of leaving: group commit may make a run a batch shorter than another.
    assert kills >= len(chosen) - 2


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
@pytest.mark.proves("killed", store="sqlite")
async def test_a_worker_killed_at_any_durable_operation(
    factories: WorkerFactories, tmp_path: Path, case: str, when: str, tally: Tally
) -> None:
    await kill_everywhere(factories, tmp_path, case, when, tally)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
@pytest.mark.proves("killed", store="sqlite")
async def test_whoever_goes_on_with_a_killed_workers_saga_is_killed_too(
    factories: WorkerFactories, tmp_path: Path, case: str, rng: random.Random, tally: Tally
) -> None:
    await kill_in_a_row(factories, tmp_path, case, rng, tally, some=3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.proves("killed", store="sqlite")
async def test_whoever_goes_on_with_a_killed_workers_saga_is_killed_too_at_many_operations(
    factories: WorkerFactories, tmp_path: Path, case: str, rng: random.Random, tally: Tally
) -> None:
    await kill_in_a_row(factories, tmp_path, case, rng, tally, some=60)


async def kill_in_a_row(
    factories: WorkerFactories, folder: Path, case: str, rng: random.Random, tally: Tally, *, some: int
) -> None:
    """Three workers at most, each at one of its first operations: the later ones find that much done already."""
    whole = await whole_run(factories, folder, case)
    ways = [(rng.choice(("before", "behind")), [rng.randrange(1, 6) for _ in range(3)]) for _ in range(some)]

    def killed(n: int) -> Play:
        return lambda factory: kill_and_resume(Ground(factory, folder / str(n), case, ""), *ways[n], whole)

    kills = sum(await factories.play(map(killed, range(some))))
    tally.count(runs=1 + some, kills=kills)
    assert kills > some


@pytest.mark.parametrize("server", ["sqlite", "postgres"])
@pytest.mark.timeout(120)
@pytest.mark.proves("transactional")
async def test_a_worker_killed_within_a_transactional_step(
    factories: WorkerFactories, tmp_path: Path, server: str, request: pytest.FixtureRequest, tally: Tally
) -> None:
    """What it wrote is there once: the saga's result says how often."""
    url = request.getfixturevalue(server) if server == "postgres" else ""
    await kill_everywhere(factories, tmp_path, "transactional", "within", tally, server=url)


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(120)
@pytest.mark.proves("killed", store="postgres")
async def test_a_worker_killed_at_some_durable_operations_on_postgres(
    factories: WorkerFactories, tmp_path: Path, case: str, when: str, postgres: str, rng: random.Random, tally: Tally
) -> None:
    """The next one goes on as soon as the lease of the killed one is over, so each takes a while."""
    await kill_everywhere(factories, tmp_path, case, when, tally, server=postgres, some=rng)


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.proves("killed", store="postgres")
async def test_a_worker_killed_at_any_durable_operation_on_postgres(
    factories: WorkerFactories, tmp_path: Path, case: str, when: str, postgres: str, tally: Tally
) -> None:
    await kill_everywhere(factories, tmp_path, case, when, tally, server=postgres)
