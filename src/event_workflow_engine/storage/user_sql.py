"""SQL that users bring, in SQL projections: what it may do, how long, and what its mistakes are called.

For the backends that keep the tables of SQL projections in SQLite.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import DefinitionError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

    from event_workflow_engine.storage.port import Rows

__all__ = ["HOLD_LIMIT_S", "SqlGuard", "bounded_hold", "rows_of", "user_sql_errors"]

HOLD_LIMIT_S: Final = 10.0
"""Seconds that exclusive work may hold the store, which stands still meanwhile for every writer."""

_READING: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_NEVER: Final = frozenset(
    # Transactions belong to the engine; the rest reaches beyond the file or changes how it is kept.
    {
        sqlite3.SQLITE_TRANSACTION,
        sqlite3.SQLITE_SAVEPOINT,
        sqlite3.SQLITE_ATTACH,
        sqlite3.SQLITE_DETACH,
        sqlite3.SQLITE_PRAGMA,
    }
)
_USERS_MISTAKES: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_MISUSE,
    }
)


class SqlGuard:
    """Decides which statements a connection may prepare, as its authorizer.

    Statements are checked once, when they are prepared. The engine's own have texts of their own, so that user's SQL
    never meets one that was prepared without the guard.
    """

    def __init__(self, connection: sqlite3.Connection, protected: Collection[str]) -> None:
        self._connection = connection
        self._protected = frozenset(protected)
        self._allow: str | None = None
        connection.set_authorizer(self._authorize)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """User's SQL inside may only read."""
        yield from self._guarded("read")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """User's SQL inside may read, and change all but the engine's own tables."""
        yield from self._guarded("write")

    def _guarded(self, allow: str) -> Iterator[None]:
        self._allow = allow
        try:
            yield
        finally:
            self._allow = None

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if self._allow is None or action in _READING:
            return sqlite3.SQLITE_OK
        if self._allow == "read" or action in _NEVER:
            return sqlite3.SQLITE_DENY
        # Of what changes something, the table is the first or the second name.
        return sqlite3.SQLITE_DENY if first in self._protected or second in self._protected else sqlite3.SQLITE_OK


@contextmanager
def user_sql_errors(sql: str) -> Iterator[None]:
    """Give a user's mistake in `sql` its name. Errors that are not of the user's making pass.

    Raises:
        DefinitionError: The SQL or its parameters are wrong, or it does what it must not.
        StorageError: A constraint of the user's tables failed.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, sqlite3.IntegrityError):
            raise StorageError(f"{error}, in: {sql}") from error
        if code is None or code & 0xFF in _USERS_MISTAKES:
            hint = " (SQL of projections may not do that)" if code == sqlite3.SQLITE_AUTH else ""
            raise DefinitionError(f"{error}{hint}, in: {sql}") from error
        raise
    except (OverflowError, UnicodeEncodeError) as error:
        raise DefinitionError(f"a parameter cannot be stored: {error}, in: {sql}") from error


def rows_of(cursor: sqlite3.Cursor) -> Rows:
    """All rows that `cursor` still has, by column."""
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@asynccontextmanager
async def bounded_hold() -> AsyncIterator[None]:
    """Bound how long the block may hold the store.

    Raises:
        StorageError: It took longer than `HOLD_LIMIT_S`.
    """
    bound = asyncio.timeout(HOLD_LIMIT_S)
    try:
        async with bound:
            yield
    except TimeoutError as error:
        if bound.expired():
            raise StorageError(
                f"exclusive work held the store for more than {HOLD_LIMIT_S} s and was rolled back: make it shorter"
            ) from error
        raise
