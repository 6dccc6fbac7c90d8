"""The memory backend's face: the port over a `MemoryState`. Nothing in it outlives its object."""

from __future__ import annotations

import sqlite3
import weakref
from itertools import islice
from typing import TYPE_CHECKING, Any

from event_workflow_engine.errors import DefinitionError, EngineStateError, StorageUnavailableError
from event_workflow_engine.storage.lifecycle import GroupedStorage
from event_workflow_engine.storage.liveness import ProcessLiveness
from event_workflow_engine.storage.memory.held import MemoryHolding
from event_workflow_engine.storage.memory.queries import CLAIM_FUNCTIONS, READ_FUNCTIONS
from event_workflow_engine.storage.memory.state import MemoryState
from event_workflow_engine.storage.port import Written
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.storage.user_sql import UNDONE, SqlGuard, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.liveness import Liveness
    from event_workflow_engine.storage.port import InlineFolder, Record, Rows, SqlSession, Unit

__all__ = ["MemoryStorage"]


class MemoryStorage(GroupedStorage):
    """A store in dictionaries. It uses no thread and no file, and commits once per iteration of the event loop.

    Its data stays when it is left, and is there when it is entered again.

    Attributes:
        state: All that it holds.
    """

    def __init__(self, url: str = "memory://") -> None:
        super().__init__(url)
        self.state = MemoryState()
        self._liveness = ProcessLiveness()
        # The tables of SQL projections. The connection is used on one thread at a time, by whoever runs the loop.
        self._sql = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._sql.close)  # it lives as long as this object, however often that is entered
        self._guard = SqlGuard(self._sql, ())

    async def _open(self) -> None:
        self._start(self._execute, answers_later=False)

    async def _close(self) -> None:
        """Keep everything: the object may be entered again."""

    def _execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        done([self.state.attempt(unit) for unit in units])

    def set_inline_folder(self, folder: InlineFolder | None) -> None:
        """Install what folds inline projections, or remove it."""
        self.state.folder = folder

    def liveness(self, lease: float) -> Liveness:  # noqa: ARG002 - there are no heartbeats
        """Workers of one process: those that are there."""
        return self._liveness

    # -- alone ---------------------------------------------------------------------------------------------------

    def _transaction(self) -> _MemoryTransaction:
        return _MemoryTransaction(self.state, self._sql, self._guard)

    async def _claim(self, name: str, params: Mapping[str, Any]) -> Rows:
        claim = CLAIM_FUNCTIONS.get(name)
        if claim is None:
            raise DefinitionError(f"there is no claim {name!r}")
        return claim(self.state, **params)

    def _holding(self) -> MemoryHolding:
        return MemoryHolding(self.state, self._sql)

    async def identity(self) -> str:
        """Text that is the same for two objects where they are of one store."""
        return f"memory {id(self.state)}"

    # -- reading -------------------------------------------------------------------------------------------------

    async def outcome(self, unit_id: str) -> Written | None:
        """Whether the unit landed."""
        await self._committer.settled(unit_id)
        return self.state.outcome(unit_id)

    async def head(self, stream: str) -> int:
        """The stream's version; 0 when it has no events."""
        return self._opened.head(stream)

    async def last_position(self) -> int:
        """The position of the last event committed; 0 in an empty store."""
        return self._opened.last_position()

    async def read_stream(
        self, stream: str, *, after: int | None = None, limit: int = 1000, backwards: bool = False
    ) -> list[Record]:
        """Up to `limit` records with events behind version `after`; backwards: below it."""
        state = self._opened
        records = state.stream_below(stream, after) if backwards else state.stream_behind(stream, after or 0)
        return records[:limit]

    async def read_streams(self, streams: Sequence[str]) -> list[Record]:
        """All records of several streams, each stream's in order."""
        return [record for stream in dict.fromkeys(streams) for record in self._opened.stream_behind(stream, 0)]

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
        wanted = set(types)
        before = [record for record in self._opened.behind(after - 1)[:1] if seen and record.position == after]
        found = (
            record
            for record in self._opened.behind(after)
            if (not types or not wanted.isdisjoint(record.type.split("+")))
            and (not categories or record.stream.split("-", 1)[0] in categories)
        )
        return [*before, *islice(found, limit)]

    async def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """One row of a declared table by its key."""
        shape = shape_of(table)
        image = self._opened.tables[table].get(shape.key(key))
        return None if image is None else shape.as_dict(image)

    async def query(self, name: str, /, **params: Any) -> Rows:
        """Run a named read."""
        read = READ_FUNCTIONS.get(name)
        if read is None:
            raise DefinitionError(f"there is no read {name!r}")
        return read(self._opened, **params)

    async def fetch(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """A read-only query over the tables of SQL projections."""
        self._require_open()
        if self._sql.in_transaction:
            # One connection: what is not committed must not be seen, so wait for the end of exclusive work.
            await self._committer.alone(_nothing)
        return rows_of(self._guard.read(sql, params))

    async def status(self) -> dict[str, Any]:
        """What this store is and holds, for people."""
        state = self._opened
        return {
            "url": self.url,
            "backend": "memory",
            "schema_version": None,
            "last_position": state.last_position(),
            "estimates": {
                "events": state.last_position(),
                "streams": len(state.streams),
                "sagas": len(state.tables["sagas"]),
            },
        }

    @property
    def _opened(self) -> MemoryState:
        """The state; raises where the store is not open."""
        self._require_open()
        return self.state


class _MemoryTransaction:
    """A transaction over the tables of SQL projections, with a unit beside it."""

    def __init__(self, state: MemoryState, sql: sqlite3.Connection, guard: SqlGuard) -> None:
        self._state = state
        self._sql = sql
        self._session = _MemorySession(guard)

    async def begin(self) -> SqlSession:
        """See `ExclusiveTransaction.begin`."""
        self._sql.execute("BEGIN")
        return self._session

    async def end(self) -> None:
        """See `ExclusiveTransaction.end`."""
        self._session.closed = True

    async def abort(self) -> None:
        """See `ExclusiveTransaction.abort`."""
        self._sql.rollback()

    async def commit(self, unit: Unit) -> Verdict:
        """See `ExclusiveTransaction.commit`."""
        if not self._sql.in_transaction:
            return StorageUnavailableError(UNDONE)
        verdict = self._state.attempt(unit)
        if isinstance(verdict, Written):
            self._sql.commit()
        else:
            self._sql.rollback()
        return verdict


class _MemorySession:
    """User's SQL in the transaction of exclusive work; run on the loop's thread, since it waits for nothing."""

    connection: None = None

    def __init__(self, guard: SqlGuard) -> None:
        self._guard = guard
        self.closed = False

    async def execute(self, sql: str, params: Mapping[str, Any], /) -> int:
        """Run a statement; the number of rows it changed."""
        return max(self._run(sql, params).rowcount, 0)

    async def fetch(self, sql: str, params: Mapping[str, Any], /) -> Rows:
        """Run a query; all its rows."""
        return rows_of(self._run(sql, params))

    async def check(self) -> None:
        """See `SqlSession.check`: SQLite has checked the constraints, statement by statement."""
        self._guard.check()

    def _run(self, sql: str, params: Mapping[str, Any]) -> sqlite3.Cursor:
        if self.closed:
            raise EngineStateError("the transaction of this session has ended")
        return self._guard.write(sql, params)


async def _nothing() -> None:
    """Wait for one's turn, no more."""
