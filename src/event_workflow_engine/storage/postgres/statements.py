# ruff: noqa: S608 - the names put into SQL here are those that this library declares, and a checked schema's
"""SQL made from the declared tables: reading rows by their keys, and all of them by key."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from event_workflow_engine.storage.tables import TABLES

if TYPE_CHECKING:
    from event_workflow_engine.storage.tables import Table

__all__ = ["OWN_TABLES", "rows_behind", "rows_by_keys"]

_TYPES: Final = {"text": "text", "integer": "bigint", "blob": "bytea", "real": "double precision"}

OWN_TABLES: Final = frozenset({"events", "units", "schema_migrations", *TABLES})
"""All tables of the store itself."""


@lru_cache(maxsize=512)
def rows_behind(table: str, schema: str, *, first: bool) -> str:
    """Columns of the rows behind a key, by key; parameters: the key's columns, how many rows, how many bytes end them.

    Args:
        table: Which.
        schema: Of the store.
        first: From the first row on; there is no parameter for a key.
    """
    declared = TABLES[table]
    key = ", ".join(declared.key)
    after = [f"${place}::{_TYPES[declared.columns[column]]}" for place, column in enumerate(declared.key, 1)]
    behind, limit = ("", 1) if first else (f"WHERE ({key}) > ({', '.join(after)}) ", len(after) + 1)
    columns = ", ".join(declared.columns)
    sizes = [f"coalesce(octet_length({c}), 0)" for c, kind in declared.columns.items() if kind in ("text", "blob")]
    return (
        f"SELECT {columns} FROM ("
        f"SELECT *, sum({' + '.join(sizes)}) OVER (ORDER BY {key} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS "
        f"bytes_before FROM {schema}.{table} {behind}ORDER BY {key} LIMIT ${limit}"
        f") AS page WHERE coalesce(bytes_before, 0) < ${limit + 1} ORDER BY {key}"
    )


@lru_cache(maxsize=512)
def rows_by_keys(table: str, schema: str) -> str:
    """Row version and columns of the rows with some keys; a parameter for each column of the key, a list each."""
    return _rows_by_keys(TABLES[table], schema)


def _rows_by_keys(table: Table, schema: str) -> str:
    columns = ", ".join(f"t.{column}" for column in table.columns)
    lists = ", ".join(f"${place}::{_TYPES[table.columns[column]]}[]" for place, column in enumerate(table.key, 1))
    match = " AND ".join(f"t.{column} = asked.{column}" for column in table.key)
    return (
        f"SELECT t.xmin::text::bigint AS row_version, {columns} "
        f"FROM unnest({lists}) AS asked({', '.join(table.key)}) JOIN {schema}.{table.name} AS t ON {match}"
    )
