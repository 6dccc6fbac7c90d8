"""Opening a store by its URL: the only place that knows which backends there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.memory import MemoryStorage
from event_workflow_engine.storage.sqlite import SqliteStorage
from event_workflow_engine.storage.sqlite.scratch import SqliteScratch

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage
    from event_workflow_engine.storage.scratch import Scratch

__all__ = ["open_storage", "scratch_beside"]

_SUPPORTED: Final = (
    "sqlite:///relative.db, sqlite:////absolute/path.db, postgresql://user:password@host/database and memory://"
)


def open_storage(url: str, *, auto_upgrade: bool | None = None) -> Storage:
    """The store at `url`, to be entered as an async context manager. Nothing is touched before that.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute/path.db``, ``postgresql://user:password@host/database``
            (its options: `Address.of`), or ``memory://`` (nothing survives the object).
        auto_upgrade: Create and migrate the schema on entering. Default: the backend's custom; SQLite does,
            PostgreSQL, which many processes share, does not.

    Raises:
        DefinitionError: No backend takes such a URL.

    Example:
        >>> import asyncio
        >>> async def main() -> int:
        ...     async with open_storage("memory://") as storage:
        ...         return await storage.last_position()
        >>> asyncio.run(main())
        0
    """
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        raise DefinitionError(f"{url!r} is no URL of a store; supported are {_SUPPORTED}")
    if scheme == "memory":
        if rest:
            raise DefinitionError(f"{url!r}: memory:// takes no path")
        return MemoryStorage(url)
    if scheme == "sqlite":
        # As in other libraries' URLs: three slashes, then the path; an absolute one brings the fourth.
        if not rest.startswith("/") or rest == "/" or rest.endswith("/"):
            raise DefinitionError(f"{url!r} names no file; supported are {_SUPPORTED}")
        if rest[1:] == ":memory:":
            raise DefinitionError(f"{url!r}: a store in memory is memory://")
        if "?" in rest or "\0" in rest:
            raise DefinitionError(
                f"{url!r}: options and paths with ? or NUL are not supported; supported are {_SUPPORTED}"
            )
        return SqliteStorage(rest[1:], url=url, auto_upgrade=auto_upgrade is not False)
    if scheme.partition("+")[0] in ("postgresql", "postgres"):
        return _postgres(url, auto_upgrade=bool(auto_upgrade))
    raise DefinitionError(f"no backend takes {scheme}:// URLs; supported are {_SUPPORTED}")


def _postgres(url: str, *, auto_upgrade: bool) -> Storage:
    try:
        from event_workflow_engine.storage.postgres import PostgresStorage  # noqa: PLC0415 - it needs an extra
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise DefinitionError(
            "a PostgreSQL store needs asyncpg: install event-workflow-engine with its extra postgres"
        ) from error
    return PostgresStorage(url, auto_upgrade=auto_upgrade)


def scratch_beside(url: str) -> Scratch:
    """A place for a store of its own on the disk, or in the database, of the store at `url`, which is not touched.

    Args:
        url: See `open_storage`. There need not be a store.

    Raises:
        DefinitionError: No backend takes such a URL, or the store is one in memory.
    """
    open_storage(url)  # says what is wrong with it
    if url.startswith("memory:"):
        raise DefinitionError(
            f"{url}: a store in memory has no disk: name a sqlite:/// file or a postgresql:// database"
        )
    if url.startswith("sqlite:"):
        return SqliteScratch(url.removeprefix("sqlite:///"))
    from event_workflow_engine.storage.postgres.scratch import PostgresScratch  # noqa: PLC0415 - it needs an extra

    return PostgresScratch(url)
