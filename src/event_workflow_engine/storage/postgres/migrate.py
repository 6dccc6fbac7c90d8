"""Migrations: numbered, checksummed, forward only, each in a transaction of its own: a killed one is undone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError, SchemaVersionError, StorageUnavailableError
from event_workflow_engine.storage.postgres.queries import MIGRATIONS, in_schema
from event_workflow_engine.storage.sql_files import check_applied

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from event_workflow_engine.storage.sql_files import Migration

__all__ = ["OLDEST_SERVER", "applied_migrations", "check_schema", "upgrade"]

OLDEST_SERVER: Final = 15

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('event-workflow-engine migrations ' || $1, 0))"
_IS_TABLE: Final = """
SELECT relkind = 'r' FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = $1 AND relname = 'schema_migrations'
"""
_IS_RESERVED: Final = "SELECT EXISTS (SELECT FROM pg_get_keywords() WHERE word = $1 AND catcode IN ('R', 'T'))"
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS ewe.schema_migrations (
    number     integer PRIMARY KEY,
    name       text    NOT NULL,
    checksum   text    NOT NULL,
    applied_at bigint  NOT NULL
)
"""


async def applied_migrations(connection: asyncpg.Connection[Any], where: str, schema: str) -> dict[int, str]:
    """Checksums of the migrations that the store has had, by number; empty where there is no store.

    Raises:
        SchemaVersionError: What has the table's name is none: a view, a sequence, a type.
    """
    # The catalogs themselves are read: a lookup of the name may be answered from before the lock was waited for.
    is_table = await connection.fetchval(_IS_TABLE, schema)
    if is_table is None:
        return {}
    if not is_table:
        raise SchemaVersionError(
            f"{where}: schema_migrations in its schema {schema!r} is no table of this library: "
            "name another schema with schema="
        )
    rows = await connection.fetch(in_schema("SELECT number, checksum FROM ewe.schema_migrations", schema))
    return {row["number"]: row["checksum"] for row in rows}


async def check_schema(
    connection: asyncpg.Connection[Any], where: str, schema: str, migrations: Sequence[Migration] = MIGRATIONS
) -> int:
    """How many migrations are still to be made.

    Raises:
        SchemaVersionError: The server is too old, or the schema is newer than this library, or was altered.
        StorageUnavailableError: The database cannot hold all text.
    """
    server = connection.get_server_version()
    if server.major < OLDEST_SERVER:
        raise SchemaVersionError(
            f"{where}: the server is PostgreSQL {server.major}.{server.minor}, this library needs {OLDEST_SERVER} or "
            "newer: upgrade the server"
        )
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
    if encoding != "UTF8":
        raise StorageUnavailableError(
            f"{where}: the database has the encoding {encoding}, which cannot hold all text: "
            "create one with ENCODING 'UTF8' TEMPLATE template0"
        )
    applied = await applied_migrations(connection, where, schema)
    version = max(applied, default=0)
    if version > len(migrations):
        raise SchemaVersionError(
            f"{where}: its schema has version {version}, this library knows {len(migrations)}: "
            "upgrade event-workflow-engine"
        )
    check_applied(where, applied, migrations[:version])
    return len(migrations) - version


async def upgrade(
    connection: asyncpg.Connection[Any], where: str, schema: str, migrations: Sequence[Migration] = MIGRATIONS
) -> list[str]:
    """Bring the schema to what this library expects; the names of the migrations that were made.

    Of several processes that try at once one makes each migration, the others wait for it.

    Raises:
        DefinitionError: The schema's name is none.
        SchemaVersionError: The server is too old, or the schema is newer than this library, or was altered.
        StorageUnavailableError: The database cannot hold all text.
        asyncpg.PostgresError: The role may not, or the server cannot.
    """
    made: list[str] = []
    while await check_schema(connection, where, schema, migrations):
        async with connection.transaction(isolation="read_committed"):
            # The store is written so, too, whatever the role's default. It must be the transaction's first statement.
            await connection.execute("SET TRANSACTION READ WRITE")
            await connection.execute(_LOCK, schema)
            pending = await check_schema(connection, where, schema, migrations)
            if not pending:
                break
            migration = migrations[len(migrations) - pending]
            if migration.number == 1 and await connection.fetchval(_IS_RESERVED, schema):
                raise DefinitionError(f"{where}: schema={schema!r} is a word of SQL: name another schema")
            if migration.number == 1 and not await _schema_exists(connection, schema):
                # Checked first: a role that may not create schemas may still own one that was made for it.
                await connection.execute(in_schema("CREATE SCHEMA ewe.", schema).rstrip("."))
            await connection.execute(in_schema(_TABLE, schema))
            await connection.execute(in_schema(migration.script, schema))
            await connection.execute(
                in_schema("INSERT INTO ewe.schema_migrations VALUES ($1, $2, $3, $4)", schema),
                migration.number,
                migration.name,
                migration.checksum,
                time.time_ns() // 1000,
            )
            made.append(migration.name)
    return made


async def _schema_exists(connection: asyncpg.Connection[Any], schema: str) -> bool:
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema))
