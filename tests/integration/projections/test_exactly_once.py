"""A worker is killed with SIGKILL at every durable operation; its projections hold each event once for all that."""

from __future__ import annotations

import signal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.killing import WorkerFactory
from tests.integration.projections.killed_worker import DOCUMENTS, EVENTS, INLINE, LINES
from tests.integration.projections.kit import Added, Noise, expected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARKED = 2
"""The poisoned event, and the one of its key behind it."""


@pytest.fixture(scope="module")
def factory() -> Iterator[WorkerFactory]:
    made = WorkerFactory("tests.integration.projections.killed_worker")
    yield made
    made.close()


def whole_state() -> dict[str, Any]:
    """What the projections must come to, told from the events alone."""
    sums = expected([one for one in EVENTS if not isinstance(one, Noise)])
    documents = {key: {"key": key, "total": one.total, "events": one.events} for key, one in sums.items()}
    added = [one for one in EVENTS if isinstance(one, Added)]
    lines = [{"key": one.key, "amount": one.amount} for one in added if one.key != "c" or one.amount == 16]
    folded = sum(not isinstance(one, Noise) for one in EVENTS) - PARKED
    at_end = {"position": len(EVENTS), "last": "keeping up 2.1"}
    counters = {DOCUMENTS: folded, INLINE: folded, LINES: len(added) - PARKED}
    return {
        "held": {DOCUMENTS: documents, INLINE: documents, LINES: lines},
        "status": {name: {**at_end, "events": n, "parked": PARKED, "lag": 0} for name, n in counters.items()},
        "checkpoints": {name: {**at_end, "events": n} for name, n in counters.items()},
        "end": len(EVENTS),
    }


@pytest.mark.parametrize("when", ["before", "within", "behind"])
def test_a_worker_killed_at_any_durable_operation_leaves_each_event_projected_once(
    factory: WorkerFactory, tmp_path: Path, when: str
) -> None:
    wanted = whole_state()
    code, fault_free = factory.run(tmp_path / "fault-free")
    assert code == 0
    last = fault_free.pop("counts")[when]
    assert fault_free == wanted
    for at in count(1):
        code, ended = factory.run(tmp_path / str(at), when, at)
        if code == 0:
            break  # there is no such operation any more
        assert code == -signal.SIGKILL
        code, ended = factory.run(tmp_path / str(at))
        assert code == 0
        ended.pop("counts")
        assert ended == wanted, f"killed {when} operation {at}"
    # Group commit may make one run's last operations fewer than another's.
    assert at - 1 >= last - 2
