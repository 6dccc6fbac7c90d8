"""What the cases share: short ways to make units, and the fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import ANY_VERSION, Append, NewRecord, Row, Unit, WorkerRef

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from event_workflow_engine.storage.port import Storage

__all__ = ["Cases", "append", "events", "record", "row_unit", "saga", "unit", "worker"]

AT = 1_700_000_000_000_000


def record(record_id: str | None = None, *, type: str = "t", data: bytes = b"{}", count: int = 1) -> NewRecord:  # noqa: A002
    """A record to append."""
    return NewRecord(record_id or uuid7(), type, data, count=count)


def append(stream: str, *records: NewRecord, expected: int = ANY_VERSION) -> Append:
    """An append; with no records a check of the version."""
    return Append(stream, records, expected)


def events(stream: str, number: int = 1, expected: int = ANY_VERSION) -> Append:
    """An append of so many single events."""
    return append(stream, *(record() for _ in range(number)), expected=expected)


def unit(*appends: Append, rows: Sequence[Row] = (), at: int = AT, by: WorkerRef | None = None) -> Unit:
    """A unit with the id of its first record, if it has one."""
    first = next((one.id for each in appends for one in each.records), None)
    return Unit(first or uuid7(), at, appends, tuple(rows), by)


def row_unit(*rows: Row, unit_id: str | None = None, at: int = AT, by: WorkerRef | None = None) -> Unit:
    """A unit of rows alone."""
    return Unit(unit_id or uuid7(), at, (), rows, by)


def saga(saga_id: str, **values: Any) -> Row:
    """The insert of a saga's row: unowned, due, unless told otherwise."""
    default = {"saga": "trip", "saga_version": 1, "state": "RUNNING", "owner": "", "fence": 0, "wake_at": 10}
    return Row("sagas", "insert", (saga_id,), {**default, **values})


def worker(worker_id: str = "w1", incarnation: int = 1, alive: int = 1) -> Row:
    """A worker's row, set."""
    return Row("workers", "upsert", (worker_id,), {"incarnation": incarnation, "alive": alive})


@pytest.mark.asyncio
class Cases:
    """Base of all cases."""

    @pytest.fixture
    def new_storage(self) -> Callable[[], Storage]:
        """How to make the store under test, not yet entered. To be overridden."""
        pytest.fail("override the fixture new_storage: it returns a function that makes the store")

    @pytest_asyncio.fixture
    async def storage(self, new_storage: Callable[[], Storage]) -> AsyncIterator[Storage]:
        """The store under test, entered."""
        async with new_storage() as storage:
            yield storage
