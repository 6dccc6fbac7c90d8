# ruff: noqa: S608 - the names put into SQL here are those that this library declares, and a checked schema's
"""SQL made from the declared tables: reading rows by their keys."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from event_workflow_engine.storage.tables import TABLES

if TYPE_CHECKING:
    from event_workflow_engine.storage.tables import Table

__all__ = ["rows_by_keys"]

_TYPES: Final = {"text": "text", "integer": "bigint", "blob": "bytea", "real": "double precision"}


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
