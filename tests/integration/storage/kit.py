"""What the tests of the SQLite backend share."""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.port import ANY_VERSION, Append, NewRecord, Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PYTHON = sys.executable
NOBODY = 65534


def unit(stream: str, *, expected: int = ANY_VERSION, data: bytes = b"{}", rows: Sequence[Row] = ()) -> Unit:
    """One event in `stream`."""
    new = uuid7()
    return Unit(new, 1, (Append(stream, (NewRecord(new, "t", data),), expected),), tuple(rows))


def names_in(folder: Path) -> set[str]:
    """The files there."""
    return {path.name for path in folder.iterdir()}


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A new folder, seen by a user whom file modes bind; root is nobody meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="ewe-test-", dir=tempfile.gettempdir()))
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o777)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def connecting(prepare: Callable[[sqlite3.Connection], Any], **how: Any) -> Callable[[str], sqlite3.Connection]:
    """A way to connect that does something to each connection before it is used."""

    def connect(uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, **({"timeout": 5.0} | how)
        )
        prepare(connection)
        return connection

    return connect
