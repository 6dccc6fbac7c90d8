"""The SQL files against the declarations that they are written for."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.storage.memory.queries import CLAIM_FUNCTIONS, READ_FUNCTIONS
from event_workflow_engine.storage.port import CLAIMS, READS
from event_workflow_engine.storage.sql_files import parsed, statements_of
from event_workflow_engine.storage.sqlite.migrate import MIGRATIONS
from event_workflow_engine.storage.sqlite.queries import QUERIES
from event_workflow_engine.storage.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a statement may scan: small tables, and the log from a position on.
SMALL = {"workers", "checkpoints", "projections", "queues", "positions_floor"}


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        for statement in statements_of(migration.script):
            connection.execute(statement)
    yield connection
    connection.close()


def test_every_backend_has_every_read_and_claim() -> None:
    assert set(READ_FUNCTIONS) == set(READS)
    assert set(CLAIM_FUNCTIONS) == set(CLAIMS)
    assert set(READS) | set(CLAIMS) <= set(QUERIES)
    assert len(set(READS) | set(CLAIMS)) == len(READS) + len(CLAIMS)


@pytest.mark.parametrize("name", TABLES)
def test_migrations_make_the_declared_tables(database: sqlite3.Connection, name: str) -> None:
    found = database.execute('SELECT name, lower(type), pk, "notnull" FROM pragma_table_info(?)', (name,)).fetchall()
    table = TABLES[name]
    # In the declared order, which RETURNING * relies on.
    assert [(column, kind) for column, kind, _, _ in found] == list(table.columns.items())
    assert tuple(column for column, _, place, _ in sorted(found, key=lambda row: row[2]) if place) == table.key
    assert {column for column, _, _, required in found if required} == set(table.key)


def test_migrations_are_numbered_from_one() -> None:
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


@pytest.mark.parametrize("name", [*READS, *CLAIMS])
def test_parameters_are_those_of_the_specification(name: str) -> None:
    function = READ_FUNCTIONS.get(name) or CLAIM_FUNCTIONS[name]
    code = function.__code__
    wanted = set(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
    database = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        for statement in statements_of(migration.script):
            database.execute(statement)
    for sql in QUERIES[name].statements:
        # sqlite3 raises where a parameter of the statement is missing.
        database.execute(f"EXPLAIN {sql}", dict.fromkeys(wanted))
    for parameter in wanted:
        assert any(f":{parameter}" in sql for sql in QUERIES[name].statements), parameter
    database.close()


# Those of a scratch database are about a table that one of them makes.
@pytest.mark.parametrize("name", [name for name in QUERIES if not name.startswith("scratch_")])
def test_nothing_large_is_scanned(database: sqlite3.Connection, name: str) -> None:
    allowed = {
        "sagas_count": {"sagas"},
        "backlog_counts": {"dead_letters", "parked_keys", "parked_events", "staged"},  # no further than asked for
        "schedules_all": {"schedules"},
        "dead_letters_page": {"dead_letters"},
        "prune_units": {"units"},  # its first rows
        "id_order": {"events"},  # its first and last landmark
        "held_streams": {"streams"},  # all of them, once for each copy of the store
        "held_units": {"units"},
    }.get(name, set())
    for sql in QUERIES[name].statements:
        names = {part.rstrip(",);\n") for part in sql.replace("(", " ").split() if part.startswith(":")}
        parameters = {part[1:].split(")")[0] for part in names}
        plan = database.execute(f"EXPLAIN QUERY PLAN {sql}", dict.fromkeys(parameters)).fetchall()
        scanned = {row[3].split()[1] for row in plan if row[3].startswith("SCAN")}
        assert not scanned & (set(TABLES) | {"events", "streams", "units"}) - SMALL - allowed, plan


def test_the_loader_reads_names_tables_and_statements() -> None:
    queries = parsed(
        "-- a file\n\n-- name: one\n-- What it is for.\nSELECT ';' -- not; the end\nFROM t;\n\n"
        "-- name: two\n-- changes: a, b\n-- returns: c\nDELETE FROM a;\nDELETE FROM b;\n"
    )
    assert queries["one"].sql == "SELECT ';' -- not; the end\nFROM t;"
    assert queries["two"].statements == ("DELETE FROM a;", "DELETE FROM b;")
    assert (queries["two"].changes, queries["two"].returns) == (("a", "b"), "c")
    assert (queries["one"].changes, queries["one"].returns) == ((), "")


def test_a_statement_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no end"):
        statements_of("SELECT 1")
