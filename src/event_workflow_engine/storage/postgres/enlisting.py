"""Connections that users bring, with their own transaction open: asyncpg's, or SQLAlchemy's over it."""

from __future__ import annotations

from typing import Any

import asyncpg

from event_workflow_engine.errors import DefinitionError

__all__ = ["another_database", "driver_connection"]


async def driver_connection(connection: Any) -> Any:
    """The asyncpg connection behind what a user brings, on which a transaction is open.

    SQLAlchemy is known by what its objects can do, without importing it: an ``AsyncSession``, an ``AsyncConnection``.

    Raises:
        DefinitionError: It is neither of these, its driver is another one, or no transaction is open on it.
    """
    found = connection
    if hasattr(found, "sync_session"):
        found = await found.connection()
    if hasattr(found, "get_raw_connection"):
        # It begins its transaction with the first statement that goes through it.
        await found.exec_driver_sql("SELECT 1")
        found = (await found.get_raw_connection()).driver_connection
    if not isinstance(found, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
        raise DefinitionError(
            f"a {type(connection).__qualname__} is no asyncpg connection, nor a SQLAlchemy AsyncSession or "
            "AsyncConnection over asyncpg"
        )
    if not found.is_in_transaction():
        raise DefinitionError(
            "no transaction is open on the connection, so nothing could be part of it: begin one, as by "
            "`async with connection.transaction():`"
        )
    return found


def another_database(where: str) -> DefinitionError:
    """What to say of a connection to a database that is not the store's, though it has a store in it.

    Args:
        where: The store, for people.
    """
    return DefinitionError(
        f"the connection is to another database than the store's, which is {where}: nothing was staged, for no worker "
        "of this store would find it; enlist a connection to the store's own database"
    )
