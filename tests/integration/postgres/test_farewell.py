"""A connection that the server has ended, but not closed yet, is as lost as one that is closed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from tests.integration.postgres.farewell import FarewellProxy

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.feeds import Bell
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance.kit import append, record, row_unit, saga, unit, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import SqlSession, Storage, Unit

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[FarewellProxy]:
    parts = urlsplit(postgres_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with FarewellProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
async def direct(postgres_url: str) -> AsyncIterator[Storage]:
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        yield storage


@pytest.fixture
async def storage(direct: Storage, postgres_url: str, proxy: FarewellProxy) -> AsyncIterator[Storage]:
    """The same store by way of the proxy, with connections to write, to read and to listen."""
    async with open_storage(proxy.url(postgres_url)) as storage:
        await storage.write(unit(append("a", record()), rows=[worker("w"), saga("s")]))
        await storage.head("a")
        yield storage
        proxy.close_told()


async def test_a_batch_is_written_once_over_another_connection(
    storage: Storage, direct: Storage, proxy: FarewellProxy
) -> None:
    assert await proxy.say_farewell() >= 2
    units = [unit(append("a", record(), expected=n)) for n in range(1, 4)]
    written = await asyncio.gather(*(storage.write(one) for one in units))
    assert [one.appended[0].position for one in written] == [2, 3, 4]
    assert [one.id for one in await direct.read_log(after=1)] == [one.id for one in units]


async def test_reads_go_on_over_another_connection(storage: Storage, proxy: FarewellProxy) -> None:
    await proxy.say_farewell()
    assert await storage.head("a") == 1


async def test_a_claim_fails_as_one_whose_connection_is_lost_and_the_next_is_made(
    storage: Storage, proxy: FarewellProxy
) -> None:
    await proxy.say_farewell()
    with pytest.raises(StorageUnavailableError, match="out of reach"):
        await storage.perform("claim_saga", worker="w", id="s")
    assert len(await storage.perform("claim_saga", worker="w", id="s")) == 1


async def test_sql_of_users_is_not_blamed_for_it(storage: Storage, direct: Storage, proxy: FarewellProxy) -> None:
    """A mistake of theirs would be their step's failure for good."""

    async def work(session: SqlSession) -> Unit:
        await proxy.say_farewell()
        await session.execute("CREATE TABLE own (n int)", {})
        return unit(append("b", record()))

    with pytest.raises(StorageUnavailableError, match="lost"):
        await storage.transact(work)
    assert await direct.head("b") == 0
    await storage.write(unit(append("b", record())))


async def test_commits_of_others_are_heard_again(storage: Storage, direct: Storage, proxy: FarewellProxy) -> None:
    """Who listens looks at the count of commits over the same connection."""
    bell = Bell(storage)
    commits: list[Any] = []

    async def is_heard(seconds: float) -> bool:
        """Whether a commit of another rings, when no ring of before is left."""
        while await bell.wait(1.5):
            pass
        commits.append(await direct.write(row_unit(saga(f"s-{len(commits)}"))))
        return await bell.wait(seconds)

    assert await is_heard(5)
    await proxy.say_farewell()
    async with asyncio.timeout(20):
        while not await is_heard(2):
            pass
    bell.close()
