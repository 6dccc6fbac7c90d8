"""A schema of its own in a database, for a store that is dropped again."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from event_workflow_engine.errors import StorageError, StorageUnavailableError
from event_workflow_engine.storage.postgres.address import Address
from event_workflow_engine.storage.postgres.connections import fetch_named
from event_workflow_engine.storage.postgres.errors import storage_error
from event_workflow_engine.storage.postgres.queries import statements_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["PostgresScratch"]

# Whatever the role's defaults: what was made has to go. Only in this transaction, for a pooler may share the session.
_BEGIN: Final = "BEGIN READ WRITE; SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '20s'"


class PostgresScratch:
    """See `Scratch`.

    Args:
        url: Of a store in the database; its schema is not touched, and need not be there.

    Raises:
        DefinitionError: The URL is malformed.
    """

    backend = "postgres"
    folder: None = None

    def __init__(self, url: str) -> None:
        self.shown = Address.of(url).shown
        self.schema = f"ewe_scratch_{secrets.token_hex(6)}"
        place, _, query = url.partition("?")
        kept = [option for option in query.split("&") if option and not option.startswith("schema=")]
        self.url = f"{place}?{'&'.join([*kept, f'schema={self.schema}'])}"
        self._address = Address.of(self.url)
        self._asked_for = False

    async def make(self) -> dict[str, str]:
        """See `Scratch.make`.

        Raises:
            StorageUnavailableError: The server is out of reach, takes no writes, or the role may not make schemas.
            StorageError: It cannot be made for another reason.
        """
        async with self._session() as connection:
            self._asked_for = True  # and from here on may be there, whatever becomes of the answer
            try:
                await connection.execute(f"{_BEGIN}; CREATE SCHEMA {self.schema}; COMMIT")
            except asyncpg.InsufficientPrivilegeError as error:
                self._asked_for = False
                raise StorageUnavailableError(
                    f"{self.shown}: the role may not make the schema that this needs for itself, and drops at its end: "
                    "GRANT CREATE ON DATABASE … TO it, or name another role or database"
                ) from error
            rows = await fetch_named(connection, self.schema, "scratch_settings", {})
        return {row["name"]: row["setting"] for row in rows}

    async def drop(self) -> None:
        """See `Scratch.drop`.

        Raises:
            StorageError: The server does not do it, or is out of reach.
        """
        if not self._asked_for:
            return
        drop = f"DROP SCHEMA IF EXISTS {self.schema} CASCADE"
        try:
            async with self._session() as connection:
                await fetch_named(connection, self.schema, "scratch_sessions", {"schema": self.schema})
                await connection.execute(f"{_BEGIN}; {drop}; COMMIT")
                self._asked_for = False
        except StorageError as error:
            raise StorageUnavailableError(
                f"{error}; what was made may be left behind, to be removed: {drop}"
            ) from error

    @asynccontextmanager
    async def committing(self) -> AsyncIterator[Callable[[bytes], Awaitable[object]]]:
        """What commits one row, by a connection of its own and with nothing of this library around it."""
        async with self._session() as connection:
            await fetch_named(connection, self.schema, "scratch_table", {})
            ((sql, _),) = statements_in(self.schema)["scratch_commit"].numbered
            yield lambda data: connection.execute(sql, data)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        connection = await self._address.connect()
        try:
            yield connection
        except Exception as error:
            raise storage_error(error, self.shown) from error
        finally:
            await connection.close()
