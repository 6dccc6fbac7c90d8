"""Rule 12: who is alive, told by heartbeat counters and a clock that only goes forward."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.liveness import FileLiveness, HeartbeatLiveness, ProcessLiveness
from event_workflow_engine.storage.sqlite.locks import StoreLock

if TYPE_CHECKING:
    from pathlib import Path

LEASE = 10.0


class Monotonic:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def row(beat: int, incarnation: int = 1, name: str = "other", lease: float = LEASE) -> dict[str, Any]:
    return {"id": name, "incarnation": incarnation, "beat": beat, "lease": round(lease * 1_000_000)}


@pytest.fixture
def clock() -> Monotonic:
    return Monotonic()


@pytest.fixture
def liveness(clock: Monotonic) -> HeartbeatLiveness:
    made = HeartbeatLiveness(LEASE, clock)
    made.hold("me")
    return made


def after(liveness: HeartbeatLiveness, clock: Monotonic, seconds: float, seen: dict[str, Any]) -> bool:
    """Look for so long, as often as a worker does; whether it was found to be gone."""
    until, gone = clock.now + seconds, False
    while clock.now < until:
        clock.now = min(clock.now + liveness.look_every, until)
        gone |= liveness.is_gone(seen)
    return gone


def test_rule_12_a_counter_that_stands_still_for_a_lease_is_death(
    liveness: HeartbeatLiveness, clock: Monotonic
) -> None:
    assert not liveness.is_gone(row(1))
    assert not after(liveness, clock, LEASE - 0.001, row(1))
    assert after(liveness, clock, 0.001, row(1))


def test_rule_12_whoever_looks_first_waits_a_whole_lease(liveness: HeartbeatLiveness, clock: Monotonic) -> None:
    """However long the counter has stood still before: only what this process saw counts."""
    clock.now += 100 * LEASE
    assert not liveness.is_gone(row(7))


@pytest.mark.parametrize("later", [row(2), row(1, incarnation=2)])
def test_rule_12_a_beat_and_a_new_life_are_signs_of_life(
    liveness: HeartbeatLiveness, clock: Monotonic, later: dict[str, Any]
) -> None:
    liveness.is_gone(row(1))
    clock.now += LEASE - 1
    assert not liveness.is_gone(later)
    assert not after(liveness, clock, LEASE - 1, later)
    assert after(liveness, clock, 1, later)


@pytest.mark.parametrize("lease", [LEASE / 20, LEASE * 20])
def test_rule_12_a_worker_is_judged_by_its_own_lease(
    liveness: HeartbeatLiveness, clock: Monotonic, lease: float
) -> None:
    assert not liveness.is_gone(row(1, lease=lease))
    assert not after(liveness, clock, lease * 0.99, row(1, lease=lease))
    assert after(liveness, clock, lease * 0.02, row(1, lease=lease))


def test_rule_12_a_row_without_a_lease_is_judged_by_ours(liveness: HeartbeatLiveness, clock: Monotonic) -> None:
    bare = row(1) | {"lease": None}
    assert not liveness.is_gone(bare)
    assert not after(liveness, clock, LEASE - 0.001, bare)
    assert after(liveness, clock, 0.001, bare)


@pytest.mark.parametrize("lease", [LEASE / 2, LEASE, LEASE * 20])
def test_rule_12_an_outage_in_which_nobody_could_look_is_no_sign_of_death(
    liveness: HeartbeatLiveness, clock: Monotonic, lease: float
) -> None:
    """No heart could beat either. When the store is back, each has half of its lease at least to do so."""
    seen = row(1, lease=lease)
    assert not liveness.is_gone(seen)
    assert not after(liveness, clock, lease / 5, seen), "when its next heartbeat was due, the store went"
    clock.now += 100 * lease
    assert not liveness.is_gone(seen)
    assert not after(liveness, clock, lease / 2, seen)
    assert after(liveness, clock, lease / 2, seen), "that one never came back"


def test_nobody_buries_himself(liveness: HeartbeatLiveness, clock: Monotonic) -> None:
    liveness.is_gone(row(1, name="me"))
    clock.now += 2 * LEASE
    assert not liveness.is_gone(row(1, name="me"))


def test_rule_12_a_worker_is_sure_of_itself_for_less_than_others_wait(
    liveness: HeartbeatLiveness, clock: Monotonic
) -> None:
    """From when its last confirmed heartbeat was sent, not from when it was confirmed."""
    assert not liveness.is_sure(), "nothing was confirmed yet"
    sent = clock.now
    clock.now += 3
    liveness.beaten(sent)
    assert liveness.is_sure()
    clock.now = sent + 0.79 * LEASE
    assert liveness.is_sure()
    clock.now = sent + 0.81 * LEASE
    assert not liveness.is_sure()
    liveness.beaten(clock.now)
    assert liveness.is_sure()
    liveness.release("me")
    assert not liveness.is_sure()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", ProcessLiveness),
        ("sqlite:///a.db", FileLiveness),
        ("postgresql://u:p@h/d", HeartbeatLiveness),
        ("postgres://u:p@h/d", HeartbeatLiveness),
    ],
)
def test_each_store_has_the_liveness_that_fits(url: str, kind: type) -> None:
    assert type(open_storage(url).liveness(LEASE)) is kind


FORKING = """
import os, pathlib, signal, sys
from event_workflow_engine.storage.liveness import FileLiveness
from event_workflow_engine.storage.sqlite.locks import StoreLock

liveness, lock = FileLiveness(pathlib.Path("workers")), StoreLock("store.db")
liveness.hold("killed")
lock.acquire()
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()  # outlives its parent, until the test lets it go
    os._exit(0)
signal.pause()
"""


def test_rule_12_a_forked_child_keeps_no_lock_of_its_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKING], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        liveness = FileLiveness(tmp_path / "workers")
        assert not liveness.is_gone(row(1, name="killed"))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        os.kill(child, 0)  # is there
        assert liveness.is_gone(row(1, name="killed"))
        lock = StoreLock(str(tmp_path / "store.db"))
        taken = threading.Thread(target=lock.acquire, daemon=True)
        taken.start()
        taken.join(timeout=10)
        assert not taken.is_alive()
        lock.close()
