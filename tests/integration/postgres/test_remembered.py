"""A store judges by what it remembers; where another has changed that, the server says so and it is judged anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import OwnershipLostError, RowConflictError, VersionConflictError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Append, Row, Unit, WorkerRef
from event_workflow_engine.testing.conformance.kit import events, row_unit, saga, unit, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage

pytestmark = pytest.mark.timeout(60)

ALIVE = WorkerRef("w1", 1)
OURS = Row("sagas", "check", ("s",), {}, {"owner": "w1"})


@pytest.fixture
async def stores(postgres_url: str) -> AsyncIterator[tuple[Storage, Storage]]:
    """Two that share a database, of which the first remembers a stream, a saga, a worker and a schedule."""
    async with open_storage(postgres_url, auto_upgrade=True) as one, open_storage(postgres_url) as two:
        schedule = Row("schedules", "insert", ("n",), {"kind": "cron", "paused": 0})
        await one.write(unit(events("a"), rows=[worker("w1"), saga("s", owner="w1"), schedule]))
        yield one, two


def write_by(what: str) -> Unit:
    """A unit that is judged by one thing."""
    if what == "stream":
        return unit(events("b"), Append("a", (), 1))  # it only asserts: no index refuses it
    if what == "worker":
        return unit(events("b"), by=ALIVE)
    if what == "saga":
        return unit(events("b"), rows=[OURS])
    return unit(events("b"), rows=[Row("schedules", "check", ("n",), {}, {"paused": 0})])


async def change(store: Storage, what: str) -> None:
    if what == "stream":
        await store.write(unit(events("a")))
    elif what == "worker":
        await store.write(row_unit(Row("workers", "update", ("w1",), {"alive": 0})))
    elif what == "saga":
        await store.write(row_unit(Row("sagas", "update", ("s",), {"owner": "w2"})))
    else:
        await store.write(row_unit(Row("schedules", "update", ("n",), {"paused": 1})))


REFUSALS = {
    "stream": VersionConflictError,
    "worker": OwnershipLostError,
    "saga": RowConflictError,
    "schedule": RowConflictError,
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_what_another_has_changed_is_noticed(stores: tuple[Storage, Storage], what: str) -> None:
    one, two = stores
    await change(two, what)
    before = await two.last_position()
    with pytest.raises(REFUSALS[what]):
        await one.write(write_by(what))
    assert await two.last_position() == before
    for others in REFUSALS.keys() - {what}:  # it goes on with all the rest
        await one.write(write_by(others))


@pytest.mark.parametrize("what", REFUSALS)
async def test_what_nobody_has_changed_holds(stores: tuple[Storage, Storage], what: str) -> None:
    one, two = stores
    await two.write(unit(events("elsewhere")))  # positions move on, which nothing here is judged by
    written = await one.write(write_by(what))
    assert written.appended[0].position == await two.last_position() == 3
