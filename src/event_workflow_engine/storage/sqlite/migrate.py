"""Migrations: numbered, checksummed, forward only, each in a transaction of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import SchemaVersionError
from event_workflow_engine.storage.sql_files import check_applied, read_migrations, statements_of
from event_workflow_engine.storage.sqlite.connection import APPLICATION_ID

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from event_workflow_engine.storage.sql_files import Migration

__all__ = ["MIGRATIONS", "check_known", "migrate"]

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL,
    checksum   TEXT    NOT NULL,
    applied_at INTEGER NOT NULL
)
"""


MIGRATIONS: Final = read_migrations(Path(__file__).parent / "migrations")
"""All migrations, in order."""


def migrate(
    connection: sqlite3.Connection, path: str, *, auto_upgrade: bool, migrations: Sequence[Migration] = MIGRATIONS
) -> None:
    """Bring the schema to what this version of the library expects. The caller holds the store's lock.

    Raises:
        SchemaVersionError: The schema is newer or altered, or it is older and `auto_upgrade` is off.
        sqlite3.Error: The file cannot be written.
    """
    version = check_known(connection, path, migrations)
    newest = migrations[-1].number
    applied = _applied(connection) if version else {}
    check_applied(path, applied, migrations[:version])
    pending = migrations[version:]
    if pending and not auto_upgrade:
        raise SchemaVersionError(
            f"{path}: its schema has version {version}, this library needs {newest}: run `ewe db upgrade`, or open it "
            "with auto_upgrade=True"
        )
    for migration in pending:
        _apply(connection, migration)
    if not pending:
        # SQLite opens a file that it may not write for reading, and would say so at the first write only.
        connection.execute("UPDATE schema_migrations SET number = number WHERE FALSE")


def check_known(connection: sqlite3.Connection, path: str, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """The schema's version.

    Raises:
        SchemaVersionError: It is newer than this version of the library.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = migrations[-1].number
    if version > newest:
        raise SchemaVersionError(
            f"{path}: its schema has version {version}, this library knows {newest}: upgrade event-workflow-engine"
        )
    return int(version)


def _applied(connection: sqlite3.Connection) -> dict[int, str]:
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'").fetchone() is None:
        return {}
    return dict(connection.execute("SELECT number, checksum FROM schema_migrations").fetchall())


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_TABLE)
        for statement in statements_of(migration.script):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
            (migration.number, migration.name, migration.checksum, time.time_ns() // 1000),
        )
        # Numbers from this module's constants; PRAGMA takes no parameters. Both are part of the transaction.
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {migration.number:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
