"""SQL that users bring, in SQL projections: what it may do here, and what its mistakes are called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from event_workflow_engine.errors import DefinitionError, StorageError, WorkflowError
from event_workflow_engine.storage.postgres.errors import is_lost_connection, storage_error
from event_workflow_engine.storage.postgres.parameters import numbered, without_literals
from event_workflow_engine.storage.postgres.statements import OWN_TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.storage.port import Rows
    from event_workflow_engine.storage.postgres.address import Address

__all__ = ["UserSql"]

_READS: Final = frozenset({"select", "with", "values", "table"})
_WRITES: Final = frozenset({"insert", "update", "delete", "merge"})
_SHAPES_TABLES: Final = frozenset({"create", "drop", "alter", "truncate", "comment"})
_WORD: Final = re.compile(r"\w+")


class UserSql:
    """Runs user's SQL in an open transaction, within its bounds.

    Names without a schema mean the store's schema first, where the tables of SQL projections are, then those of the
    role's own search path.
    """

    def __init__(self, connection: Any, address: Address) -> None:
        self.connection = connection
        self._address = address

    async def enter(self) -> None:
        """Have unqualified names mean what they shall, and the engine's tables refuse to be changed."""
        await self.connection.execute(f"SET LOCAL search_path = {self._address.schema}, public")
        await self.guard()

    async def guard(self) -> None:
        """Have the engine's tables refuse to be changed."""
        await self.connection.execute(f"SET LOCAL {self._address.schema}.user_sql = 'on'")

    async def check(self) -> None:
        """Have the database check what it would check at the commit, and see that there is one to come.

        Raises:
            DefinitionError: The transaction was ended over the driver's connection.
            StorageError: A constraint of the user's tables fails.
        """
        sql = "SET CONSTRAINTS ALL IMMEDIATE"
        guard = f"{self._address.schema}.user_sql"
        try:
            is_ours = await self.connection.fetchval("SELECT current_setting($1, true) = 'on'", guard)
            await self.connection.execute(sql)
        except Exception as error:
            raise self._typed(error, sql) from error
        if not is_ours:
            raise DefinitionError("the transaction was ended from inside: leave COMMIT and ROLLBACK to the engine")

    async def leave(self) -> None:
        """Back to the engine's own statements."""
        await self.connection.execute(f"SET LOCAL {self._address.schema}.user_sql = 'off'")

    async def run(self, sql: str, params: Mapping[str, Any], *, writes: bool) -> tuple[Rows, int]:
        """Run a statement: its rows, and how many it changed.

        Raises:
            DefinitionError: The SQL or its parameters are wrong, or it does what it must not.
            StorageError: A constraint of the user's tables failed, or the database cannot do its work.
        """
        _check_bounds(sql, writes=writes)
        text, names = numbered(sql)
        missing = [name for name in names if name not in params]
        if missing:
            raise DefinitionError(f"parameter {missing[0]!r} is missing, in: {sql}")
        try:
            statement = await self.connection.prepare(text)
            rows = await statement.fetch(*(params[name] for name in names))
            status = statement.get_statusmsg()
        except Exception as error:
            raise self._typed(error, sql) from error
        return [dict(row) for row in rows], _changed(status)

    def _typed(self, error: Exception, sql: str) -> WorkflowError:
        if isinstance(error, asyncpg.IntegrityConstraintViolationError):
            return StorageError(f"{error}, in: {sql}")
        if isinstance(error, asyncpg.InFailedSQLTransactionError):
            return StorageError(f"an earlier statement of this transaction failed, so none can follow it, in: {sql}")
        mistakes = (
            asyncpg.SyntaxOrAccessError, asyncpg.DataError, asyncpg.FeatureNotSupportedError,
            asyncpg.ActiveSQLTransactionError, asyncpg.ReadOnlySQLTransactionError, UnicodeEncodeError, OverflowError,
        )  # fmt: skip
        if isinstance(error, mistakes) and not isinstance(error, asyncpg.InsufficientPrivilegeError):
            return DefinitionError(f"{error}, in: {sql}")
        if isinstance(error, asyncpg.InterfaceError) and not self.connection.is_closed():
            return DefinitionError(f"{error}, in: {sql}")
        if not is_lost_connection(error) and not isinstance(error, asyncpg.PostgresError):
            return DefinitionError(f"{type(error).__name__}: {error}, in: {sql}")
        return storage_error(error, self._address.shown)


def _check_bounds(sql: str, *, writes: bool) -> None:
    words = [word.lower() for word in _WORD.findall(without_literals(sql))]
    verb = words[0] if words else ""
    if verb in _READS or (writes and verb in _WRITES):
        return
    if writes and verb in _SHAPES_TABLES:
        touched = OWN_TABLES.intersection(words)
        if not touched:
            return
        raise DefinitionError(f"SQL of projections may not change the engine's {', '.join(sorted(touched))}, in: {sql}")
    raise DefinitionError(f"SQL of projections may not do that ({verb.upper() or 'nothing'}), in: {sql}")


def _changed(status: str) -> int:
    """How many rows a statement changed, by the server's answer, as ``INSERT 0 2``."""
    verb, _, count = status.partition(" ")
    return int(count.split()[-1]) if verb in ("INSERT", "UPDATE", "DELETE", "MERGE") else 0
