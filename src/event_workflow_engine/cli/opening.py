"""Opening a store that is there already: no command migrates one, and only a copy makes one."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import DefinitionError, StorageUnavailableError
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage

__all__ = ["existing", "opened", "to_be_filled"]

_SQLITE: Final = "sqlite:///"


def existing(url: str) -> Storage:
    """The store at a URL, to be entered.

    Raises:
        DefinitionError: The URL is none that the library knows, or names a store that no other process can share.
        StorageUnavailableError: There is no such file, or it is empty.
    """
    storage = open_storage(url, auto_upgrade=False)
    if url.startswith("memory:"):
        raise DefinitionError(f"{url}: a store in memory lives inside its own process; name a file with --url")
    if not url.startswith(_SQLITE):
        return storage
    path = Path(url.removeprefix(_SQLITE))
    if not _exists(path):
        raise StorageUnavailableError(
            f"{path}: there is no such file; name the store with --url or EWE_URL (a worker creates it when it starts)"
        )
    if path.is_file() and not path.stat().st_size:
        raise StorageUnavailableError(f"{path}: the file is empty, no worker has used it yet; name another with --url")
    return storage


def to_be_filled(url: str) -> Storage:
    """The store at a URL that a copy is to be made at, to be entered; a file is made where there is none.

    Raises:
        DefinitionError: See `existing`.
    """
    if url.startswith(_SQLITE):
        path = Path(url.removeprefix(_SQLITE))
        if not _exists(path) or (path.is_file() and not path.stat().st_size):
            return open_storage(url, auto_upgrade=True)
    return existing(url)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise StorageUnavailableError(f"{path}: {error.strerror}: check the path, its owner and mode") from error


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Storage]:
    """The store at a URL, for as long as the block runs. What goes wrong is raised, so it is not logged as well.

    Raises:
        WorkflowError: See `existing`; or the store cannot be opened.
    """
    log, silent = logging.getLogger("event_workflow_engine"), logging.NullHandler()
    log.addHandler(silent)
    try:
        async with existing(url) as storage:
            yield storage
    finally:
        log.removeHandler(silent)
