"""Hand-written SQL, by name, and migrations, from the ``.sql`` files of a backend.

A file holds named queries: ``-- name: x`` begins one; several statements of one name run in order, the last one giving
the rows. Of a claim, ``-- returns: a`` names the declared table all of whose changed rows it returns, and
``-- changes: a, b`` those that it changes besides.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from event_workflow_engine.errors import SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Migration", "Query", "check_applied", "parsed", "read_migrations", "read_queries", "statements_of"]


class Query(NamedTuple):
    """A named query.

    Attributes:
        statements: Its SQL.
        changes: The declared tables that it changes without returning the rows.
        returns: The declared table whose changed rows it returns; ``""`` for none.
    """

    statements: tuple[str, ...]
    changes: tuple[str, ...]
    returns: str

    @property
    def sql(self) -> str:
        """Its only statement."""
        (sql,) = self.statements
        return sql


def statements_of(script: str) -> list[str]:
    """The statements of a script, without the comments before them."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        if not pending and (not line.strip() or line.lstrip().startswith("--")):
            continue
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    if pending.strip():
        raise ValueError(f"the last statement has no end: {pending!r}")
    return statements


def parsed(text: str) -> dict[str, Query]:
    """The named queries in the text of a file."""
    queries: dict[str, Query] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        changes = _tables(body, "-- changes: ")
        returns = _tables(body, "-- returns: ")
        queries[name.strip()] = Query(tuple(statements_of(body)), changes, returns[0] if returns else "")
    return queries


def _tables(body: str, header: str) -> tuple[str, ...]:
    lines = [line.removeprefix(header) for line in body.splitlines() if line.startswith(header)]
    return tuple(table.strip() for line in lines for table in line.split(","))


def read_queries(folder: Path) -> dict[str, Query]:
    """The named queries of all files in a folder."""
    queries: dict[str, Query] = {}
    for file in sorted(folder.glob("*.sql")):
        queries |= parsed(file.read_text(encoding="utf-8"))
    return queries


class Migration(NamedTuple):
    """One step of a schema. Once released it is never edited.

    Attributes:
        number: From 1, without gaps.
        name: The file's name.
        script: Its SQL.
    """

    number: int
    name: str
    script: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the script, as hex."""
        return hashlib.sha256(self.script.encode()).hexdigest()


def read_migrations(folder: Path) -> tuple[Migration, ...]:
    """All migrations in a folder, in order."""
    files = sorted(folder.glob("[0-9]*.sql"))
    return tuple(
        Migration(int(file.name.partition("_")[0]), file.name, file.read_text(encoding="utf-8")) for file in files
    )


def check_applied(where: str, applied: Mapping[int, str], migrations: Sequence[Migration]) -> None:
    """Check that the migrations that a store has had are those that this library has.

    Args:
        where: The store, for people.
        applied: Checksums by number.
        migrations: Those that the store's version says it has had.

    Raises:
        SchemaVersionError: One is missing, or was another.
    """
    for migration in migrations:
        was = applied.get(migration.number)
        if was != migration.checksum:
            what = "is not recorded as applied" if was is None else "differs from the one that was applied"
            raise SchemaVersionError(
                f"{where}: migration {migration.name} {what}: a migration is never edited once it was released; "
                "restore the file, or the database from a backup"
            )
