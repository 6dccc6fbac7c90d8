"""PostgreSQL's hand-written SQL, from the ``.sql`` files in ``queries/``, with a store's schema put in."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from event_workflow_engine.storage.postgres.parameters import Numbered, numbered
from event_workflow_engine.storage.sql_files import read_migrations, read_queries

if TYPE_CHECKING:
    from event_workflow_engine.storage.sql_files import Query

__all__ = ["MIGRATIONS", "QUERIES", "Statements", "in_schema", "statements_in"]

_HERE: Final = Path(__file__).parent
_PLACEHOLDER: Final = re.compile(r"\bewe\.")

QUERIES: Final[dict[str, Query]] = read_queries(_HERE / "queries")
"""All named queries, for the schema ``ewe``."""

MIGRATIONS: Final = read_migrations(_HERE / "migrations")
"""All migrations, in order, for the schema ``ewe``."""


class Statements(NamedTuple):
    """A named query, ready for a store.

    Attributes:
        numbered: Its statements.
        changes: The declared tables that it changes without returning the rows.
        returns: The declared table whose changed rows it returns; ``""`` for none.
    """

    numbered: tuple[Numbered, ...]
    changes: tuple[str, ...]
    returns: str


def in_schema(sql: str, schema: str) -> str:
    """`sql` with the store's schema, which is a checked name, in place of ``ewe``."""
    return _PLACEHOLDER.sub(f"{schema}.", sql)


@lru_cache(maxsize=64)
def statements_in(schema: str) -> dict[str, Statements]:
    """All named queries for the store in `schema`."""
    return {
        name: Statements(
            tuple(numbered(in_schema(sql, schema)) for sql in query.statements), query.changes, query.returns
        )
        for name, query in QUERIES.items()
    }
