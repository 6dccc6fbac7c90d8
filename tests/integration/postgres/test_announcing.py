"""Others hear of every commit, and of those in a run together; old releases go on beside this one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from event_workflow_engine.errors import StorageError, VersionConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.postgres import announcer
from event_workflow_engine.storage.postgres.address import Address
from event_workflow_engine.storage.postgres.announcer import commits_in
from event_workflow_engine.testing.conformance.kit import events, row_unit, unit, worker
from event_workflow_engine.testing.network import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from event_workflow_engine.storage.port import Unit

pytestmark = pytest.mark.timeout(60)

FOR_EVER = 3600.0


class Heard:
    """What the writers of a store tell others, as one hears it who listens on a connection of its own."""

    def __init__(self, connection: Any, schema: str, counted: int) -> None:
        self._connection = connection
        self._schema = schema
        self._before = counted
        self._news = asyncio.Event()
        self.commits: list[int] = []

    def hear(self, _connection: object, _pid: int, _channel: str, message: object) -> None:
        """Note of how many commits it tells."""
        self.commits.append(commits_in(str(message))[1])
        self._news.set()

    async def run(self, sql: str) -> None:
        """Run statements over its connection."""
        await self._connection.execute(sql)

    async def all_of(self, commits: int) -> list[int]:
        """What was told, once that is about so many commits, which are as many as the store has counted."""
        async with asyncio.timeout(20):
            while sum(self.commits) < commits:
                self._news.clear()
                await self._news.wait()
        counted = await self._connection.fetchval(f"SELECT last_value FROM {self._schema}.commits")
        assert sum(self.commits) == counted - self._before == commits
        return self.commits


@pytest.fixture
async def heard(postgres_url: str) -> AsyncIterator[Heard]:
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        await storage.write(unit(events("first")))
    address = Address.of(postgres_url)
    connection = await address.connect()
    counted = await connection.fetchval(f"SELECT last_value FROM {address.schema}.commits")
    heard = Heard(connection, address.schema, counted)
    await connection.add_listener(address.channel, heard.hear)
    yield heard
    await connection.close()


def a_run_lasts(monkeypatch: pytest.MonkeyPatch, seconds: float, *, late: float) -> None:
    monkeypatch.setattr(announcer, "_RUN_S", seconds)
    monkeypatch.setattr(announcer, "_LATE_S", late)


async def test_the_first_of_a_run_is_told_of_at_once_and_the_others_when_it_ends(
    postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run_lasts(monkeypatch, FOR_EVER, late=FOR_EVER)
    async with open_storage(postgres_url) as storage:
        await storage.write(unit(events("a")))
        assert await heard.all_of(1) == [1]
        for _ in range(4):
            await storage.write(unit(events("a")))
        await storage.perform("bury_worker", beat=None, id="w", incarnation=1, now=50)
    assert await heard.all_of(6) == [1, 5]


async def test_those_in_a_run_are_told_of_although_no_commit_follows(
    postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run_lasts(monkeypatch, FOR_EVER, late=0.05)
    async with open_storage(postgres_url) as storage:
        for n in range(1, 7):
            await storage.write(unit(events("a")))
            await heard.all_of(n)


async def test_what_is_behind_a_run_is_told_with_the_next_commit(
    postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run_lasts(monkeypatch, FOR_EVER, late=FOR_EVER)
    async with open_storage(postgres_url) as storage:
        for _ in range(3):
            await storage.write(unit(events("a")))
        a_run_lasts(monkeypatch, 0.0, late=FOR_EVER)
        await storage.write(unit(events("a")))
        assert await heard.all_of(4) == [1, 3]


async def test_a_commit_that_fails_takes_nothing_with_it(
    postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run_lasts(monkeypatch, FOR_EVER, late=FOR_EVER)
    async with open_storage(postgres_url) as one, open_storage(postgres_url) as two:
        for n in range(3):
            await one.write(unit(events("a", expected=n)))
        await two.write(unit(events("a", expected=3)))
        a_run_lasts(monkeypatch, 0.0, late=FOR_EVER)
        # It is judged by what is remembered, and refused: nothing is committed with what was to be told.
        with pytest.raises(VersionConflictError):
            await one.write(unit(events("a", expected=3)))
        await one.write(unit(events("b")))
    assert sorted(await heard.all_of(5)) == [1, 1, 3]


SLOW_COMMIT = """
CREATE FUNCTION {schema}.slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON {schema}.events DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION {schema}.slowly()
"""


@pytest.mark.parametrize("how", ["a transaction", "alone", "a batch that was judged anew"])
async def test_nobody_is_told_of_a_commit_that_cannot_be_seen_yet(
    postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Who looks too soon sees nothing, and would not be told again."""
    a_run_lasts(monkeypatch, FOR_EVER, late=0.02)

    async def work(_: object) -> Unit:
        return unit(events("slow"))

    async def nothing(_: object) -> None: ...

    async with open_storage(postgres_url) as storage, open_storage(postgres_url) as other:
        await storage.write(unit(events("slow")))
        await other.write(unit(events("slow")))
        await heard.all_of(2)
        await heard.run(SLOW_COMMIT.format(schema=Address.of(postgres_url).schema))
        if how == "a transaction":
            writing = asyncio.create_task(storage.transact(work))
        elif how == "alone":
            writing = asyncio.create_task(storage.exclusive(unit(events("slow")), nothing))
        else:
            writing = asyncio.create_task(storage.write(unit(events("slow"))))
        await heard.all_of(3)
        seen = await other.head("slow")
        await writing
    assert seen == 3


