"""SQL that users bring, in SQL projections: what it may do, how long, and what its mistakes are called.

For the backends that keep the tables of SQL projections in SQLite.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from event_workflow_engine.errors import DefinitionError, StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping

    from event_workflow_engine.storage.port import Rows

__all__ = ["HOLD_LIMIT_S", "UNDONE", "SqlGuard", "bounded_hold", "rows_of", "sql_errors"]

_Allow = Literal["read", "write"]

HOLD_LIMIT_S: Final = 10.0
"""Seconds that exclusive work may hold the store, which stands still meanwhile for every writer."""

UNDONE: Final = "an error ended the transaction; all of it was undone"
"""Of a transaction that SQLite undid by itself: some errors do that, and conflicts of SQL that says ``OR ROLLBACK``."""

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
        sqlite3.SQLITE_SCHEMA,  # SQLite's own code for a refusal, on a connection that had to learn of a new table
    }
)


class SqlGuard:
    """Runs user's SQL on a connection, within its bounds.

    A connection's authorizer is asked when a statement is prepared, and prepared statements are remembered by their
    text. So user's SQL gets a mark behind it that no other has: neither a statement of the engine nor one that was
    allowed to write is ever found in its place.
    """

    def __init__(self, connection: sqlite3.Connection, protected: Collection[str]) -> None:
        """Guard `connection`, whose tables `protected` no user's SQL may change."""
        self.connection = connection
        self._protected = frozenset(protected)
        self._allow: _Allow | None = None
        self._ending: str | None = None  # SQL that ended its transaction by a conflict
        connection.set_authorizer(self._authorize)

    def read(self, sql: str, params: Mapping[str, Any]) -> sqlite3.Cursor:
        """Run SQL that may only read.

        Raises:
            DefinitionError: The SQL or its parameters are wrong, or it does what it must not.
            sqlite3.Error: The database cannot do its work.
        """
        return self._run(sql, params, "read")

    def write(self, sql: str, params: Mapping[str, Any]) -> sqlite3.Cursor:
        """Run SQL that may read, and change all but the protected tables.

        Raises:
            DefinitionError: The SQL or its parameters are wrong, or it does what it must not.
            StorageError: A constraint of the user's tables failed.
            StorageUnavailableError: The transaction has ended: by itself, the statement would stay.
            sqlite3.Error: The database cannot do its work.
        """
        self.check()
        self._ending = None
        try:
            return self._run(sql, params, "write")
        except StorageError:
            if not self.connection.in_transaction:
                self._ending = sql
            raise

    def check(self) -> None:
        """See that the transaction is still open.

        Raises:
            DefinitionError: User's SQL ended it.
            StorageUnavailableError: Another error did.
        """
        if self.connection.in_transaction:
            return
        if self._ending is not None:
            raise DefinitionError(f"{UNDONE} (SQL may not roll back by itself), in: {self._ending}")
        raise StorageUnavailableError(UNDONE)

    def _run(self, sql: str, params: Mapping[str, Any], allow: _Allow) -> sqlite3.Cursor:
        self._allow = allow
        try:
            with sql_errors(sql):
                return self.connection.execute(f"{sql}\n-- user: {allow}", dict(params))
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
def sql_errors(sql: str) -> Iterator[None]:
    """Give the mistakes of who wrote `sql`, or gave its parameters, their names. Errors of the database pass.

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
            hint = " (SQL of projections may not do that)" if "authorized" in str(error) else ""
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
