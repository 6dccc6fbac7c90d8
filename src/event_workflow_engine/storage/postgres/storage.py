"""The PostgreSQL backend's face: the port over a writing connection, a pool that reads and one that listens."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from event_workflow_engine.errors import (
    DefinitionError,
    EngineStateError,
    LogRewoundError,
    SchemaVersionError,
    StorageError,
    StorageLostError,
    StorageUnavailableError,
    WorkflowError,
)
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.exclusive import run_with_unit, to_the_end
from event_workflow_engine.storage.lifecycle import GroupedStorage
from event_workflow_engine.storage.liveness import HeartbeatLiveness
from event_workflow_engine.storage.port import READS, Record, Written
from event_workflow_engine.storage.postgres.address import Address
from event_workflow_engine.storage.postgres.announcer import Announcer
from event_workflow_engine.storage.postgres.commit_order import CommitOrder
from event_workflow_engine.storage.postgres.connections import Connections, fetch_named, outcome_of
from event_workflow_engine.storage.postgres.crowding import Crowding
from event_workflow_engine.storage.postgres.eager import task_begun
from event_workflow_engine.storage.postgres.enlisting import another_database, driver_connection
from event_workflow_engine.storage.postgres.errors import is_lost, storage_error
from event_workflow_engine.storage.postgres.held import PostgresHolding
from event_workflow_engine.storage.postgres.migrate import check_schema, upgrade
from event_workflow_engine.storage.postgres.notices import Notices
from event_workflow_engine.storage.postgres.queries import MIGRATIONS
from event_workflow_engine.storage.postgres.statements import rows_by_keys
from event_workflow_engine.storage.postgres.transactions import ExclusiveTransaction, SharedTransaction, Spares
from event_workflow_engine.storage.postgres.user_sql import UserSql
from event_workflow_engine.storage.postgres.writer import Writer
from event_workflow_engine.storage.row_images import shape_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.liveness import Liveness
    from event_workflow_engine.storage.port import InlineFolder, Row, Rows, SqlSession, Unit

__all__ = ["PostgresStorage"]

_INT64_MAX = 2**63 - 1


class PostgresStorage(GroupedStorage):
    """A store in a schema of a PostgreSQL database, shared by many processes on many hosts.

    Everything that changes the store happens under one advisory lock, which its transaction holds until it has
    committed: so positions strictly increase in the order of commits. A process groups its units into batches, judges
    them by what it remembers, and the server checks that in the one call that writes them.

    Args:
        url: See `Address.of`.
        auto_upgrade: Create and migrate the schema on entering. Default: no, for many processes share it.

    Raises:
        DefinitionError: The URL is malformed.
    """

    stages = True

    def __init__(self, url: str, *, auto_upgrade: bool = False) -> None:
        self.address = Address.of(url)
        super().__init__(self.address.shown)
        self._order = CommitOrder()
        self._listeners = self._order
        self._auto_upgrade = auto_upgrade
        self._sender = uuid7()
        self._connections = Connections(self.address, self.rewinds, self._rewound)
        self._writer: Writer | None = None
        self._batch: asyncio.Task[None] | None = None  # which nobody else holds
        self._notices: Notices | None = None
        self._announcer: Announcer | None = None
        self._spares: Spares | None = None
        self._whereabouts: dict[str, Any] | None = None
        """Which database it is, once that was asked."""

    async def _open(self) -> None:
        await self._connections.patiently(self._check_or_upgrade)
        await self._connections.open()
        self._notices = Notices(self.address, self._sender, self._listeners.ring)
        self._announcer = Announcer(self._connections, self._sender, self._notices.own_commit)
        self._writer = self._new_writer()
        self._spares = Spares(self._new_writer, self.address.transactions, Crowding(self._connections))
        try:
            await self._writer.open()
        except BaseException:
            await self._connections.close()
            raise
        self._notices.start()
        self._start(self._execute, answers_later=True)

    async def _check_or_upgrade(self) -> None:
        connection = await self.address.connect()
        try:
            schema = self.address.schema
            if self._auto_upgrade:
                await upgrade(connection, self.url, schema)
                return
            pending = await check_schema(connection, self.url, schema)
        finally:
            await connection.close()
        if pending:
            version, newest = len(MIGRATIONS) - pending, len(MIGRATIONS)
            what = f"its schema {schema!r} has version {version}" if version else f"it has no schema {schema!r}"
            raise SchemaVersionError(
                f"{self.url}: {what}, this library needs version {newest}: run `ewe db upgrade`, or open it with "
                "auto_upgrade=True"
            )

    def _new_writer(self) -> Writer:
        assert self._announcer is not None, "made before"
        writer = Writer(self._connections, self._announcer)
        writer.folder = self._folder
        return writer

    async def _close(self) -> None:
        await self._order.close()
        notices, self._notices = self._notices, None
        writer, self._writer = self._writer, None
        spares, self._spares = self._spares, None
        announcer, self._announcer = self._announcer, None
        if spares is not None:
            await spares.close()
        if announcer is not None:
            await announcer.close()
        if notices is not None:
            await notices.stop()
        if writer is not None:
            await writer.close()
        await self._connections.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def _execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        run = self._run_batch(units, done)
        if self._opened.is_connected:  # connecting needs to be in a task
            self._batch = task_begun(run, name="ewe-batch")
        else:
            self._batch = asyncio.create_task(run, name="ewe-batch")

    async def _run_batch(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        """Write a batch and answer within the same turn of the loop: a callback of the task would come a turn later."""
        verdicts: Sequence[Verdict]
        try:
            verdicts = await self._opened.batch(units)
            await self._order.follow(verdicts)
        except Exception as error:  # noqa: BLE001 - a defect of ours; nobody shall wait for ever
            verdicts = [error] * len(units)
        except BaseException:
            done([EngineStateError("the event loop was closed while a batch was under way")] * len(units))
            raise
        done(verdicts)

    @property
    def _opened(self) -> Writer:
        if self._writer is None:
            raise self._not_open()
        return self._writer

    async def _claim(self, name: str, params: Mapping[str, Any]) -> Rows:
        return await self._opened.claim(name, params)

    def _transaction(self) -> ExclusiveTransaction:
        return ExclusiveTransaction(self._opened, self._order)

    async def transact(self, work: Callable[[SqlSession], Awaitable[Unit]]) -> Written:
        """Run `work` in a transaction and commit the unit that it returns with it: both or neither."""
        committer, spares, rewinds = self._committer, self._spares, len(self.rewinds)
        committer.check()
        assert spares is not None, "the store is open"

        async def worked(session: SqlSession) -> Unit:
            with committer.inside():
                return await work(session)

        def check() -> None:
            if len(self.rewinds) != rewinds:
                raise LogRewoundError("this process", self.url, *self.rewinds[-1])

        async with spares.taken() as writer:
            writer.folder = self._folder
            connects, begun = self._opened.connects, asyncio.get_running_loop().time()
            transaction = SharedTransaction(writer, self._order, committer, check)
            try:
                _, verdict = await run_with_unit(transaction, worked, nullcontext())
            except Exception as error:
                if writer.is_connected or isinstance(error, StorageLostError):
                    raise
                lost = StorageUnavailableError(
                    f"{self.url}: the connection of a transaction was lost, so it was rolled back"
                )
                lost.__cause__ = error
            else:
                if not is_lost(verdict):
                    return self._answer(verdict)
                lost = verdict
        if await self._was_lost_since(begun, connects):
            raise StorageLostError(str(lost)) from lost.__cause__
        raise lost

    async def _was_lost_since(self, begun: float, connects: int) -> bool:
        """Whether a transaction that lost its connection lost it with the server, and not alone.

        Alone, as where it stood still for longer than something on the way bears, it may be to blame. Asked in its
        turn, over the connection that writes: one that was cut meanwhile was made anew, or cannot be.
        """
        writer = self._opened
        try:
            age = await self._committer.alone(lambda: to_the_end(asyncio.ensure_future(writer.server_age())))
        except StorageError:
            return True
        # Behind a pooler, which kept that one.
        return writer.connects != connects or age < asyncio.get_running_loop().time() - begun

    async def stage(self, connection: Any, row: Row) -> None:
        """Insert a row of `staged` in the transaction that is open on a user's connection."""
        self._require_open()
        staged = {"id": row.key[0], **row.values, "channel": self.address.channel}
        try:
            driver = await driver_connection(connection)
            known = self._whereabouts is not None
            here = await self._staged(driver, staged)
            if not here and known:
                self._whereabouts = None  # asked anew: the store itself may have been moved since
                here = await self._staged(driver, staged)
        except WorkflowError:
            raise
        except Exception as error:
            raise storage_error(error, self.address.shown) from error
        if not here:
            raise another_database(self.address.shown)

    async def _staged(self, driver: Any, staged: Mapping[str, Any]) -> bool:
        """Insert the row where the connection is to the store's own database; whether it is."""
        if self._whereabouts is None:
            (self._whereabouts,) = await self._named("whereabouts")
        (row,) = await fetch_named(driver, self.address.schema, "stage", {**self._whereabouts, **staged})
        return bool(row["here"])

    def _holding(self) -> PostgresHolding:
        return PostgresHolding(self._connections, {"channel": self.address.channel, "sender": self._sender})

    async def identity(self) -> str:
        """Text that is the same for two objects where they are of one store: which server, database and schema."""
        (row,) = await self._named("identity")
        return f"{row['identity']} {self.address.schema}"

    def liveness(self, lease: float) -> Liveness:
        """Workers on many hosts, by their heartbeats."""
        return HeartbeatLiveness(lease)

    def set_inline_folder(self, folder: InlineFolder | None) -> None:
        """Install what folds inline projections, or remove it; from the next batch on."""
        super().set_inline_folder(folder)
        if self._writer is not None:
            self._writer.folder = folder

    # -- reading -------------------------------------------------------------------------------------------------

    async def _named(self, name: str, **params: Any) -> Rows:
        self._require_open()
        return await self._connections.query(name, params)

    async def outcome(self, unit_id: str) -> Written | None:
        """Whether the unit landed, as soon as that is settled."""
        await self._committer.settled(unit_id)
        await self._order.settled(unit_id)
        return await self._connections.read(lambda c: outcome_of(c, self.address.schema, unit_id))

    async def head(self, stream: str) -> int:
        """The stream's version; 0 when it has no events."""
        rows = await self._named("head", stream=stream)
        return int(rows[0]["version"]) if rows else 0

    async def last_position(self) -> int:
        """The position of the last event committed; 0 in an empty store."""
        ((position,),) = [row.values() for row in await self._named("last_position")]
        return int(position)

    async def read_stream(
        self, stream: str, *, after: int | None = None, limit: int = 1000, backwards: bool = False
    ) -> list[Record]:
        """Up to `limit` records with events behind version `after`; backwards: below it."""
        if backwards:
            below = _INT64_MAX if after is None else after
            rows = await self._named("stream_backwards", stream=stream, below=below, limit=limit)
        else:
            rows = await self._named("stream_forwards", stream=stream, after=after or 0, limit=limit)
        return _records(rows)

    async def read_streams(self, streams: Sequence[str]) -> list[Record]:
        """All records of several streams, each stream's in order."""
        return _records(await self._named("streams_forwards", streams=list(dict.fromkeys(streams))))

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
        filters = {"types": list(types), "categories": list(categories)} if types or categories else {}
        name = "log_filtered" if filters else "log"
        records = _records(await self._named(name, seen=seen, after=after, limit=limit, **filters))
        if records and self._opened.is_connected:
            # Else another server may have answered, and what was known of the first is yet to be looked for there.
            self._connections.note(records[-1].position, records[-1].id)
        return records

    async def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """One row of a declared table by its key."""
        self._require_open()
        shape = shape_of(table)
        columns = [[value] for value in shape.key(key)]
        sql = rows_by_keys(table, self.address.schema)
        rows = await self._connections.read(lambda connection: connection.fetch(sql, *columns))
        return shape.as_dict(tuple(rows[0])[1:]) if rows else None

    async def query(self, name: str, /, **params: Any) -> Rows:
        """Run a named read."""
        if name not in READS:
            raise DefinitionError(f"there is no read {name!r}")
        return await self._named(name, **params)

    async def fetch(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """A read-only query over the tables of SQL projections."""
        self._require_open()

        async def read(connection: Any) -> Rows:
            async with connection.transaction(isolation="read_committed", readonly=True):
                user_sql = UserSql(connection, self.address)
                await user_sql.enter()
                return (await user_sql.run(sql, params, writes=False))[0]

        return await self._connections.read(read)

    async def status(self) -> dict[str, Any]:
        """What this store is and holds, for people."""
        self._require_open()

        async def server(connection: Any) -> dict[str, Any]:
            version = connection.get_server_version()
            return {
                "server_version": f"{version.major}.{version.minor}",
                "synchronous": await connection.fetchval("SHOW synchronous_commit"),
            }

        last_position = await self.last_position()
        tables = {row["name"]: row["n"] for row in await self._named("estimates")}
        (size,) = await self._named("log_size")
        return {
            "url": self.url,
            "backend": "postgres",
            "schema": self.address.schema,
            "schema_version": len(MIGRATIONS),
            "last_position": last_position,
            "estimates": {"events": last_position, "records": tables["events"], "sagas": tables["sagas"]},
            **size,
            **await self._connections.read(server),
        }


def _records(rows: Rows) -> list[Record]:
    return [Record(*row.values()) for row in rows]