async def test_a_commit_that_the_server_refuses_leaves_the_count_as_it_is(
    postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was counted, which is not undone, so others are told of it; and of what it would have told them with it."""
    a_run_lasts(monkeypatch, FOR_EVER, late=FOR_EVER)

    async def work(_: object) -> Unit:
        return unit(events("refused"))

    async with open_storage(postgres_url) as storage:
        for _ in range(3):
            await storage.write(unit(events("a")))
        await heard.run(SLOW_COMMIT.format(schema=Address.of(postgres_url).schema).replace("pg_sleep(0.5)", "1 / 0"))
        a_run_lasts(monkeypatch, 0.0, late=FOR_EVER)
        with pytest.raises(StorageError):
            await storage.transact(work)
    assert await heard.all_of(4) == [1, 3]


async def test_it_closes_although_the_server_does_not_answer(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run_lasts(monkeypatch, FOR_EVER, late=FOR_EVER)
    parts = urlsplit(postgres_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with (
        FaultProxy(parts.hostname, parts.port) as proxy,
        asyncio.timeout(10),
        open_storage(proxy.url(postgres_url), auto_upgrade=True) as storage,
    ):
        for _ in range(2):
            await storage.write(unit(events("a")))
        proxy.hang()


async def test_heartbeats_are_told_to_nobody(postgres_url: str, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run_lasts(monkeypatch, 0.0, late=FOR_EVER)
    async with open_storage(postgres_url) as storage:
        await storage.write(row_unit(worker("w")))
        await storage.write(unit(events("a")))
    assert await heard.all_of(1) == [1]


# -- workers of an older release, while the schema is newer --------------------------------------------------------------

OLDER_CALL = """
SELECT last_position, row_version, stale FROM {schema}.commit_batch(
    CAST(NULL AS text[]), CAST(NULL AS bigint[]), CAST(NULL AS text[]), CAST(NULL AS bigint[]), CAST($1 AS jsonb),
    CAST($2 AS bigint), false, CAST(1 AS bigint), ARRAY[CAST($2 AS bigint) + 1], ARRAY['old'], ARRAY[CAST(1 AS bigint)],
    ARRAY[CAST(1 AS bigint)], ARRAY[CAST(0 AS bigint)], ARRAY[CAST($3 AS text)], ARRAY['t'], ARRAY[CAST(1 AS bigint)],
    ARRAY[CAST('{{}}' AS bytea)], ARRAY[CAST('' AS bytea)], ARRAY[CAST(1 AS bigint)], CAST(NULL AS text[]),
    CAST(NULL AS bigint[]), CAST(NULL AS jsonb), CAST(NULL AS jsonb), CAST($4 AS text), CAST('older' AS text))
"""


@pytest.mark.parametrize("alive", [True, False])
async def test_workers_of_an_older_release_go_on(postgres_url: str, heard: Heard, alive: bool) -> None:
    address = Address.of(postgres_url)
    async with open_storage(postgres_url) as storage:
        await storage.write(row_unit(worker("w")))
        connection: asyncpg.Connection[Any] = await address.connect()
        version = await connection.fetchval(f"SELECT CAST(CAST(xmin AS text) AS bigint) FROM {address.schema}.workers")
        if not alive:
            await storage.perform("bury_worker", beat=None, id="w", incarnation=1, now=50)
        seen = json.dumps({"workers": [["w", version]]})
        position = await storage.last_position()
        sql = OLDER_CALL.format(schema=address.schema)
        row = await connection.fetchrow(sql, seen, position, uuid7(), address.channel)
        await connection.close()
        assert (row["row_version"] is not None, row["stale"] is None) == (alive, alive)
        assert await storage.head("old") == alive
        if not alive:
            assert json.loads(row["stale"]) == {"rows": {"workers": [["w", version]]}}
    await heard.all_of(1)
