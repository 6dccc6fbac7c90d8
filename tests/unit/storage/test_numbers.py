"""Lists of numbers on their way to PostgreSQL as text."""

from __future__ import annotations

from enum import Enum

import pytest

from event_workflow_engine.storage.postgres.batch import numbers


class Odd(int, Enum):
    """An integer whose text is its name."""

    ONE = 1


def test_they_are_written_as_the_server_reads_them() -> None:
    assert numbers([]) is None
    assert numbers([0, -7, 2**63]) == "{0,-7,9223372036854775808}"
    assert numbers([1, None, True]) == "{1,NULL,1}"
    assert numbers([Odd.ONE, True]) == "{1,1}"


@pytest.mark.parametrize("odd", ["5", "1,2", 1.0, b"1"])
@pytest.mark.parametrize("other", [1, None])
def test_what_is_no_number_is_refused_before_it_is_sent(odd: object, other: int | None) -> None:
    """The server would take some of it for one."""
    with pytest.raises(TypeError):
        numbers([other, odd])  # type: ignore[list-item]
