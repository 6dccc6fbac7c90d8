"""A service that works on and on holds no more than it did: no memory, no files, no tasks, no threads."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

WARM = 1 / 3
"""In this share of a run it grows to its size: caches and pools of threads fill."""

GROWTH = 1.08
"""What memory may vary by afterwards."""

MOVING = {"files": 0, "tasks": 0, "ours": 12}
"""So many come and go: objects of what is under way beside the waves. A leak of one a saga would be 60 a wave."""


def soak(place: Path, *, seconds: float, waves: int) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "tests.e2e.soak_program", f"sqlite:///{place}/s.db", str(seconds), str(waves)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        samples = [json.loads(line) for line in program.stdout]
    assert program.returncode == 0
    assert len(samples) >= waves
    return samples


def check_flat(samples: list[dict[str, float]]) -> None:
    """Nothing of what can be counted is more at the end than it was when the run was warm."""
    warm = samples[: max(1, int(len(samples) * WARM))]
    later = samples[len(warm) :]
    for what, moving in MOVING.items():
        most = max(sample[what] for sample in warm) + moving
        assert median(sample[what] for sample in later) <= most, (what, most, [sample[what] for sample in later])
        assert later[-1][what] <= most + moving, (what, most, later[-1])


@pytest.mark.slow
def test_a_service_at_work_holds_no_more_tasks_files_and_objects(tmp_path: Path) -> None:
    check_flat(soak(tmp_path, seconds=0, waves=9))


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_service_at_work_for_half_an_hour_is_as_large_as_before(tmp_path: Path) -> None:
    samples = soak(tmp_path, seconds=1800, waves=100)
    check_flat(samples)
    third = len(samples) // 3
    before, after = (
        median(sample["rss"] for sample in part) for part in (samples[third : 2 * third], samples[-third:])
    )
    assert after <= before * GROWTH, (before, after)
    assert samples[-1]["threads"] <= max(sample["threads"] for sample in samples[: 2 * third])
