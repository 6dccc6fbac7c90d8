"""The schema: made on purpose, once, by whoever may; never half."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.integration.cli.kit import Ewe

from event_workflow_engine.cli.main import FAILED, OK
from event_workflow_engine.errors import DefinitionError, SchemaVersionError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row
from event_workflow_engine.storage.postgres.migrate import applied_migrations, upgrade
from event_workflow_engine.storage.postgres.queries import MIGRATIONS, in_schema
from event_workflow_engine.storage.sql_files import Migration
from event_workflow_engine.storage.tables import TABLES
from event_workflow_engine.testing.conformance.kit import append, events, record, saga, unit, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import SqlSession

pytestmark = pytest.mark.timeout(60)

NEWEST = len(MIGRATIONS)
GATE = 7_301  # an advisory lock of the tests
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


@pytest.fixture
def ewe(postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ewe:
    monkeypatch.setenv("COLUMNS", "300")
    return Ewe(postgres_url, capsys)


def test_the_command_line_makes_and_checks_it(ewe: Ewe) -> None:
    shown = shown_url(ewe.url)
    for command in ("check", "status"):
        missing = ewe("db", command)
        assert missing.code == FAILED
        assert "SchemaVersionError" in missing.err
        assert "ewe db upgrade" in missing.err
    for command in ("upgrade", "upgrade", "check"):
        assert ewe("db", command).out == f"{shown}: schema version {NEWEST}, as this version of the library needs it\n"
        assert ewe.json("db", command) == {"url": shown, "schema_version": NEWEST}
    status = ewe.json("db", "status")
    assert status["url"] == shown
    assert status["backend"] == "postgres"
    assert status["schema"] == ewe.url.rpartition("=")[2]
    assert (status["last_position"], status["sagas_by_state"], status["workers"]) == (0, {}, [])
    assert shown in ewe("db", "status").out
    assert urlsplit(ewe.url).password not in ewe("db", "status").out


def test_the_command_line_refuses_a_newer_and_an_altered_schema(ewe: Ewe, schema: str) -> None:
    assert ewe("db", "upgrade").code == OK
    table = f"{schema}.schema_migrations"
    for spoil, restore, says in (
        (f"INSERT INTO {table} VALUES ({NEWEST + 1}, 'x', 'x', 0)", f"DELETE FROM {table} WHERE name = 'x'", "upgrade"),
        (
            f"UPDATE {table} SET checksum = 'x' || checksum",
            f"UPDATE {table} SET checksum = substr(checksum, 2)",
            "edited",
        ),
    ):
        asyncio.run(run(ewe.url, spoil))
        for command in ("check", "upgrade", "status"):
            refused = ewe("db", command)
            assert refused.code == FAILED
            assert "SchemaVersionError" in refused.err
            assert says in refused.err
        asyncio.run(run(ewe.url, restore))
        assert ewe("db", "check").code == OK


def test_of_several_processes_that_make_it_one_does(ewe: Ewe, schema: str) -> None:
    processes = [ewe.popen("db", "upgrade") for _ in range(4)]
    ended = [(*process.communicate(timeout=50), process.returncode) for process in processes]
    assert [(err, code) for _, err, code in ended] == [("", OK)] * 4
    made = asyncio.run(run(ewe.url, f"SELECT number FROM {schema}.schema_migrations ORDER BY number"))
    assert [row["number"] for row in made] == [m.number for m in MIGRATIONS]


async def test_of_several_that_make_it_one_does(postgres_url: str, schema: str, connection: Any) -> None:
    stores = [open_storage(postgres_url, auto_upgrade=True) for _ in range(6)]
    await asyncio.gather(*(store.__aenter__() for store in stores))
    for store in stores:
        await store.write(unit(events("a")))
    assert await stores[0].head("a") == 6
    await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))
    assert list(await applied_migrations(connection, "here", schema)) == [m.number for m in MIGRATIONS]


def second(script: str) -> list[Migration]:
    return [*MIGRATIONS, Migration(len(MIGRATIONS) + 1, "0009_more.sql", script)]


@pytest.mark.parametrize("how", ["fails", "is killed"])
@pytest.mark.proves("migration", store="postgres", faults=1)
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
    assert list(await applied_migrations(connection, "here", schema)) == [m.number for m in MIGRATIONS]
    assert await upgrade(connection, "here", schema, second(more)) == ["0009_more.sql"]
    assert await connection.fetchval(in_schema("SELECT n FROM ewe.more", schema)) == 1


@pytest.mark.proves("migration", store="postgres", faults=1)
async def test_of_two_that_migrate_one_is_ended_from_outside_and_the_other_does_it(
    postgres: str, schema: str, connection: Any
) -> None:
    """The first stands in the middle of its script, the second before it, when the first's backend is terminated."""
    await upgrade(connection, "here", schema)
    wait = f"SELECT pg_advisory_lock_shared({GATE}); SELECT pg_advisory_unlock_shared({GATE});"
    more = second("CREATE TABLE ewe.more (n int); " + wait)
    first, other = [await asyncpg.connect(postgres) for _ in range(2)]
    await connection.execute(f"SELECT pg_advisory_lock({GATE})")
    doomed = asyncio.create_task(upgrade(first, "here", schema, more))
    await is_waiting(connection, first)
    waiting = asyncio.create_task(upgrade(other, "here", schema, more))
    await is_waiting(connection, other)
    assert await connection.fetchval("SELECT pg_terminate_backend($1)", first.get_server_pid())
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await doomed
    assert list(await applied_migrations(connection, "here", schema)) == [m.number for m in MIGRATIONS]
    await connection.execute(f"SELECT pg_advisory_unlock({GATE})")
    assert await waiting == ["0009_more.sql"]
    assert list(await applied_migrations(connection, "here", schema)) == [m.number for m in more]
    for each in (first, other):
        each.terminate()


