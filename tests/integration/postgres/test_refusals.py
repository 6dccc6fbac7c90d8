"""What is wrong with a server, a role or a database is said in a typed error: what, to which store, and what to do."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from tests.integration.postgres.kit import PASSWORD

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.errors import (
    DefinitionError,
    SchemaVersionError,
    StorageError,
    StorageUnavailableError,
    WorkflowError,
)
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row, Written
from event_workflow_engine.storage.postgres import connections, writer
from event_workflow_engine.storage.postgres.errors import connecting_error
from event_workflow_engine.testing.conformance.kit import events, row_unit, unit

if TYPE_CHECKING:
    from tests.integration.postgres.kit import Server

pytestmark = pytest.mark.timeout(60)


async def refused(url: str, *, auto_upgrade: bool = True) -> WorkflowError:
    """What entering the store and writing to it says."""
    with pytest.raises(StorageError) as caught:
        async with open_storage(url, auto_upgrade=auto_upgrade) as storage:
            await storage.write(unit(events("a")))
    assert "postgresql://" in str(caught.value), "it names the store"
    assert PASSWORD not in str(caught.value)
    return caught.value


async def test_a_wrong_password(server: Server) -> None:
    role = await server.role()
    error = await refused(server.at(user=role).replace(PASSWORD, "wrong"))
    assert isinstance(error, StorageUnavailableError)
    assert "check the user and password" in str(error)
    assert "wrong" not in str(error)


async def test_a_database_that_is_missing(server: Server) -> None:
    error = await refused(server.at(database="nowhere"))
    assert isinstance(error, StorageUnavailableError)
    assert "create it" in str(error)


async def test_a_database_that_takes_no_connections(server: Server) -> None:
    database, role = await server.database(), await server.role()
    await server.run(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    error = await refused(server.at(user=role, database=database))
    assert isinstance(error, StorageUnavailableError)
    assert database in str(error)
    assert "ALLOW_CONNECTIONS true" in str(error)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("poool", "8"),
        ("connect_timeout", "10"),
        ("statement_timeout", "soon"),
        ("data_directory", "/"),
        ("sslmode", "maybe"),
        ("target_session_attrs", "best"),
    ],
)
async def test_an_option_that_nobody_knows_or_takes_so(server: Server, option: str, value: str) -> None:
    role = await server.role()
    with pytest.raises(DefinitionError) as caught:
        async with asyncio.timeout(connections.PATIENCE_S / 2), open_storage(server.at(user=role, **{option: value})):
            pass
    assert f"/postgres?{option}={value}: " in str(caught.value)
    assert "correct the URL" in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_a_certificate_that_does_not_fit_may_fit_later() -> None:
    """It is a ValueError as well as an error of the network, and no word of the URL is wrong."""
    error = connecting_error(ssl.SSLCertVerificationError("self-signed certificate"), "postgresql://h/d")
    assert isinstance(error, StorageUnavailableError)
    assert "sslrootcert" in str(error)


async def test_a_port_of_the_environment_that_is_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "65536")
    with pytest.raises(DefinitionError, match=r"postgresql://u@127\.0\.0\.1/d: .*environment"):
        async with open_storage("postgresql://u@127.0.0.1/d"):
            pass


async def test_a_port_where_nobody_listens(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE_S", 0.2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = await refused(server.at(port=taken.getsockname()[1]))
    assert isinstance(error, StorageUnavailableError)
    assert "out of reach" in str(error)


async def test_a_role_without_rights(server: Server) -> None:
    role, database = await server.role(), await server.database()
    error = await refused(server.at(user=role, database=database))
    assert isinstance(error, StorageUnavailableError)
    assert "GRANT" in str(error)


async def test_a_role_that_may_only_read(server: Server) -> None:
    role, database = await server.role(), await server.database()
    async with open_storage(server.at(database=database), auto_upgrade=True):
        pass
    await server.run(f"GRANT USAGE ON SCHEMA ewe TO {role}", database)
    await server.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA ewe TO {role}", database)
    error = await refused(server.at(user=role, database=database))
    assert "GRANT" in str(error)


DEFAULTS = ["default_transaction_isolation = 'serializable'", "default_transaction_read_only = on"]


@pytest.mark.parametrize("setting", DEFAULTS)
async def test_defaults_of_a_role_that_do_not_fit_cost_round_trips_and_are_named_once(
    server: Server, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    role, database = await server.role(), await server.database()
    await server.run(f"GRANT CREATE ON DATABASE {database} TO {role}")
    await server.run(f"ALTER ROLE {role} SET {setting}")
    with caplog.at_level(logging.WARNING, logger="event_workflow_engine.storage"):
        async with open_storage(server.at(user=role, database=database), auto_upgrade=True) as storage:
            for n in range(5):
                await storage.write(unit(events("a", expected=n)))
            await storage.exclusive(unit(events("a")), lambda session: session.execute("CREATE TABLE own (n int)", {}))
            await storage.perform("claim_saga", worker="w", id="s")
            assert await storage.last_position() == 6
            assert await storage.fetch("SELECT n FROM own", {}) == []
    assert caplog.text.count(setting.partition(" ")[0]) == 1


@pytest.mark.parametrize("setting", DEFAULTS)
async def test_such_a_role_prunes_ids_of_units_too(
    server: Server, setting: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "_PRUNE_EVERY", 1)
    role, database = await server.role(), await server.database()
    await server.run(f"GRANT CREATE ON DATABASE {database} TO {role}")
    await server.run(f"ALTER ROLE {role} SET {setting}")
    day = 24 * 3600 * 1_000_000
    async with open_storage(server.at(user=role, database=database), auto_upgrade=True) as storage:
        for name, at in (("old", day), ("recent", 5 * day), ("new", 9 * day)):
            await storage.write(row_unit(Row("slots", "upsert", (name, 1), {"done": 0}), unit_id=name, at=at))
        await storage.write(unit(events("a"), at=9 * day))  # behind the pruning
        assert await storage.outcome("old") is None
        assert await storage.outcome("recent") == Written("recent", ())
    ours = [r for r in caplog.records if r.name.startswith("event_workflow_engine") and r.levelname == "WARNING"]
    assert [r for r in ours if "round trips" not in r.getMessage()] == []


async def test_a_statement_timeout_of_the_role(server: Server) -> None:
    """Whoever holds the lock makes the statement wait for longer than it may."""
    role, database = await server.role("SUPERUSER"), await server.database()
    await server.run(f"ALTER ROLE {role} SET statement_timeout = 50")
    async with open_storage(server.at(database=database), auto_upgrade=True) as holder:

        async def hold(_: object) -> None:
            error = await refused(server.at(user=role, database=database), auto_upgrade=False)
            assert isinstance(error, StorageUnavailableError)
            assert "statement_timeout" in str(error)

        await holder.exclusive(unit(events("b")), hold)


async def test_a_statement_timeout_of_a_millisecond(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE_S", 0.2)
    role, database = await server.role(), await server.database()
    await server.run(f"GRANT CREATE ON DATABASE {database} TO {role}")
    await server.run(f"ALTER ROLE {role} SET statement_timeout = 1")
    error = await refused(server.at(user=role, database=database))
    assert isinstance(error, StorageUnavailableError)
    assert "statement_timeout" in str(error)
    assert await server.run("SELECT FROM pg_namespace WHERE nspname = 'ewe'", database) == []


@pytest.mark.parametrize("table", ["events (guest text)", "schema_migrations (version int)"])
async def test_a_foreign_schema_of_that_name(server: Server, table: str) -> None:
    database = await server.database()
    await server.run("CREATE SCHEMA ewe", database)
    await server.run(f"CREATE TABLE ewe.{table}", database)
    url = server.at(database=database)
    assert isinstance(await refused(url, auto_upgrade=False), SchemaVersionError)
    error = await refused(url)
    assert isinstance(error, SchemaVersionError)
    assert "name another with schema=" in str(error)
    assert len(await server.run("SELECT tablename FROM pg_tables WHERE schemaname = 'ewe'", database)) == 1


@pytest.mark.parametrize("kind", ["VIEW {} AS SELECT 1 AS version", "SEQUENCE {}", "TYPE {} AS (version int)"])
@pytest.mark.parametrize("auto_upgrade", [False, True])
async def test_something_foreign_that_has_the_name_of_a_table(server: Server, kind: str, auto_upgrade: bool) -> None:
    database = await server.database()
    await server.run("CREATE SCHEMA ewe", database)
    await server.run(f"CREATE {kind.format('ewe.schema_migrations')}", database)
    error = await refused(server.at(database=database), auto_upgrade=auto_upgrade)
    assert isinstance(error, SchemaVersionError)
    assert "schema_migrations in its schema 'ewe' is no table of this library" in str(error)
    assert "name another schema with schema=" in str(error)
    assert await server.run("SELECT tablename FROM pg_tables WHERE schemaname = 'ewe'", database) == []


async def test_a_schema_that_lost_a_table(server: Server) -> None:
    url = server.at(database=await server.database())
    async with open_storage(url, auto_upgrade=True):
        pass
    await server.run("DROP TABLE ewe.events", url.rpartition("/")[2])
    error = await refused(url, auto_upgrade=False)
    assert isinstance(error, SchemaVersionError)
    assert "incomplete" in str(error)


@pytest.mark.parametrize("word", ["user", "order", "left"])
async def test_a_schema_named_by_a_word_of_sql(server: Server, word: str) -> None:
    url = server.at(database=await server.database(), schema=word)
    with pytest.raises(DefinitionError, match="word of SQL"):
        async with open_storage(url, auto_upgrade=True):
            pass


async def test_a_database_that_cannot_hold_all_text(server: Server) -> None:
    database = await server.database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    for auto_upgrade in (False, True):
        error = await refused(server.at(database=database), auto_upgrade=auto_upgrade)
        assert isinstance(error, StorageUnavailableError)
        assert "UTF8" in str(error)


async def test_no_server_of_the_kind_that_is_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE_S", 0.2)
    error = await refused(server.at(target_session_attrs="standby"))
    assert isinstance(error, StorageUnavailableError)
    assert "target_session_attrs" in str(error)


async def test_a_role_that_has_all_its_connections(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE_S", 0.2)
    role, database = await server.role("CONNECTION LIMIT 1"), await server.database()
    await server.run(f"GRANT CREATE ON DATABASE {database} TO {role}")
    url = server.at(user=role, database=database)
    async with open_storage(url, auto_upgrade=True) as one:
        error = await refused(url)
        assert "no connection left" in str(error)
        await one.write(unit(events("a")))


async def test_an_ordinary_role_that_may_make_a_schema_is_enough(server: Server) -> None:
    role, database = await server.role(), await server.database()
    await server.run(f"GRANT CREATE ON DATABASE {database} TO {role}")
    await runs_a_saga(server.at(user=role, database=database))


async def test_an_ordinary_role_that_owns_a_schema_is_enough(server: Server) -> None:
    role, database = await server.role(), await server.database()
    await server.run(f"CREATE SCHEMA mine AUTHORIZATION {role}", database)
    await runs_a_saga(server.at(user=role, database=database, schema="mine"))


async def runs_a_saga(url: str) -> None:
    async def one() -> int:
        return 1

    saga = Saga("one", [SagaStep("one", one)])
    engine = WorkflowEngine(url, config=EngineConfig(auto_upgrade=True))
    engine.register(saga)
    async with engine:
        assert (await engine.execute(saga))["one"] == 1
