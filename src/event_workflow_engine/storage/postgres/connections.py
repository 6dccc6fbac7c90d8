"""Connections to a store's database: one that writes, a pool that reads, and what is fetched over them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg

from event_workflow_engine.errors import DefinitionError, StorageUnavailableError
from event_workflow_engine.storage.judging.landed import landed_from
from event_workflow_engine.storage.port import Written
from event_workflow_engine.storage.postgres.errors import DRIVER_ERRORS, is_lost_connection, storage_error
from event_workflow_engine.storage.postgres.queries import statements_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from event_workflow_engine.errors import LogRewoundError
    from event_workflow_engine.storage.judging.landed import LandedUnit
    from event_workflow_engine.storage.port import Rows
    from event_workflow_engine.storage.postgres.address import Address

__all__ = ["PATIENCE_S", "Connections", "fetch_named", "landed_unit", "outcome_of"]

T = TypeVar("T")
Connection = Any  # asyncpg's is generic over its records, and a pool's is a proxy of it

PATIENCE_S: Final = 8.0
"""How long a server that is out of reach is tried again before its clients are told: a restart takes a few seconds."""

_RETRY_S: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
_COMMAND_S: Final = 30.0


class Connections:
    """The connections of one store that is open.

    Args:
        address: Of the database.
        rewinds: See `Storage.rewinds`.
        on_rewound: Called when what was known of the log turns out to be lost; adds that to `rewinds`.

    Attributes:
        newest: Position and id of the last record that was read or written over them.
    """

    def __init__(
        self, address: Address, rewinds: Sequence[tuple[int, int]], on_rewound: Callable[[LogRewoundError], None]
    ) -> None:
        self.address = address
        self.newest: tuple[int, str] | None = None
        self.rewinds = rewinds
        self.on_rewound = on_rewound
        self._pool: asyncpg.Pool[Any] | None = None

    async def open(self) -> None:
        """Open the reading pool; it connects when it is asked to."""
        self.newest = None  # of another life, whose decisions have ended
        self._pool = await asyncpg.create_pool(
            min_size=0, max_size=self.address.pool, init=self.address.prepare, reset=_no_reset,
            command_timeout=_COMMAND_S,
            **self.address.options(),
        )  # fmt: skip

    async def close(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with suppress(*DRIVER_ERRORS):
                await pool.close()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection of the pool."""
        if self._pool is None:
            raise StorageUnavailableError(f"{self.address.shown}: the store is closed")
        async with self._pool.acquire(timeout=_COMMAND_S) as connection:
            yield connection

    async def read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work`, which only reads, and run it again where its connection is lost.

        Raises:
            WorkflowError: It cannot be done, for a typed reason.
        """

        async def attempt() -> T:
            async with self.reading() as connection:
                return await work(connection)

        return await self.patiently(attempt)

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again, for `PATIENCE_S`, while the server is out of reach.

        Raises:
            WorkflowError: It cannot be done, for a typed reason.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        tries = 0
        while True:
            try:
                return await attempt()
            except Exception as error:
                cause = error.__cause__ if isinstance(error, StorageUnavailableError) and error.__cause__ else error
                pause = _RETRY_S[min(tries, len(_RETRY_S) - 1)]
                if not _may_pass(cause) or loop.time() + pause > deadline:
                    raise storage_error(error, self.address.shown) from error
                tries += 1
                await asyncio.sleep(pause)

    def note(self, position: int, record_id: str) -> None:
        """A record is in the log, as far as is known here."""
        if self.newest is None or position > self.newest[0]:
            self.newest = (position, record_id)

    async def query(self, name: str, params: Mapping[str, Any]) -> Rows:
        """The rows of a named query."""
        return await self.read(lambda connection: fetch_named(connection, self.address.schema, name, params))


async def fetch_named(connection: Connection, schema: str, name: str, params: Mapping[str, Any]) -> Rows:
    """The rows of a named query, of its last statement where it has several.

    Raises:
        DefinitionError: A parameter is missing, or does not fit.
    """
    rows: list[Any] = []
    for sql, names in statements_in(schema)[name].numbered:
        try:
            values = [params[one] for one in names]
        except KeyError as error:
            raise DefinitionError(f"{name}: parameter {error.args[0]!r} is missing") from None
        try:
            rows = await connection.fetch(sql, *values)
        except (asyncpg.DataError, asyncpg.InterfaceError) as error:
            if isinstance(error, asyncpg.DataError) or "invalid input for query argument" in str(error):
                raise DefinitionError(f"{name}: {error}") from error
            raise
    return [dict(row) for row in rows]


async def landed_unit(connection: Connection, schema: str, unit_id: str) -> LandedUnit | None:
    """The unit whose first record has that id, or ``None``."""
    (statement,) = statements_in(schema)["unit_records"].numbered
    rows = await connection.fetch(statement.sql, unit_id)
    return landed_from(unit_id, rows) if rows else None


async def outcome_of(connection: Connection, schema: str, unit_id: str) -> Written | None:
    """What a unit wrote, if it landed."""
    landed = await landed_unit(connection, schema, unit_id)
    if landed is not None:
        return landed.written
    rows = await fetch_named(connection, schema, "known_units", {"ids": [unit_id]})
    return Written(unit_id, ()) if rows else None


def _may_pass(error: BaseException) -> bool:
    """Whether an error says that the server is out of reach, which may pass."""
    return is_lost_connection(error) or isinstance(error, asyncpg.TooManyConnectionsError)


async def _no_reset(_: Connection) -> None:
    """Nothing that the store sends over a pooled connection outlives its transaction."""