async def test_a_store_of_the_first_version_is_brought_to_this_one(
    postgres_url: str, schema: str, connection: Any
) -> None:
    """Its sagas are there, and their rows are written whole from then on."""
    await upgrade(connection, "here", schema, MIGRATIONS[:1])
    image = "'s', 'trip', 1, 'RUNNING', '', 3, 10, 0, 5, NULL"
    await connection.execute(f"INSERT INTO {schema}.sagas VALUES ({image})")
    assert await upgrade(connection, "here", schema) == [migration.name for migration in MIGRATIONS[1:]]
    async with open_storage(postgres_url) as storage:
        row = await storage.get("sagas", ("s",))
        assert row == {
            "id": "s", "saga": "trip", "saga_version": 1, "state": "RUNNING", "owner": "", "fence": 3, "wake_at": 10,
            "cursor": 0, "started_at": 5, "ended_at": None, "waits_for": None,
        }  # fmt: skip
        await storage.write(unit(rows=[Row("sagas", "update", ("s",), {"waits_for": "[]"}, {"fence": 3})]))
        assert await storage.get("sagas", ("s",)) == {**row, "waits_for": "[]"}
        whole = {"runs": "[]", "max_running": 5, "beat_at": 7, "alive": 1, "incarnation": 1}
        await storage.write(unit(rows=[Row("workers", "insert", ("w",), whole)]))
        assert whole.items() <= (await storage.get("workers", ("w",)) or {}).items()


async def test_a_newer_schema_is_left_alone(postgres_url: str, schema: str, connection: Any) -> None:
    await upgrade(connection, "here", schema, second("SELECT 1;"))
    for auto_upgrade in (False, True):
        with pytest.raises(SchemaVersionError, match="upgrade event-workflow-engine"):
            async with open_storage(postgres_url, auto_upgrade=auto_upgrade):
                pass


async def test_an_edited_migration_is_found(schema: str, connection: Any) -> None:
    await upgrade(connection, "here", schema)
    edited = [MIGRATIONS[0]._replace(script=MIGRATIONS[0].script + "\n"), *MIGRATIONS[1:]]
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
        shared = uuid7()
        await one.write(unit(append("a", record(shared)), rows=[worker("w"), saga("s")]))
        await one.write(unit(events("a", 2)))
        # The same ids and keys are free in the other, and what holds the one's lock does not hold up the other.
        in_two = unit(append("a", record(shared)), rows=[worker("w"), saga("s")])

        async def work(session: SqlSession) -> None:
            await session.execute("CREATE TABLE own (n int)", {})
            await two.write(in_two)

        await one.exclusive(unit(events("b")), work)
        assert (await one.head("a"), await two.head("a")) == (3, 1)
        assert (await one.last_position(), await two.last_position()) == (4, 1)
        assert await one.fetch("SELECT n FROM own", {}) == []
        with pytest.raises(DefinitionError, match="own"):
            await two.fetch("SELECT n FROM own", {})
        assert len(await one.perform("claim_saga", worker="w", id="s")) == 1
        assert len(await two.perform("claim_saga", worker="w", id="s")) == 1


async def run(url: str, sql: str) -> Any:
    connection = await asyncpg.connect(url.partition("?")[0])
    try:
        return await connection.fetch(sql)
    finally:
        await connection.close()


async def is_waiting(connection: Any, other: Any) -> None:
    """Until the other connection waits for a lock."""
    asked = "SELECT cardinality(pg_blocking_pids($1))"
    async with asyncio.timeout(20):
        while not await connection.fetchval(asked, other.get_server_pid()):
            pass


def shown_url(url: str) -> str:
    return url.replace(f":{urlsplit(url).password}@", ":***@")
