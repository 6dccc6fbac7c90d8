"""The hand-written SQL, by name, from the ``.sql`` files in ``queries/``.

A file holds named queries: ``-- name: x`` begins one; several statements of one name run in order, the last one giving
the rows. Of a claim, ``-- returns: a`` names the declared table all of whose changed rows it returns, and
``-- changes: a, b`` those that it changes besides.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["QUERIES", "Query", "parsed", "statements_of"]


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


def _load() -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for file in sorted((Path(__file__).parent / "queries").glob("*.sql")):
        queries |= parsed(file.read_text(encoding="utf-8"))
    return queries


QUERIES: Final[dict[str, Query]] = _load()
"""All named queries."""
