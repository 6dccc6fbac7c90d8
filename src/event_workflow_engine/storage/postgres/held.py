"""A store held as a whole: one transaction on a connection of its own, under the store's lock."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.holding import PAGE_BYTES
from event_workflow_engine.storage.port import EVENT_COLUMNS, EVENTS, EVENTS_BY_STREAM, UNITS
from event_workflow_engine.storage.postgres.connections import fetch_named
from event_workflow_engine.storage.postgres.errors import DRIVER_ERRORS, storage_error
from event_workflow_engine.storage.postgres.queries import statements_in
from event_workflow_engine.storage.postgres.statements import OWN_TABLES, rows_behind
from event_workflow_engine.storage.row_images import shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from event_workflow_engine.storage.port import RowPages
    from event_workflow_engine.storage.postgres.connections import Connections

__all__ = ["PostgresHolding"]

_COMMAND_S: Final = 600.0
_SMALLEST: Final = -(2**63)
_ORDERED_BY: Final[dict[str, tuple[tuple[str, int, Any], ...]]] = {
    # Of each part: the parameters that say where a page begins, their places in a row, and what is before every row.
    EVENTS: (("position", 0, _SMALLEST),),
    EVENTS_BY_STREAM: (("stream", 1, ""), ("version", 2, _SMALLEST)),
    UNITS: (("at", 1, _SMALLEST), ("id", 0, "")),
}


class PostgresHolding:
    """A `HoldingTransaction` and its `HeldStore`.

    Args:
        connections: Whose database it is.
        tell: Whom to tell of the commit: the parameters of `announce`.
    """

    def __init__(self, connections: Connections, tell: dict[str, str]) -> None:
        self._connections = connections
        self._address = connections.address
        self._schema = connections.address.schema
        self._tell = tell
        self._connection: Any = None
        self._changed = False

    async def begin(self) -> PostgresHolding:
        """See `HoldingTransaction.begin`."""
        self._connection = await self._connections.patiently(self._address.connect)
        script = "; ".join(sql for sql, _ in statements_in(self._schema)["begin_held"].numbered)
        try:
            await self._connection.execute(script, timeout=_COMMAND_S)
        except BaseException as error:
            await self._close()
            if isinstance(error, Exception):
                raise storage_error(error, self._address.shown) from error
            raise
        return self

    async def commit(self) -> None:
        """See `HoldingTransaction.commit`."""
        try:
            if self._changed:
                await self._named("announce", **self._tell)
            await self._connection.execute("COMMIT", timeout=_COMMAND_S)
        except Exception as error:
            raise storage_error(error, self._address.shown) from error
        finally:
            await self._close()

    async def abort(self) -> None:
        """See `HoldingTransaction.abort`. The server undoes what a connection that goes had begun."""
        await self._close()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*DRIVER_ERRORS):
                await connection.close(timeout=5)

    async def _named(self, name: str, /, **params: Any) -> list[tuple[Any, ...]]:
        try:
            rows = await fetch_named(self._connection, self._schema, name, params)
        except Exception as error:
            raise storage_error(error, self._address.shown) from error
        return [tuple(row.values()) for row in rows]

    def rows(self, part: str, /) -> RowPages:
        """See `HeldStore.rows`."""
        return _NamedPages(self, part) if part in _ORDERED_BY else _TablePages(self, shape_of(part).name)

    async def put(self, part: str, rows: Sequence[tuple[Any, ...]], /) -> None:
        """See `HeldStore.put`.

        Raises:
            DefinitionError: A row holds what PostgreSQL cannot.
        """
        columns = EVENT_COLUMNS if part == EVENTS else ("id", "at") if part == UNITS else shape_of(part).columns
        self._changed = True
        try:
            await self._connection.copy_records_to_table(
                part, schema_name=self._schema, columns=columns, records=rows, timeout=_COMMAND_S
            )
        except Exception as error:
            odd = next((row for row in rows if any(isinstance(value, str) and "\0" in value for value in row)), None)
            if odd is not None:
                key = odd[: shape_of(part).width] if part not in _ORDERED_BY else odd[:2]
                raise DefinitionError(
                    f"{self._address.shown}: row {key!r} of {part!r} holds the character NUL, which PostgreSQL's text "
                    "cannot: remove it at the source, then copy again"
                ) from error
            raise storage_error(error, self._address.shown) from error

    async def end(self) -> int:
        """See `HeldStore.end`."""
        ((position,),) = await self._named("written_position")
        return int(position)

    async def move_end(self, position: int, /) -> None:
        """See `HeldStore.move_end`. It stays moved where the transaction is undone, which leaves a gap."""
        self._changed = True
        await self._named("move_end", position=position)

    async def tables(self) -> list[str]:
        """See `HeldStore.tables`."""
        return [name for (name,) in await self._named("held_tables", schema=self._schema) if name not in OWN_TABLES]

    async def awaited(self) -> bool:
        """See `HeldStore.awaited`."""
        ((awaited,),) = await self._named("held_awaited")
        return bool(awaited)

    async def page(self, part: str, after: dict[str, Any], limit: int) -> list[tuple[Any, ...]]:
        """The rows of a part behind what the parameters say."""
        return await self._named(f"held_{part}", **after, limit=limit, bytes=PAGE_BYTES)

    async def table_page(self, table: str, after: tuple[Any, ...] | None, limit: int) -> list[tuple[Any, ...]]:
        """The rows of a declared table behind a key."""
        sql = rows_behind(table, self._schema, first=after is None)
        try:
            rows = await self._connection.fetch(sql, *(after or ()), limit, PAGE_BYTES, timeout=_COMMAND_S)
        except Exception as error:
            raise storage_error(error, self._address.shown) from error
        return [tuple(row) for row in rows]


class _NamedPages:
    def __init__(self, held: PostgresHolding, part: str) -> None:
        self._held = held
        self._part = part
        self._after = {name: smallest for name, _, smallest in _ORDERED_BY[part]}

    async def next(self, limit: int, /) -> list[tuple[Any, ...]]:
        """See `RowPages.next`."""
        rows = await self._held.page(self._part, self._after, limit)
        if rows:
            self._after = {name: rows[-1][place] for name, place, _ in _ORDERED_BY[self._part]}
        return rows


class _TablePages:
    def __init__(self, held: PostgresHolding, table: str) -> None:
        self._held = held
        self._table = table
        self._width = shape_of(table).width
        self._after: tuple[Any, ...] | None = None

    async def next(self, limit: int, /) -> list[tuple[Any, ...]]:
        """See `RowPages.next`."""
        rows = await self._held.table_page(self._table, self._after, limit)
        if rows:
            self._after = rows[-1][: self._width]
        return rows
