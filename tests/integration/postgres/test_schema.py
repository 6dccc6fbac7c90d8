"""The schema: made on purpose, once, by whoever may; never half."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from event_workflow_engine.cli.main import FAILED, OK, execute
from event_workflow_engine.errors import SchemaVersionError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.postgres.migrate import applied_migrations, upgrade
from event_workflow_engine.storage.postgres.queries import MIGRATIONS, in_schema
from event_workflow_engine.storage.sql_files import Migration
from event_workflow_engine.storage.tables import TABLES
from event_workflow_engine.testing.conformance.kit import events, unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(60)

TYPES = {"text": "text", "integer": "bigint", "blob": "bytea", "real": "double precision"}


@pytest.fixture
def schema(postgres_url: str) -> str:
    return postgres_url.rpartition("=")[2]


@pytest.fixture
async def connection(postgres: str) -> AsyncIterator[Any]:
    made = await asyncpg.connect(postgres)
    yield made
    await made.close()


async def test_a_store_without_its_schema_says_how_to_make_it(postgres_url: str, schema: str) -> None:
    with pytest.raises(SchemaVersionError, match="ewe db upgrade") as caught:
        async with open_storage(postgres_url):
            pass
    assert repr(schema) in str(caught.value)


def test_the_command_line_makes_and_checks_it(postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["db", "check", "--url", postgres_url]) == FAILED
    assert "SchemaVersionError" in capsys.readouterr().err
    for command in (["db", "upgrade"], ["db", "upgrade"], ["db", "check"]):
        assert execute([*command, "--url", postgres_url]) == OK
        assert f"schema version {len(MIGRATIONS)}" in capsys.readouterr().out
    assert execute(["db", "check", "--json", "--url", postgres_url]) == OK
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == len(MIGRATIONS)
    assert "***" in found["url"]
    assert execute(["db", "status", "--json", "--url", postgres_url]) == OK
    assert json.loads(capsys.readouterr().out)["backend"] == "postgres"


async def test_of_several_that_make_it_one_does(postgres_url: str, schema: str, connection: Any) -> None:
    stores = [open_storage(postgres_url, auto_upgrade=True) for _ in range(6)]
    await asyncio.gather(*(store.__aenter__() for store in stores))
    for store in stores:
        await store.write(unit(events("a")))
    assert await stores[0].head("a") == 6
    await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))
    assert list(await applied_migrations(connection, schema)) == [m.number for m in MIGRATIONS]


def second(script: str) -> list[Migration]:
    return [*MIGRATIONS, Migration(len(MIGRATIONS) + 1, "0002_more.sql", script)]


@pytest.mark.parametrize("how", ["fails", "is killed"])
async def test_a_migration_that_breaks_off_is_undone_and_made_again(
    postgres: str, schema: str, connection: Any, how: str
) -> None:
    await upgrade(connection, "here", schema)
    more = "CREATE TABLE ewe.more (n int); INSERT INTO ewe.more VALUES (1);"
    breaks = {"fails": "SELECT 1 / 0;", "is killed": "SELECT pg_terminate_backend(pg_backend_pid());"}[how]
    broken = await asyncpg.connect(postgres)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await upgrade(broken, "here", schema, second(more + breaks))
    broken.terminate()
    assert list(await applied_migrations(connection, schema)) == [m.number for m in MIGRATIONS]
    assert await upgrade(connection, "here", schema, second(more)) == ["0002_more.sql"]
    assert await connection.fetchval(in_schema("SELECT n FROM ewe.more", schema)) == 1


async def test_a_newer_schema_is_left_alone(postgres_url: str, schema: str, connection: Any) -> None:
    await upgrade(connection, "here", schema, second("SELECT 1;"))
    for auto_upgrade in (False, True):
        with pytest.raises(SchemaVersionError, match="upgrade event-workflow-engine"):
            async with open_storage(postgres_url, auto_upgrade=auto_upgrade):
                pass


async def test_an_edited_migration_is_found(schema: str, connection: Any) -> None:
    await upgrade(connection, "here", schema)
    edited = [MIGRATIONS[0]._replace(script=MIGRATIONS[0].script + "\n")]
    with pytest.raises(SchemaVersionError, match="never edited"):
        await upgrade(connection, "here", schema, edited)


@pytest.mark.parametrize("name", TABLES)
async def test_migrations_make_the_declared_tables(schema: str, connection: Any, name: str) -> None:
    await upgrade(connection, "here", schema)
    rows = await connection.fetch(
        "SELECT a.attname AS name, format_type(a.atttypid, NULL) AS type, a.attnum = ANY (i.indkey) AS of_key "
        "FROM pg_attribute AS a JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indisprimary "
        "WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        f"{schema}.{name}",
    )
    table = TABLES[name]
    # In the declared order, which images of rows rely on.
    assert [(row["name"], row["type"]) for row in rows] == [(n, TYPES[kind]) for n, kind in table.columns.items()]
    assert tuple(row["name"] for row in rows if row["of_key"]) == table.key


async def test_two_stores_in_one_database_do_not_see_each_other(postgres_url: str) -> None:
    other = postgres_url + "_b"
    async with (
        open_storage(postgres_url, auto_upgrade=True) as one,
        open_storage(other, auto_upgrade=True) as two,
    ):
        await one.write(unit(events("a", 3)))
        await two.write(unit(events("a")))
        assert (await one.head("a"), await two.head("a")) == (3, 1)
        assert await two.last_position() == 1


async def test_behind_a_pooler_that_keeps_nothing(postgres_url: str) -> None:
    """No prepared statement, no notification: another process's commit is seen by looking."""
    url = f"{postgres_url}&prepared=off&listen=off"
    async with open_storage(url, auto_upgrade=True) as one, open_storage(url) as two:
        rang = asyncio.Event()
        two.add_bell(rang.set)
        await asyncio.sleep(0)
        rang.clear()
        await one.write(unit(events("a")))
        async with asyncio.timeout(10):
            while await two.head("a") != 1 or not rang.is_set():
                await rang.wait()
        await one.perform("claim_saga", worker="w", id="s")
        assert [record.stream for record in await two.read_log()] == ["a"]
