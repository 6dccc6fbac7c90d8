"""SQL lives in named .sql files, where it is read, reviewed and compared between dialects as SQL."""

from __future__ import annotations

import ast
import re

import pytest
from tests.house.sources import Module, package_modules, stale, texts

STATEMENT = re.compile(
    r"""\b(?:
        SELECT\s.+\sFROM\s
      | SELECT\s+(?:\*|1\b|count\()
      | INSERT\s+(?:OR\s+\w+\s+)?INTO\s
      | UPDATE\s+\S+\s+SET\s
      | DELETE\s+FROM\s
      | (?:CREATE|DROP|ALTER)\s+(?:UNIQUE\s+|TEMP\s+)?(?:TABLE|INDEX|VIEW|TRIGGER)\s
    )""",
    re.VERBOSE | re.DOTALL,
)

# Path in the package: why its SQL can't be in a file. Names in it come from our own declarations, never from data.
ALLOWED: dict[str, str] = {
    "_projections/feeding.py": "makes and drops the tables that a SQL projection declares; their names are checked",
    "storage/postgres/enlisting.py": "has SQLAlchemy begin its transaction, which it does with its first statement",
    "storage/postgres/migrate.py": "keeps the table of migrations, which is older than every migration",
    "storage/postgres/statements.py": "reads rows of all declared tables by their keys",
    "storage/sqlite/connection.py": "asks a file whose it is before any of our statements may touch it",
    "storage/sqlite/migrate.py": "keeps the table of migrations, which is older than every migration",
    "testing/conformance/exclusive.py": "plays the user, whose SQL it is",
    "testing/conformance/transacting.py": "plays the user, whose SQL it is",
    "testing/postgres.py": "asks a server under test how its replication goes, which is no store",
    "storage/sqlite/statements.py": "the one row operation over all declared tables, and value lists of several lengths",
}


def sql_in(module: Module) -> list[tuple[ast.AST, str]]:
    # Prose ("could not update the set") is told from SQL by case, which the .sql files keep too.
    return [(node, text) for node, text in texts(module) if STATEMENT.search(text)]


def test_no_sql_in_python_beyond_the_list() -> None:
    found = {
        module.at(node): text
        for module in package_modules()
        for node, text in sql_in(module)
        if module.name not in ALLOWED
    }
    assert found == {}


def test_the_list_of_exceptions_is_not_stale() -> None:
    used = {module.name for module in package_modules() if sql_in(module)}
    assert stale(ALLOWED, used) == []


@pytest.mark.parametrize(
    "code",
    [
        'q = "SELECT id FROM events"',
        'q = f"SELECT {cols} FROM {table}"',
        'q = f"INSERT OR IGNORE INTO {table} VALUES (?)"',
        'q = """\nUPDATE rows SET a = 1"""',
        'q = "DELETE FROM rows"',
        'q = "CREATE UNIQUE INDEX i ON t (a)"',
    ],
)
def test_the_scan_sees_sql(code: str) -> None:
    assert sql_in(parsed(code))


@pytest.mark.parametrize(
    "code",
    ['"""SELECT a FROM b is what it runs."""', 'm = "select one from the list"', 'm = f"could not update {x} set"'],
)
def test_the_scan_leaves_prose_alone(code: str) -> None:
    assert not sql_in(parsed(code))


def parsed(code: str) -> Module:
    module = package_modules()[0]
    return Module(module.path, code, ast.parse(code))
