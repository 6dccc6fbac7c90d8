"""A worker is killed with SIGKILL at every durable operation; its projections hold each event once for all that."""

from __future__ import annotations

import signal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.killing import WorkerFactory
from tests.integration.projections.killed_worker import BATCHES, DOCUMENTS, INLINE, LAST, LINES, REST
from tests.integration.projections.kit import POISON, Added, Noise, expected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.guarantees.recording import Tally
    from tests.integration.projections.kit import Dropped


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


@pytest.mark.parametrize("when", ["before", "within", "behind"])
@pytest.mark.proves("projected-once", store="sqlite")
def test_a_worker_killed_at_any_durable_operation_leaves_each_event_projected_once(
    factory: WorkerFactory, tmp_path: Path, when: str, tally: Tally
) -> None:
    events = [one for part in BATCHES.values() for batch in part for one in batch]
    wanted = whole_state(events, "keeping up 2 1", parked=2)
    code, fault_free = factory.run(tmp_path / "fault-free", role="alone")
    assert code == 0
    last = fault_free.pop("counts")[when]
    assert fault_free == wanted
    for at in count(1):
        code, ended = factory.run(tmp_path / str(at), when, at, role="alone")
        if code == 0:
            break  # there is no such operation any more
        assert code == -signal.SIGKILL
        code, ended = factory.run(tmp_path / str(at), role="alone")
        assert code == 0
        ended.pop("counts")
        assert ended == wanted, f"killed {when} operation {at}"
    tally.count(runs=at, faults=at - 1)
    # Group commit may make one run's last operations fewer than another's.
    assert at - 1 >= last - 2


@pytest.mark.proves("projected-once", store="sqlite-shared", faults=1)
def test_a_second_worker_takes_over_when_the_owner_is_killed_and_each_event_is_projected_once(
    factory: WorkerFactory, second_factory: WorkerFactory, tmp_path: Path
) -> None:
    factory.start(tmp_path, role="owner")
    second_factory.start(tmp_path, role="heir")
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
