"""A folder beside a SQLite file, for a store of its own on the same disk."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage.sqlite.connection import use_wal
from event_workflow_engine.storage.sqlite.errors import storage_error
from event_workflow_engine.storage.sqlite.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["SqliteScratch"]


class SqliteScratch:
    """See `Scratch`.

    Args:
        path: The file beside which it is; it need not be there. Symbolic links to it are followed, to its disk.
    """

    backend = "sqlite"

    def __init__(self, path: str) -> None:
        self._beside = Path(path).resolve().parent
        # It is named here and made later: what is to be removed is known however early its making is broken off.
        self.folder = self._beside / f"ewe-scratch-{os.urandom(6).hex()}"
        self.url = f"sqlite:///{self.folder / 'store.db'}"
        self.shown = f"sqlite:///{path}"

    async def make(self) -> dict[str, str]:
        """See `Scratch.make`.

        Raises:
            StorageUnavailableError: The folder is missing, or cannot be written.
        """
        if not self._beside.is_dir():
            raise StorageUnavailableError(
                f"{self._beside}: the directory does not exist: create it first, or name a file on another disk"
            )
        try:
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise storage_error(error, str(self._beside)) from error
        return {}

    async def drop(self) -> None:
        """See `Scratch.drop`.

        Raises:
            StorageError: Something in it cannot be removed.
        """
        try:
            _remove(self.folder)
        except OSError as error:
            raise StorageUnavailableError(f"{self.folder} is left behind ({error}): remove it by hand") from error

    @asynccontextmanager
    async def committing(self) -> AsyncIterator[Callable[[bytes], Awaitable[object]]]:
        """See `Scratch.committing`: in a file beside the store, in WAL mode with ``synchronous=FULL`` as that."""
        path = str(self.folder / "bare.db")
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                use_wal(connection, path)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(QUERIES["scratch_table"].sql)
                insert = QUERIES["scratch_commit"].sql

                async def commit(data: bytes) -> None:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(insert, {"data": data})
                    connection.execute("COMMIT")

                yield commit
        except (sqlite3.Error, OSError) as error:
            raise storage_error(error, path) from error


def _remove(folder: Path) -> None:
    # As shutil.rmtree does, which every import of the library would have to load.
    for below, _, files in os.walk(folder, topdown=False):
        for file in files:
            Path(below, file).unlink()
        Path(below).rmdir()
