"""A reader at the tail of a file's log misses nothing, whoever appends to it in however many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.postgres.test_order import UNITS, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("folds", [False, True], ids=["plain", "inline"])
@pytest.mark.parametrize(
    ("writers", "processes"),
    [
        pytest.param(64, 1, marks=pytest.mark.proves("no-gap", store="sqlite")),
        pytest.param(16, 4, marks=pytest.mark.proves("no-gap", store="sqlite-shared")),
    ],
)
async def test_a_reader_at_the_tail_misses_nothing(tmp_path: Path, writers: int, processes: int, folds: bool) -> None:
    found = await run(f"sqlite:///{tmp_path}/a.db", writers, processes, folds=folds)
    assert (found.missed, found.inverted, found.holes, found.lost) == (0, 0, 0, 0)
    assert found.events > UNITS
    assert found.counted == (found.events - 1 if folds else None)
