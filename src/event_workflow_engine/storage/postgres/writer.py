"""What is written: batches, claims and exclusive transactions, one after the other over one connection."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec

from event_workflow_engine.errors import (
    DefinitionError,
    LogRewoundError,
    StorageCorruptError,
    StorageLostError,
    StorageUnavailableError,
    WorkflowError,
)
from event_workflow_engine.storage.group_commit import Repeated
from event_workflow_engine.storage.judging.caches import NO_EVENTS
from event_workflow_engine.storage.port import CLAIMS, Written
from event_workflow_engine.storage.postgres.batch import Batch
from event_workflow_engine.storage.postgres.connections import fetch_named, landed_unit, outcome_of
from event_workflow_engine.storage.postgres.errors import DRIVER_ERRORS, is_lost_connection, storage_error
from event_workflow_engine.storage.postgres.queries import statements_in
from event_workflow_engine.storage.postgres.rows import SharedCache
from event_workflow_engine.storage.postgres.statements import rows_by_keys
from event_workflow_engine.storage.postgres.user_sql import UserSql
from event_workflow_engine.storage.postgres.wanted import FetchedIds, NotFetchedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.port import InlineFolder, Rows, Unit
    from event_workflow_engine.storage.postgres.announcer import Announcer
    from event_workflow_engine.storage.postgres.connections import Connections
    from event_workflow_engine.storage.postgres.wanted import Wanted

__all__ = ["Writer"]

_log = logging.getLogger("event_workflow_engine.storage")

_COMMAND_S: Final = 30.0
_ROUNDS: Final = 50
_KEEP_UNIT_IDS_US: Final = 7 * 24 * 3600 * 1_000_000
_PRUNE_EVERY: Final = 500  # batches
_PRUNE_LIMIT: Final = 2000
_PARTS: Final = 16  # into which a batch that failed is split: two steps from the largest to single units
_SINGLES: Final = 2
_QUIET: Final[dict[str, str | None]] = {"channel": None, "sender": None}
_QUIET_CLAIMS: Final = frozenset({"claim_saga", "claim_sagas"})  # nobody else can do anything for what is claimed


class Writer:
    """Its methods are called one at a time, which the group committer sees to.

    Args:
        connections: Whose database it is.
        announcer: Tells others of what was committed.

    Attributes:
        folder: Folds inline projections.
        connects: How often a connection was made.
    """

    def __init__(self, connections: Connections, announcer: Announcer) -> None:
        self._connections = connections
        self._address = connections.address
        self._schema = connections.address.schema
        self._statements = statements_in(self._schema)
        self._commit_batch, names = self._statements["commit_batch"].numbered[0]
        self._in_order = itemgetter(*names)
        self._announcer = announcer
        self._connection: Any = None
        self._cache = SharedCache()
        self._uncommitted: dict[str, str | None] | None = None  # what tells of what the open transaction has written
        self._explicit = False  # transactions must be begun with their own settings, for the role's do not fit
        self._batches = 0
        self._newest = 0  # the latest Unit.at seen: the clock by which ids of units grow old
        self.folder: InlineFolder | None = None
        self.connects = 0

    async def open(self) -> None:
        """Connect.

        Raises:
            StorageLostError: There is no connection to be had.
            StorageError: What it leads to is not what this process knew.
        """
        if self._connection is None or self._connection.is_closed():
            # The server may be another one, which lacks what is remembered and numbers its transactions anew.
            self._cache.clear()
            try:
                self._connection = await self._connections.patiently(self._address.connect)
            except StorageUnavailableError as error:
                lost = StorageLostError(str(error))
                lost.__cause__ = error.__cause__
                raise lost from error.__cause__
            self.connects += 1
            await self._check_history()

    async def _check_history(self) -> None:
        """See that what this process knows of the log is on the server that it is connected to now.

        What is to be written was decided by what was known. Where some of that is lost it must not land: a read model
        would hold what never was, and a checkpoint pass over what is.

        Raises:
            LogRewoundError: It is not. What is decided from here on is decided by what there is.
        """
        newest = self._connections.newest
        if newest is None:
            return
        try:
            found = await self._rows("log", seen=True, after=newest[0], limit=0)
            if found and found[0]["id"] == newest[1]:
                return
            rows = await self._rows("log_end")
        except BaseException:
            self._drop()  # unchecked it must not be used
            raise
        end = rows[0]["position"] if rows else 0
        rewound = LogRewoundError("this process", self._address.shown, newest[0], end)
        _log.error("%s", rewound)
        self._connections.newest = (end, rows[0]["id"]) if rows else None
        self._connections.on_rewound(rewound)
        raise rewound

    async def _open_for(self, rewinds: int) -> None:
        """Connect, for what was decided when so many rewinds were known.

        Raises:
            LogRewoundError: By now there are more.
            StorageError: There is no connection to be had.
        """
        await self.open()
        if len(self._connections.rewinds) != rewinds:  # another writer found it out
            raise LogRewoundError("this process", self._address.shown, *self._connections.rewinds[-1])

    @property
    def is_connected(self) -> bool:
        """Whether its connection is open, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*DRIVER_ERRORS):
                await connection.close(timeout=1)

    # -- batches -------------------------------------------------------------------------------------------------

    async def batch(self, units: Sequence[Unit]) -> list[Verdict]:
        """Write a batch: a verdict for each unit. Raises nothing."""
        rewinds = len(self._connections.rewinds)
        try:
            verdicts = await self._optimistically(units, rewinds)
        except Exception as error:  # noqa: BLE001 - told to those who wait
            await asyncio.sleep(0)  # from here on for certain in a task, whose timeouts can end it
            if isinstance(error, LogRewoundError):
                verdicts = [error] * len(units)
            else:
                verdicts = await self._carefully(units, error, rewinds)
        self._batches += 1
        self._newest = max(self._newest, units[-1].at)
        self._note(units, verdicts)
        if not self._batches % _PRUNE_EVERY:
            await self._prune()
        return verdicts

    def _note(self, units: Sequence[Unit], verdicts: Sequence[Verdict]) -> None:
        for unit, verdict in zip(reversed(units), reversed(verdicts), strict=True):
            if isinstance(verdict, Written) and verdict.appended:
                for append in reversed(unit.appends):
                    if append.records:
                        self._connections.note(verdict.appended[-1].position, append.records[-1].id)
                        return

    async def _optimistically(self, units: Sequence[Unit], rewinds: int) -> list[Verdict]:
        """Judge by what is remembered, and have the server check that: one round trip where it holds."""
        await self._open_for(rewinds)
        if self._explicit:
            return await self._locked(units, careful=False)
        batch = await self._judged(units, FetchedIds(), careful=False, guesses=True)
        verdicts = await self._send(batch)
        if verdicts is None:
            verdicts = await self._locked(units, careful=False)
        return verdicts

    async def _carefully(self, units: Sequence[Unit], failure: Exception, rewinds: int) -> list[Verdict]:
        """What becomes of units whose batch failed: once more with all their ids looked up under the lock.

        What landed although its commit raised is found then and not written twice. Whoever sent it first holds the
        lock until it has ended, so what is not found then will not land any more.
        """
        self._cache.clear()
        if isinstance(failure, (asyncpg.FeatureNotSupportedError, asyncpg.ReadOnlySQLTransactionError)):
            self._begin_explicitly(failure)
        in_doubt = is_lost_connection(failure)
        if in_doubt:
            self._drop()
            _log.warning("%s: a batch of %d units is in doubt and is looked up: %s", self._address.shown, len(units),
                         _text(failure))  # fmt: skip
        verdicts = await self._in_parts(units, _Effort(rewinds, in_doubt=in_doubt))
        return [_landed_now(verdict) for verdict in verdicts] if in_doubt else verdicts

    async def _in_parts(self, units: Sequence[Unit], effort: _Effort) -> list[Verdict]:
        """All together; where that fails in smaller parts, in order, down to single units."""
        if effort.given_up is not None:
            return [effort.given_up] * len(units)
        try:
            await self._open_for(effort.rewinds)
            verdicts = await self._locked(units, careful=True)
        except Exception as error:  # noqa: BLE001 - told to those who wait
            self._cache.clear()
            typed = effort.told(self._typed(error))
            if not self.is_connected or isinstance(error, LogRewoundError):
                effort.given_up = typed
            elif len(units) == 1 and effort.ends_with(error):
                effort.given_up = typed
                _log.warning("%s: gave up a batch after %d units of it that were each stopped alone: %s",
                             self._address.shown, _SINGLES, _text(error))  # fmt: skip
            if effort.given_up is not None or len(units) == 1:
                return [typed] * len(units)
        else:
            effort.stopped = 0
            return verdicts
        size = max(1, len(units) // _PARTS)
        parts = [units[start : start + size] for start in range(0, len(units), size)]
        return [verdict for part in parts for verdict in await self._in_parts(part, effort)]

    def _begin_explicitly(self, failure: Exception) -> None:
        if not self._explicit:
            self._explicit = True
            _log.warning("%s: %s; each batch is begun with settings of its own, which costs three round trips more: "
                         "reset default_transaction_isolation and default_transaction_read_only for this role",
                         self._address.shown, _text(failure))  # fmt: skip

    async def _locked(self, units: Sequence[Unit], *, careful: bool) -> list[Verdict]:
        """Judge and write under the lock, so that what is fetched stays as it is."""
        await self._begin()
        try:
            verdicts = await self._write(units, careful=careful)
            await self._connection.execute("COMMIT", timeout=_COMMAND_S)
        except BaseException:
            await self._rollback()
            raise
        self._committed()
        return verdicts

    async def _write(self, units: Sequence[Unit], *, careful: bool) -> list[Verdict]:
        """Judge and write in the open transaction."""
        ids = FetchedIds()
        for _ in range(_ROUNDS):
            batch = await self._judged(units, ids, careful=careful, guesses=False)
            verdicts = await self._send(batch, commits=False)
            if verdicts is not None:
                return verdicts
        raise StorageCorruptError(f"{self._address.shown}: what is read under the lock does not stay as it is")

    async def _judged(self, units: Sequence[Unit], ids: FetchedIds, *, careful: bool, guesses: bool) -> Batch:
        for _ in range(_ROUNDS):
            batch = Batch(self._cache, self.folder, ids, careful=careful, guesses=guesses)
            try:
                batch.judge(units)
            except NotFetchedError as missing:
                await self._fetch(missing.wanted, ids)
            else:
                return batch
        raise StorageCorruptError(f"{self._address.shown}: judging a batch always asks for more")

    async def _send(self, batch: Batch, *, commits: bool = True) -> list[Verdict] | None:
        """Have the server write the batch: its verdicts, or `None` where it was judged by what is no longer so.

        Where it does not commit with that, `_committed` or `_rollback` tells others of it.
        """
        told = _QUIET
        try:
            parameters = batch.parameters()
            if batch.is_news:
                told = self._announcer.begin()
            parameters |= told
            row = await self._connection.fetchrow(self._commit_batch, *self._in_order(parameters), timeout=_COMMAND_S)
        except BaseException:
            self._announcer.failed(told)
            batch.undo()
            raise
        last_position, row_version, stale = row
        if stale is not None:
            self._announcer.failed(told)
            batch.undo()
            self._forget(msgspec.json.decode(stale))
            return None
        verdicts = batch.stored(last_position, row_version)
        self._cache.age()
        if told is not _QUIET:
            if row_version is None:
                self._announcer.failed(told)
            elif commits:
                self._announcer.made(told)
            else:
                self._uncommitted = told
        return verdicts

    def _forget(self, stale: dict[str, Any]) -> None:
        if "position" in stale:
            self._cache.position = stale["position"]
        for stream in stale.get("streams", ()):
            self._cache.heads.missing((stream,))
            self._cache.heads.young.pop(stream, None)
        for table, rows in stale.get("rows", {}).items():
            self._cache.forget(table, [tuple(row[:-1]) for row in rows])

    async def _fetch(self, wanted: Wanted, ids: FetchedIds) -> None:
        """Have in the cache, or in `ids`, what is wanted."""
        connection, cache = self._connection, self._cache
        if wanted.heads:
            heads = cache.heads.young
            heads.update(dict.fromkeys(wanted.heads, NO_EVENTS))
            for row in await self._rows("heads", streams=list(wanted.heads)):
                heads[row["stream"]] = (0, row["version"], 0)
        for table, keys in wanted.rows.items():
            cache.learn_absent(table, keys)
            columns = [list(column) for column in zip(*keys, strict=True)]
            for version, *image in await connection.fetch(rows_by_keys(table, self._schema), *columns):
                cache.learn(table, tuple(image), version)
        if wanted.record_ids:
            known = {row["id"] for row in await self._rows("known_records", ids=list(wanted.record_ids))}
            ids.records.update({one: one in known for one in wanted.record_ids})
        if wanted.unit_ids:
            known = {row["id"] for row in await self._rows("known_units", ids=list(wanted.unit_ids))}
            ids.row_units.update({one: one in known for one in wanted.unit_ids})
        for one in wanted.landed:
            ids.units[one] = await landed_unit(connection, self._schema, one)

    async def _rows(self, name: str, /, **params: Any) -> Rows:
        return await fetch_named(self._connection, self._schema, name, params)

    # -- transactions --------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Begin a transaction and take the store's lock."""
        script = "; ".join(sql for sql, _ in self._statements["begin_locked"].numbered)
        try:
            await self._connection.execute(script, timeout=_COMMAND_S)
        except BaseException:
            await self._rollback()
            raise

    def _committed(self) -> None:
        """Tell others, not sooner: who looks while the commit is on its way sees nothing, and is not told again."""
        told, self._uncommitted = self._uncommitted, None
        if told is not None:
            self._announcer.made(told)

    async def _rollback(self) -> None:
        told, self._uncommitted = self._uncommitted, None
        if told is not None:
            self._announcer.undone(told)
        self._cache.clear()
        connection = self._connection
        if connection is None or connection.is_closed():
            return
        try:
            await connection.execute("ROLLBACK", timeout=_COMMAND_S)
        except DRIVER_ERRORS:
            self._drop()

    def _drop(self) -> None:
        """Trust the connection no more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _typed(self, error: BaseException) -> WorkflowError:
        if is_lost_connection(error):
            self._drop()
        return storage_error(error, self._address.shown)

    # -- claims --------------------------------------------------------------------------------------------------

    async def claim(self, name: str, params: Mapping[str, Any]) -> Rows:
        """Run a named claim in a transaction of its own, under the lock; its rows by their first column.

        Raises:
            WorkflowError: It cannot be done. Where the connection was lost it may have been done.
        """
        if name not in CLAIMS:
            raise DefinitionError(f"there is no claim {name!r}")
        statements = self._statements[name]
        told = _QUIET if name in _QUIET_CLAIMS else self._announcer.begin()
        counted = False
        try:
            await self.open()
            await self._begin()
            try:
                rows = await self._rows(name, **params)
                if told is not _QUIET:
                    await self._rows("announce", **told)
                    self._uncommitted, counted = told, True
                await self._connection.execute("COMMIT", timeout=_COMMAND_S)
            except BaseException:
                await self._rollback()
                raise
        except BaseException as error:
            if not counted:
                self._announcer.failed(told)
            if isinstance(error, Exception):
                raise self._typed(error) from error
            raise
        self._committed()
        for table in statements.changes:
            self._cache.rows[table].clear()
        for row in rows:
            version = row.pop("row_version")
            self._cache.learn(statements.returns, tuple(row.values()), version)
        return sorted(rows, key=lambda row: next(iter(row.values())))

    # -- exclusive transactions ----------------------------------------------------------------------------------

    async def begin_exclusive(self) -> UserSql:
        """Begin a transaction for user's SQL, with the lock."""
        try:
            await self.open()
            await self._begin()
            user_sql = UserSql(self._connection, self._address)
            await user_sql.enter()
        except Exception as error:
            raise self._typed(error) from error
        return user_sql

    async def begin_shared(self) -> UserSql:
        """Begin a transaction for user's SQL, without the lock."""
        try:
            self._cache.clear()  # what it remembers grows old between transactions that are few
            # Its connection may have been cut while it was not used, which is found out now.
            return await self._connections.patiently(self._begin_beside)
        except Exception as error:
            raise self._typed(error) from error

    async def _begin_beside(self) -> UserSql:
        await self.open()
        user_sql = UserSql(self._connection, self._address)
        try:
            await self._connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", timeout=_COMMAND_S)
            await user_sql.guard()
        except BaseException as error:
            if is_lost_connection(error):
                self._drop()
            await self._rollback()
            raise
        return user_sql

    async def server_age(self) -> float:
        """Seconds for which the server has run.

        Raises:
            StorageError: It cannot be asked.
        """
        try:
            await self.open()
            (row,) = await self._rows("server_age")
        except Exception as error:
            raise self._typed(error) from error
        return float(row["seconds"])

    async def commit_shared(self, unit: Unit, user_sql: UserSql, locked: Callable[[], Awaitable[None]]) -> Verdict:
        """The same as `commit_exclusive`, in a transaction without the lock; `locked` is awaited when it has it."""

        async def lock() -> None:
            await self._rows("lock_store")
            await locked()

        return await self.commit_exclusive(unit, user_sql, lock)

    async def landed(self, unit_ids: Sequence[str]) -> list[str]:
        """Which of these units are in the store, as its open transaction sees it."""
        return [row["id"] for row in await self._rows("landed_units", ids=list(unit_ids))]

    async def commit_exclusive(
        self, unit: Unit, user_sql: UserSql, first: Callable[[], Awaitable[None]] | None = None
    ) -> Verdict:
        """Write `unit` and commit, or undo everything: where `unit` loses, and where it had landed before."""
        try:
            async with asyncio.timeout(_COMMAND_S):
                if first is not None:
                    await first()
                await user_sql.leave()
                (verdict,) = await self._write((unit,), careful=True)
        except Exception as error:  # noqa: BLE001 - told to the one who waits
            await self._rollback()
            return self._typed(error)
        if not isinstance(verdict, Written):
            await self._rollback()
            return verdict
        try:
            await self._connection.execute("COMMIT", timeout=_COMMAND_S)
        except Exception as error:  # noqa: BLE001 - told to the one who waits
            if is_lost_connection(error):
                self._drop()
            await self._rollback()
            return await self._landed(unit, error)
        self._committed()
        return verdict

    async def abort_exclusive(self) -> None:
        """Undo the open transaction."""
        await self._rollback()

    async def _landed(self, unit: Unit, error: Exception) -> Verdict:
        """What became of a unit whose commit raised."""
        try:
            await self.open()
            await self._begin()
            found = await outcome_of(self._connection, self._schema, unit.id)
            await self._rollback()
        except StorageLostError as lost:
            return StorageLostError(f"{lost}; whether a transaction landed is not known: outcome() tells later")
        except Exception:  # noqa: BLE001 - the first error says more
            found = None
        return found or self._typed(error)

    async def _prune(self) -> None:
        try:
            await self.open()
            await self._begin()
            try:
                await self._rows("prune_units", before=self._newest - _KEEP_UNIT_IDS_US, limit=_PRUNE_LIMIT)
                await self._connection.execute("COMMIT", timeout=_COMMAND_S)
            except BaseException:
                await self._rollback()
                raise
        except Exception as error:  # noqa: BLE001 - the next one will do it
            _log.warning("%s", self._typed(error))


class _Effort:
    """What a batch that failed may still cost.

    A unit that the server stopped, by statement_timeout or lock_timeout, is undone and says so. Where the first that
    are tried alone are all stopped, so would be those behind them, each after the same time: they are given up untried.
    But not those of a batch in doubt, which may have landed: each of them is looked up.
    """

    def __init__(self, rewinds: int, *, in_doubt: bool) -> None:
        self.rewinds = rewinds
        self.given_up: WorkflowError | None = None
        self.stopped = 0
        self._in_doubt = in_doubt

    def told(self, error: WorkflowError) -> WorkflowError:
        """What is said of units that met an error: of those in doubt, that they are."""
        if not self._in_doubt or not isinstance(error, StorageUnavailableError):
            return error
        doubt = type(error)(f"{error}; whether it landed is not known: outcome() tells later")
        doubt.__cause__ = error.__cause__
        return doubt

    def ends_with(self, error: Exception) -> bool:
        """A single unit failed so: whether to try no more."""
        if not isinstance(error, (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)):
            return False
        self.stopped += 1
        return not self._in_doubt and self.stopped >= _SINGLES


def _landed_now(verdict: Verdict) -> Verdict:
    """Of a batch in doubt: what is stored already landed just now, so the commit hooks have not seen it."""
    return verdict.written if isinstance(verdict, Repeated) else verdict


def _text(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
