"""The SQLite backend's face: the port over one writer thread and a few readers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from event_workflow_engine.errors import EngineStateError, WorkflowError
from event_workflow_engine.storage.lifecycle import GroupedStorage
from event_workflow_engine.storage.liveness import FileLiveness, ProcessLiveness
from event_workflow_engine.storage.sqlite.connection import connect as default_connect
from event_workflow_engine.storage.sqlite.held import SqliteHolding
from event_workflow_engine.storage.sqlite.readers import READER_THREADS, Readers
from event_workflow_engine.storage.sqlite.threads import JobThreads
from event_workflow_engine.storage.sqlite.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.liveness import Liveness
    from event_workflow_engine.storage.port import InlineFolder, Record, Rows, SqlSession, Unit, Written
    from event_workflow_engine.storage.sqlite.connection import Connect

__all__ = ["SqliteStorage"]

T = TypeVar("T")


class SqliteStorage(GroupedStorage):
    """A store in one SQLite file, in WAL mode with ``synchronous=FULL``: what was acknowledged survives a power loss.

    Several processes may have the file open. They take turns, batch by batch, under a lock on side files
    (``<file>-ewe.lock`` and ``-ewe.turn``), which also stay when the store is closed.

    Args:
        path: Of the file; created where it is missing, its directory not.
        url: As it was opened; default made from the path.
        auto_upgrade: Create and migrate the schema on entering. Default: yes.
        connect: Makes the connections; for tests that need one which fails.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        url: str | None = None,
        auto_upgrade: bool = True,
        connect: Connect = default_connect,
    ) -> None:
        super().__init__(url if url is not None else f"sqlite:///{path}")
        self.path = str(Path(path).absolute())  # the process may go to another folder
        self._auto_upgrade = auto_upgrade
        self._connect = connect
        self._writer: Writer | None = None
        self._writer_thread: JobThreads | None = None
        self._readers = Readers(self.path, connect)
        self._reader_threads: JobThreads | None = None
        self._within_process = ProcessLiveness()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()

        def ring() -> None:
            loop.call_soon_threadsafe(self._listeners.ring)

        writer = Writer(self.path, self._connect, ring)
        writer.folder = self._folder
        writer.listening = self._listeners.has_bells
        thread = JobThreads("ewe-writer", between=writer.between_jobs)
        try:
            await thread.call(writer.open, self._auto_upgrade)
        except BaseException:
            await thread.stop()
            raise
        self._writer, self._writer_thread = writer, thread
        self._reader_threads = JobThreads("ewe-reader", READER_THREADS)
        self._start(self._execute, answers_later=True)

    async def _close(self) -> None:
        readers, self._reader_threads = self._reader_threads, None
        thread, self._writer_thread = self._writer_thread, None
        writer, self._writer = self._writer, None
        if readers is None or thread is None or writer is None:
            return
        await readers.stop()
        self._readers.close()
        try:
            await thread.call(writer.close)
        finally:
            await thread.stop()

    # -- writing -------------------------------------------------------------------------------------------------

    def _execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        writer, thread = self._writing

        def settle(verdicts: list[Verdict], error: BaseException | None) -> None:
            if error is None:
                done(verdicts)
            else:  # a defect of ours; nobody shall wait for ever
                done([error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(units))

        thread.post(writer.batch, (units,), settle)

    @property
    def _writing(self) -> tuple[Writer, JobThreads]:
        if self._writer is None or self._writer_thread is None:
            raise self._not_open()
        return self._writer, self._writer_thread

    async def _claim(self, name: str, params: Mapping[str, Any]) -> Rows:
        writer, thread = self._writing
        return await thread.call(writer.claim, name, params)

    def _transaction(self) -> _SqliteTransaction:
        return _SqliteTransaction(*self._writing)

    def _holding(self) -> SqliteHolding:
        return SqliteHolding(self.path, self._connect, *self._writing)

    async def identity(self) -> str:
        """Text that is the same for two objects where they are of one store: which file it is."""
        return await self._read(self._readers.identity)

    def liveness(self, lease: float) -> Liveness:  # noqa: ARG002 - there are no heartbeats
        """Workers on one machine, by the locks that end with their processes."""
        if os.name == "nt":
            return self._within_process
        # One folder for one file, by whichever name it was opened: else its workers would take each other for dead.
        return FileLiveness(Path(f"{os.path.realpath(self.path)}-ewe-workers"))

    def set_inline_folder(self, folder: InlineFolder | None) -> None:
        """Install what folds inline projections, or remove it; from the next batch on."""
        super().set_inline_folder(folder)
        if self._writer is not None:
            self._writer.folder = folder

    def add_bell(self, ring: Callable[[], None], *, own: bool = True) -> Callable[[], None]:
        """Call `ring` on the loop whenever anything was committed, by this process or another; returns its remover."""
        remove = super().add_bell(ring, own=own)
        self._listen()

        def remove_and_listen() -> None:
            remove()
            self._listen()

        return remove_and_listen

    def _listen(self) -> None:
        """Have the writer look for other processes' commits as long as anyone wants to know."""
        listening = self._listeners.has_bells
        if self._writer is not None and self._writer_thread is not None and self._writer.listening != listening:
            self._writer.listening = listening
            self._writer_thread.wake()

    # -- reading -------------------------------------------------------------------------------------------------

    async def _read(self, read: Callable[..., T], *args: Any) -> T:
        self._require_open()
        if self._reader_threads is None:
            raise self._not_open()
        return await self._reader_threads.call(self._readers.run, read, *args)

    async def outcome(self, unit_id: str) -> Written | None:
        """Whether the unit landed, as soon as that is settled."""
        await self._committer.settled(unit_id)
        return await self._read(self._readers.outcome, unit_id)

    async def head(self, stream: str) -> int:
        """The stream's version; 0 when it has no events."""
        return await self._read(self._readers.head, stream)

    async def last_position(self) -> int:
        """The position of the last event committed; 0 in an empty store."""
        return await self._read(self._readers.last_position)

    async def read_stream(
        self, stream: str, *, after: int | None = None, limit: int = 1000, backwards: bool = False
    ) -> list[Record]:
        """Up to `limit` records with events behind version `after`; backwards: below it."""
        return await self._read(self._readers.stream, stream, after, limit, backwards)

    async def read_streams(self, streams: Sequence[str]) -> list[Record]:
        """All records of several streams, each stream's in order."""
        return await self._read(self._readers.streams, streams)

    async def read_log(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        types: Sequence[str] = (),
        categories: Sequence[str] = (),
        seen: bool = False,
    ) -> list[Record]:
        """Records behind position `after` in order, of those types and categories."""
        return await self._read(self._readers.log, after, limit, types, categories, seen)

    async def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """One row of a declared table by its key."""
        return await self._read(self._readers.get, table, key)

    async def query(self, name: str, /, **params: Any) -> Rows:
        """Run a named read."""
        return await self._read(self._readers.query, name, params)

    async def fetch(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """A read-only query over the tables of SQL projections."""
        return await self._read(self._readers.fetch, sql, params)

    async def status(self) -> dict[str, Any]:
        """What this store is and holds, for people."""
        found = await self._read(self._readers.status)
        writer, thread = self._writing
        found["synchronous"] = await thread.call(writer.synchronous)
        return {
            "url": self.url,
            "backend": "sqlite",
            **found,
        }


class _SqliteTransaction:
    """A transaction on the writer's thread, over several of its jobs."""

    def __init__(self, writer: Writer, thread: JobThreads) -> None:
        self._writer = writer
        self._thread = thread
        self._session = _SqliteSession(writer, thread)

    async def begin(self) -> SqlSession:
        """See `ExclusiveTransaction.begin`."""
        await self._thread.call(self._writer.begin_exclusive)
        return self._session

    async def end(self) -> None:
        """See `ExclusiveTransaction.end`. What is under way ends before the thread's next job."""
        self._session.closed = True

    async def abort(self) -> None:
        """See `ExclusiveTransaction.abort`."""
        self._writer.interrupt()  # a statement may still run, for a caller that was cancelled
        await self._thread.call(self._writer.abort_exclusive)

    async def commit(self, unit: Unit) -> Verdict:
        """See `ExclusiveTransaction.commit`."""
        return await self._thread.call(self._writer.commit_exclusive, unit)


class _SqliteSession:
    """User's SQL in the transaction of exclusive work, on the writer's thread."""

    connection: None = None

    def __init__(self, writer: Writer, thread: JobThreads) -> None:
        self._writer = writer
        self._thread = thread
        self._failed = False  # a statement, which may have ended the transaction
        self.closed = False

    async def execute(self, sql: str, params: Mapping[str, Any], /) -> int:
        """Run a statement; the number of rows it changed."""
        return (await self._run(sql, params))[1]

    async def fetch(self, sql: str, params: Mapping[str, Any], /) -> Rows:
        """Run a query; all its rows."""
        return (await self._run(sql, params))[0]

    async def check(self) -> None:
        """See `SqlSession.check`: SQLite has checked the constraints, statement by statement."""
        if self._failed:
            await self._thread.call(self._writer.check_exclusive)

    async def _run(self, sql: str, params: Mapping[str, Any]) -> tuple[Rows, int]:
        if self.closed:
            raise EngineStateError("the transaction of this session has ended")
        try:
            return await self._thread.call(self._writer.user_sql, sql, params)
        except WorkflowError:
            self._failed = True
            raise
