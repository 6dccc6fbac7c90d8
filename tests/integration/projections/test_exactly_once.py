"""A worker is killed with SIGKILL at every durable operation; its projections hold each event once for all that."""

from __future__ import annotations

import signal
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from tests.crash.killing import WorkerFactory
from tests.integration.projections.killed_worker import BATCHES, DOCUMENTS, INLINE, LAST, LINES, REST
from tests.integration.projections.kit import POISON, Added, Noise, expected

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.guarantees.recording import Tally
    from tests.integration.projections.kit import Dropped

SOME = 2
"""How many of the operations are killed at where a kill costs a lease."""


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.integration.projections.killed_worker")
    yield made
    made.close()


@pytest.fixture
def second_factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.integration.projections.killed_worker")
    yield made
    made.close()


def whole_state(events: Sequence[Added | Dropped | Noise], last: str, parked: int) -> dict[str, Any]:
    """What the projections must come to, told from the events alone.

    Args:
        events: All of them, in order.
        last: The id of the last.
        parked: How many are parked: a poisoned one and those of its key behind it.
    """
    sums = expected([one for one in events if not isinstance(one, Noise)])
    documents = {key: {"key": key, "total": one.total, "events": one.events} for key, one in sums.items()}
    poisoned, lines = set[str](), []
    for one in events:
        if isinstance(one, Added):
            poisoned |= {one.key} if one.amount == POISON else set()
            lines += [] if one.key in poisoned else [{"key": one.key, "amount": one.amount}]
    folded = sum(not isinstance(one, Noise) for one in events) - parked
    at_end = {"position": len(events), "last": last}
    counters = {DOCUMENTS: folded, INLINE: folded, LINES: len(lines)}
    return {
        "held": {DOCUMENTS: documents, INLINE: documents, LINES: lines},
        "status": {name: {**at_end, "events": n, "parked": parked, "lag": 0} for name, n in counters.items()},
        "checkpoints": {name: {**at_end, "events": n} for name, n in counters.items()},
        "end": len(events),
    }


class Ground:
    """Runs workers on a new store; their state when they are killed nowhere."""

    def __init__(self, factory: WorkerFactory, folder: Path, server: str) -> None:
        self._factory = factory
        self._folder = folder
        self._server = server

    def url(self, name: str) -> str:
        return f"{self._server}?schema=p_{uuid4().hex[:16]}" if self._server else f"sqlite:///{self._folder}/{name}.db"

    def whole(self, when: str, wanted: dict[str, Any]) -> int:
        """How many operations there are to kill at."""
        code, ended = self._factory.run(self._folder, url=self.url("whole"), role="alone")
        assert code == 0
        last: int = ended.pop("counts")[when]
        assert ended == wanted
        return last

    def kill(self, when: str, at: int, wanted: dict[str, Any]) -> bool:
        """Kill a worker there and let another go on; whether there was such an operation."""
        url = self.url(str(at))
        code, _ = self._factory.run(self._folder, when, at, url=url, role="alone")
        if code == 0:
            return False
        assert code == -signal.SIGKILL
        code, ended = self._factory.run(self._folder, url=url, role="alone")
        assert code == 0
        ended.pop("counts")
        assert ended == wanted, f"killed {when} operation {at}"
        return True


WANTED = whole_state(
    [one for part in BATCHES.values() for batch in part for one in batch], last="keeping up 2 1", parked=2
)


@pytest.mark.parametrize("when", ["before", "within", "behind"])
@pytest.mark.proves("projected-once", store="sqlite")
def test_a_worker_killed_at_any_durable_operation_leaves_each_event_projected_once(
    factory: WorkerFactory, tmp_path: Path, when: str, tally: Tally
) -> None:
    ground = Ground(factory, tmp_path, "")
    last = ground.whole(when, WANTED)
    kills = next(at for at in count(1) if not ground.kill(when, at, WANTED)) - 1
    tally.count(runs=2 + kills, kills=kills)
    # Group commit may make one run's last operations fewer than another's.
    assert kills >= last - 2


@pytest.mark.parametrize("when", ["before", "within", "behind"])
@pytest.mark.proves("projected-once", store="postgres")
def test_a_worker_killed_at_some_durable_operations_on_postgres_leaves_each_event_projected_once(
    factory: WorkerFactory, tmp_path: Path, when: str, postgres: str, rng: random.Random, tally: Tally
) -> None:
    """The next one goes on as soon as the lease of the killed one is over, so each takes a while."""
    ground = Ground(factory, tmp_path, postgres)
    last = ground.whole(when, WANTED)
    kills = sum(ground.kill(when, at, WANTED) for at in rng.sample(range(1, last - 1), SOME))
    tally.count(runs=1 + SOME, kills=kills)
    assert kills == SOME


@pytest.mark.parametrize(
    "server",
    [
        pytest.param("sqlite", marks=pytest.mark.proves("projected-once", store="sqlite-shared", kills=1)),
        pytest.param("postgres", marks=pytest.mark.proves("projected-once", store="postgres", kills=1)),
    ],
)
def test_a_second_worker_takes_over_when_the_owner_is_killed_and_each_event_is_projected_once(
    factory: WorkerFactory,
    second_factory: WorkerFactory,
    tmp_path: Path,
    server: str,
    request: pytest.FixtureRequest,
) -> None:
    url = Ground(factory, tmp_path, request.getfixturevalue(server) if server == "postgres" else "").url("shared")
    factory.start(tmp_path, url=url, role="owner")
    second_factory.start(tmp_path, url=url, role="heir")
    code, _ = factory.ended()
    assert code == -signal.SIGKILL
    code, ended = second_factory.ended()
    assert code == 0
    (heir,) = ended["living"]
    assert heir not in ended["owners"]["before"].values()
    assert ended["owners"]["after"] == {DOCUMENTS: heir, LINES: heir}
    caught_up = [one for batch in BATCHES["catching up"] for one in batch]
    wanted = whole_state([*caught_up, Noise(), Noise(), *REST, *LAST], f"last {len(LAST) - 1}", parked=0)
    assert {key: ended[key] for key in wanted} == wanted
