"""What a projection is: a name, a version of its fold, and how events change it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeVar

from event_workflow_engine.callables import call_info, called
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.events import REGISTRY
from event_workflow_engine.storage.names import sql_table_prefix

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Rows, SqlSession

__all__ = ["DocumentProjection", "Mode", "Projection", "Route", "SqlProjection", "Transaction"]

D = TypeVar("D")
E = TypeVar("E")
Mode = Literal["async", "inline", "live"]
Fold = Callable[[Any, Any], Any]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,60}\Z")
_TABLE: Final = re.compile(r"[a-z][a-z0-9_]{0,40}\Z")
_PLACE: Final = re.compile(r"\{([^{}]*)\}")


class Route(Protocol):
    """How one event type changes a projection."""

    fold: Fold
    key: Callable[[Any], str] | None


class _Route:
    __slots__ = ("fold", "key")

    def __init__(self, fold: Fold, key: Callable[[Any], str] | None) -> None:
        self.fold = fold
        self.key = key


class Projection:
    """Base of projections: a read model that is a fold of the log.

    Attributes:
        name: Unique in the store.
        version: Of its fold: a higher one is rebuilt beside the old, and then takes its place. A process with a lower
            one than the store's reads, but does not feed.
        mode: ``"async"``: behind the log, exactly once. ``"inline"``: folded inside the commit. ``"live"``: on demand.
    """

    def __init__(self, name: str, version: int, mode: Mode) -> None:
        if not _NAME.match(name):
            raise DefinitionError(f"projection name {name!r}: a letter, then up to 60 letters, digits, '_' or '-'")
        if version < 1:
            raise DefinitionError(f"projection {name!r}: version {version} must be at least 1")
        self.name = name
        self.version = version
        self.mode: Mode = mode
        self._declared: list[tuple[type, _Route]] = []
        self._routes: dict[str, list[_Route]] = {}
        self._revision = -1

    def _add(self, kind: type, fold: Fold, key: Callable[[Any], str] | None) -> None:
        self._declared.append((kind, _Route(fold, key)))
        self._revision = -1

    @property
    def routes(self) -> Mapping[str, list[_Route]]:
        """By the name of each event type that it folds."""
        if self._revision != REGISTRY.revision:
            routes: dict[str, list[_Route]] = {}
            for kind, route in self._declared:
                names = REGISTRY.names_for(kind)
                if not names:
                    raise DefinitionError(
                        f"projection {self.name!r} folds {kind.__qualname__}, which is no event: decorate it"
                    )
                for name in names:
                    routes.setdefault(name, []).append(route)
            self._routes, self._revision = routes, REGISTRY.revision
        return self._routes


class DocumentProjection(Projection, Generic[D]):
    """Typed documents by key, each the fold of the events of its key.

    Args:
        name: Unique in the store.
        document: A dataclass, Struct or model.
        version: Of the fold.
        mode: See `Projection`. Every process that appends events of an inline projection must register it; events that
            one appended without are folded only if the projection is registered next before others are folded.
        indexes: Fields that `find` is often asked for; a hint.

    Raises:
        DefinitionError: A name, version or mode is wrong.
    """

    def __init__(
        self, name: str, document: type[D], *, version: int = 1, mode: Mode = "async", indexes: Iterable[str] = ()
    ) -> None:
        if mode not in ("async", "inline", "live"):
            raise DefinitionError(f"projection {name!r}: mode={mode!r}; it is 'async', 'inline' or 'live'")
        super().__init__(name, version, mode)
        self.document = document
        self.indexes = tuple(indexes)

    def on(
        self,
        type: type[E],  # noqa: A002 - the contract's name
        *,
        key: Callable[[E], str],
    ) -> Callable[[Callable[[D | None, E], D | None]], Callable[[D | None, E], D | None]]:
        """Fold events of a type, or derived from it, into the document of a key.

        The fold is pure and sync: it gets the document (``None``: there is none) and the payload, and returns the
        document as it is then; ``None`` deletes it. It may be called again for the same event, so it must not
        change what it is given.

        Args:
            type: The event's class.
            key: Whose document it is.
        """

        def register(fold: Callable[[D | None, E], D | None]) -> Callable[[D | None, E], D | None]:
            if call_info(fold).is_async:
                raise DefinitionError(f"projection {self.name!r}: the fold {called(fold)} is async: write it as a def")
            self._add(type, fold, key)
            return fold

        return register


class SqlProjection(Projection):
    """Rows in tables of its own, written by SQL in the transaction that moves its checkpoint.

    Args:
        name: Unique in the store.
        tables: Each table's columns, as in ``CREATE TABLE``. SQL names them ``{table}``.
        version: Of the handlers and tables.
        mode: Both are fed right behind the commits, each page in a transaction of its own: SQL cannot run inside
            another unit's commit. With ``"inline"`` reading it waits until it has seen what was committed before the
            read, up to 5 seconds; with ``"async"`` it does not. Neither fails an append.

    Raises:
        DefinitionError: A name, version, mode or table is wrong.
    """

    def __init__(
        self, name: str, *, tables: Mapping[str, str], version: int = 1, mode: Literal["async", "inline"] = "async"
    ) -> None:
        if mode not in ("async", "inline"):
            raise DefinitionError(f"projection {name!r}: mode={mode!r}; it is 'async' or 'inline'")
        super().__init__(name, version, mode)
        for table, columns in tables.items():
            if not _TABLE.match(table):
                raise DefinitionError(f"projection {name!r}, table {table!r}: a letter, then letters, digits or '_'")
            if not columns.strip() or ";" in columns or "--" in columns or "/*" in columns:
                raise DefinitionError(f"projection {name!r}, table {table!r}: columns without ';' and comments")
        if not tables:
            raise DefinitionError(f"projection {name!r} declares no tables")
        self.tables = dict(tables)

    def on(
        self,
        type: type[E],  # noqa: A002 - the contract's name
        *,
        key: Callable[[E], str] | None = None,
    ) -> Callable[[Callable[[Transaction, E], Awaitable[None]]], Callable[[Transaction, E], Awaitable[None]]]:
        """Handle events of a type, or derived from it, in the transaction.

        Args:
            type: The event's class.
            key: Behind a poison event, later ones of its key are parked; by default those of its stream.
        """

        def register(
            handler: Callable[[Transaction, E], Awaitable[None]],
        ) -> Callable[[Transaction, E], Awaitable[None]]:
            if not call_info(handler).is_async:
                raise DefinitionError(
                    f"projection {self.name!r}: the handler {called(handler)} is not async: write it as an async def"
                )
            self._add(type, handler, key)
            return handler

        return register

    def table(self, table: str, generation: int) -> str:
        """A table's name in the database."""
        return f"{sql_table_prefix(self.name)}{table}_g{generation}"

    def bind(self, sql: str, generation: int) -> str:
        """`sql` with its ``{table}`` places filled.

        Raises:
            DefinitionError: It names a table that the projection does not declare.
        """

        def fill(place: re.Match[str]) -> str:
            if place[1] not in self.tables:
                raise DefinitionError(f"projection {self.name!r} has no table {place[1]!r}, but {sorted(self.tables)}")
            return self.table(place[1], generation)

        return _PLACE.sub(fill, sql)


class Transaction:
    """The transaction that moves the checkpoint, for a SQL projection's handlers. Parameters are ``:name``."""

    def __init__(self, session: SqlSession, projection: SqlProjection, generation: int) -> None:
        self._session = session
        self._projection = projection
        self._generation = generation

    async def execute(self, sql: str, /, **params: Any) -> int:
        """Run a statement; ``{table}`` is a table of the projection.

        Returns:
            How many rows it changed.
        """
        return await self._session.execute(self._projection.bind(sql, self._generation), params)

    async def fetch(self, sql: str, /, **params: Any) -> Rows:
        """Run a query; all its rows."""
        return await self._session.fetch(self._projection.bind(sql, self._generation), params)
