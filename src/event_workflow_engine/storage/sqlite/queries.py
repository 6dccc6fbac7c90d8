"""SQLite's hand-written SQL, from the ``.sql`` files in ``queries/``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from event_workflow_engine.storage.sql_files import read_queries

if TYPE_CHECKING:
    from event_workflow_engine.storage.sql_files import Query

__all__ = ["QUERIES"]

QUERIES: Final[dict[str, Query]] = read_queries(Path(__file__).parent / "queries")
"""All named queries."""
