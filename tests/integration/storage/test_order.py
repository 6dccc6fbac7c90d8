"""A reader at the tail of a file's log misses nothing, whoever appends to it in however many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.postgres.test_order import UNITS, run

if TYPE_CHECKING:
    from pathlib import Path

FEW = 480

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.parametrize(
        ("writers", "processes"),
        [
            pytest.param(48, 1, marks=pytest.mark.proves("no-gap", store="sqlite")),
            pytest.param(12, 3, marks=pytest.mark.proves("no-gap", store="sqlite-shared")),
        ],
    ),
]


async def check_tail(folder: Path, writers: int, processes: int, units: int, *, folds: bool) -> None:
    found = await run(f"sqlite:///{folder}/a.db", writers, processes, folds=folds, units=units)
    assert (found.missed, found.inverted, found.holes, found.lost) == (0, 0, 0, 0)
    assert found.events > units
    assert found.counted == (found.events - 1 if folds else None)


async def test_a_reader_at_the_tail_misses_nothing(tmp_path: Path, writers: int, processes: int) -> None:
    await check_tail(tmp_path, writers, processes, FEW, folds=True)


@pytest.mark.long
@pytest.mark.parametrize("folds", [False, True], ids=["plain", "inline"])
async def test_a_reader_at_the_tail_of_much_misses_nothing(
    tmp_path: Path, writers: int, processes: int, folds: bool
) -> None:
    await check_tail(tmp_path, writers, processes, 10 * UNITS, folds=folds)
