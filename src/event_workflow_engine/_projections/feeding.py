"""Feeds one generation of a projection from the log: checkpoint and read model in one unit, so exactly once."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from event_workflow_engine._projections.definitions import DocumentProjection, Projection, SqlProjection, Transaction
from event_workflow_engine._projections.folding import (
    Change,
    Documents,
    Folding,
    changes_of,
    last_values,
    matching,
    mended,
    parked_rows,
)
from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.events import CURRENT_EVENT
from event_workflow_engine.feeds import Feed, Tail
from event_workflow_engine.ids import uuid7
from event_workflow_engine.serialization import EventCursor
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.storage.port import Record, SqlSession

__all__ = ["GenerationFeed", "checkpoint_name"]

_PAGE: Final = 1000
_LITTLE: Final = 100
_CACHED: Final = 10_000
_HOLD_S: Final = 2.0
"""How long a page of SQL may hold the store, as long as it has several events."""


def checkpoint_name(projection: str, generation: int) -> str:
    """The name of a generation's checkpoint."""
    return f"projection:{projection}@{generation}"


class _TooLongError(Exception):
    """A page of SQL holds the store for too long."""

    def __init__(self, handled: int) -> None:
        super().__init__(handled)
        self.handled = handled


class GenerationFeed:
    """One generation of an async projection, in the hands of this worker.

    What is kept in memory (documents, parked keys) is true as long as the checkpoint is this worker's: each unit moves
    it by compare-and-set, so one that lost it cannot write.
    """

    def __init__(self, store: EventStore, projection: Projection, generation: int, worker: str) -> None:
        self.projection = projection
        self.generation = generation
        self.feed = Feed(store.storage, checkpoint_name(projection.name, generation), worker, store.now)
        self._store = store
        self._tail = Tail(store.storage, self.feed.name)
        self._cursor = EventCursor(store.serializer)
        self._parked: set[str] = set()
        if isinstance(projection, DocumentProjection):
            # Bodies are loaded by the page; which keys are parked is known from `claim`.
            folding = Folding(projection, store.serializer)
            self._documents = Documents(folding, lambda _: None, self._parked.__contains__)

    @property
    def read_to(self) -> int:
        """Up to where it has looked at the log."""
        return self._tail.position

    async def check(self) -> None:
        """See that what was folded is still in the log.

        Raises:
            LogRewoundError: It is not.
        """
        await self._tail.check()

    async def claim(self) -> bool:
        """Take the generation, if nobody alive has it."""
        if not await self.feed.claim():
            return False
        self._tail = Tail(self._store.storage, self.feed.name, self.feed.position)
        rows = await self._store.storage.query(
            "parked_keys_page", projection=self.projection.name, generation=self.generation
        )
        self._parked.update(row["key"] for row in rows)
        if isinstance(self.projection, SqlProjection):
            await self._create_tables(self.projection)
        return True

    async def _create_tables(self, projection: SqlProjection) -> None:
        async def create(session: SqlSession) -> None:
            for table, columns in projection.tables.items():
                name = projection.table(table, self.generation)
                await session.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})", {})

        await self._store.storage.exclusive(Unit(uuid7(), self._store.now()), create)

    async def erase(self) -> None:
        """Remove all that there is of this generation: what a build that was cut off left, or what was replaced."""
        storage, projection = self._store.storage, self.projection
        await storage.perform("delete_documents", projection=projection.name, generation=self.generation)
        if isinstance(projection, SqlProjection):
            tables = [projection.table(table, self.generation) for table in projection.tables]

            async def drop(session: SqlSession) -> None:
                for table in tables:
                    await session.execute(f"DROP TABLE IF EXISTS {table}", {})

            await storage.exclusive(Unit(uuid7(), self._store.now()), drop)
        if await storage.get("checkpoints", (self.feed.name,)) is not None:
            gone = Row("checkpoints", "delete", (self.feed.name,))
            await storage.write(Unit(uuid7(), self._store.now(), rows=(gone,)))

    async def step(self) -> int:
        """Fold the next page; of how many records."""
        storage = self._store.storage
        names = sorted(self.projection.routes)
        records = await self._tail.look(_PAGE, names)
        if not records:
            self._tail.move_on()
            return 0
        singles = list(matching(records, names))
        if isinstance(self.projection, DocumentProjection):
            position = records[-1].position
            rows, folded = await self._fold_documents(singles, position)
            await storage.write(Unit(uuid7(), self._store.now(), rows=rows))
            self.feed.moved(position, folded)
        else:
            await self._run_sql(singles, records[-1].position)
        self._tail.move(records[-1])
        return len(records)

    async def catch_up(self) -> None:
        """Fold until so little is left that it can be folded while the store is held; more may be committed always."""
        while await self.step() >= _LITTLE:
            pass

    async def level(self) -> None:
        """Put on disk that events of other types were passed."""
        if self.read_to > self.feed.position:
            await self._tail.check()
            await self.feed.save(self.read_to)

    async def swap_in(self, version: int) -> None:
        """Become the live generation of an async projection."""
        await self.level()
        await self._store.storage.write(
            Unit(uuid7(), self._store.now(), rows=(self._live(version, None), self._held()))
        )

    async def swap_in_inline(self, version: int) -> int:
        """Become the live generation, folded inside the commits from here on.

        Nothing may be committed between the last event folded here and the swap. So the rest of the log is folded
        while the store is held; call it when that is little.

        Returns:
            From which position on it is inline.
        """
        rows: list[Row] = []

        async def work(_: SqlSession) -> None:
            storage, names = self._store.storage, sorted(self.projection.routes)
            position, folded, last = self.read_to, 0, None
            while records := await storage.read_log(after=position, limit=_PAGE, types=names):
                singles = list(matching(records, names))
                more, n = await self._fold_documents(singles, records[-1].position, keep=True)
                rows.extend(more[1:])
                position, folded, last = records[-1].position, folded + n, singles[-1]
            position = max(position, await storage.last_position())
            rows.append(self._checkpoint(position, last, folded))
            rows.append(self._live(version, position))
            self._tail = Tail(storage, self.feed.name, position)

        # The unit is read when the work has ended, which has filled its rows by then.
        unit = Unit(uuid7(), self._store.now(), rows=cast("tuple[Row, ...]", rows))
        await self._store.storage.exclusive(unit, work)
        self.feed.moved(self.read_to)
        return self.read_to

    def _live(self, version: int, inline_from: int | None) -> Row:
        values: dict[str, Any] = {"generation": self.generation, "version": version, "mode": self.projection.mode}
        values |= {"shadow": None, "inline_from": inline_from}
        return Row("projections", "update", (self.projection.name,), values, {"shadow": self.generation})

    def _held(self) -> Row:
        return self.feed.move(self.feed.position)

    def _changes(self, record: Record) -> list[Change]:
        return changes_of(self.projection, self._store.serializer, record, self._cursor)

    def _checkpoint(self, position: int, last: Record | None, count: int) -> Row:
        self._tail.require_unrewound()
        values = {} if last is None else last_values(last)
        return self.feed.move(position, events=self.feed.events + count, **values)

    # -- documents ---------------------------------------------------------------------------------------------------

    async def _fold_documents(
        self, singles: list[Record], position: int, *, keep: bool = False
    ) -> tuple[tuple[Row, ...], int]:
        """The rows to write, the checkpoint's first, and how many events were folded."""
        documents = self._documents
        if len(documents) > _CACHED and not keep:
            documents.clear()
        changes = [self._changes(record) for record in singles]
        await self._load({change.key for of_record in changes for change in of_record})
        for of_record in changes:
            documents.fold_changes(of_record)
        self._parked.update(change.key for change, error in documents.failed if error is not None)
        folded = documents.folded
        row = self._checkpoint(position, singles[-1], folded)
        return (row, *documents.rows(self.generation, self._store.now())), folded

    async def _load(self, keys: set[str]) -> None:
        missing = sorted(keys - self._documents.values.keys())
        if not missing:
            return
        rows = await self._store.storage.query(
            "documents_by_keys",
            projection=self.projection.name,
            generation=self.generation,
            keys=msgspec.json.encode(missing).decode(),
        )
        found = {row["key"]: row["body"] for row in rows}
        for key in missing:
            self._documents.put(key, found.get(key))

    # -- SQL ---------------------------------------------------------------------------------------------------------

    async def _run_sql(self, singles: list[Record], position: int) -> None:
        """A page in one transaction; where an event raises, those before it, then it is parked, then the rest."""
        fresh: dict[str, Exception] = {}
        """Keys that are parked with the next unit."""
        while True:
            try:
                failed = await self._run_page(singles, position, fresh)
            except _TooLongError as long:
                await self._run_sql(singles[: long.handled], singles[long.handled - 1].position)
                singles = singles[long.handled :]
                continue
            if failed is None:
                return
            at, change, error = failed
            if at:
                before = singles[:at]
                if await self._run_page(before, before[-1].position, fresh) is not None:
                    continue  # one that does not fail each time
                singles = singles[at:]
            # Once more with this one: another key's change of it may be well.
            fresh[change.key] = error
            self._parked.add(change.key)

    async def _run_page(
        self, singles: list[Record], position: int, fresh: dict[str, Exception]
    ) -> tuple[int, Change, Exception] | None:
        """Handle events and move the checkpoint; or the first that failed, and nothing was done."""
        projection = self.projection
        assert isinstance(projection, SqlProjection)
        failed: list[tuple[int, Change, Exception]] = []
        changes = [self._changes(record) for record in singles]

        async def run(session: SqlSession) -> None:
            transaction = Transaction(session, projection, self.generation)
            begun = monotonic()
            for at, of_record in enumerate(changes):
                if at and monotonic() - begun > _HOLD_S:
                    raise _TooLongError(at)
                for change in of_record:
                    if change.key in self._parked:
                        continue
                    try:
                        await self._handle(transaction, change)
                    except StorageUnavailableError:
                        raise
                    except Exception as error:
                        failed.append((at, change, error))
                        raise

        rows: list[Row] = []
        folded = 0
        written = dict(fresh)
        for of_record in changes:
            parked = [change for change in of_record if change.key in self._parked]
            folded += len(parked) < len(of_record)
            for change in parked:
                first = written.pop(change.key, None)
                rows += parked_rows(projection.name, self.generation, change, first, self._store.now())
        last = singles[-1] if singles else None
        unit = Unit(uuid7(), self._store.now(), rows=(self._checkpoint(position, last, folded), *rows))
        try:
            await self._store.storage.exclusive(unit, run)
        except Exception:
            if failed:
                return failed[0]
            raise
        self.feed.moved(position, folded)
        fresh.clear()
        fresh.update(written)
        return None

    async def _handle(self, transaction: Transaction, change: Change) -> None:
        if change.error is not None:
            raise change.error
        cursor = EventCursor(self._store.serializer)
        cursor.record = change.record
        token = CURRENT_EVENT.set(cursor)
        try:
            await change.route.fold(transaction, change.payload)
        finally:
            CURRENT_EVENT.reset(token)

    # -- parked events -----------------------------------------------------------------------------------------------

    async def retry(self, key: str) -> int:
        """Fold the parked events of a key again; how many. One that fails again leaves them parked."""
        name, generation = self.projection.name, self.generation
        rows = await self._store.storage.query(
            "parked_events_page", projection=name, generation=generation, key=key, limit=1_000_000
        )
        singles: list[Record] = []
        for row in rows:
            found = await self._store.storage.read_log(after=row["position"] - 1, limit=1)
            singles += [
                record for record in matching(found, self.projection.routes) if record.position == row["position"]
            ]
        gone = [Row("parked_events", "delete", (name, generation, key, row["position"])) for row in rows]
        gone.append(Row("parked_keys", "delete", (name, generation, key)))
        checkpoint = self.feed.move(self.feed.position, events=self.feed.events + len(singles))
        if isinstance(self.projection, DocumentProjection):
            await self._retry_documents(key, singles, [checkpoint, *gone])
            self._documents.parked.pop(key, None)
        else:
            await self._retry_sql(key, singles, [checkpoint, *gone])
        self.feed.moved(self.feed.position, len(singles))
        self._parked.discard(key)
        return len(singles)

    async def _retry_documents(self, key: str, singles: list[Record], rows: list[Row]) -> None:
        changes = [change for record in singles for change in mended(self._changes(record), key)]
        await self._load({change.key for change in changes})
        by_key: dict[str, list[Change]] = {}
        for change in changes:
            by_key.setdefault(change.key, []).append(change)
        try:
            for one, of_key in by_key.items():
                if one != key and one in self._parked:
                    self._documents.failed += [(change, None) for change in of_key]
                else:
                    self._documents.change(one, of_key)
            rows += self._documents.rows(self.generation, self._store.now())
            await self._store.storage.write(Unit(uuid7(), self._store.now(), rows=tuple(rows)))
        except BaseException:
            self._documents.clear()
            self._documents.touched, self._documents.failed = {}, []
            raise

    async def _retry_sql(self, key: str, singles: list[Record], rows: list[Row]) -> None:
        projection = self.projection
        assert isinstance(projection, SqlProjection)

        async def run(session: SqlSession) -> None:
            transaction = Transaction(session, projection, self.generation)
            for record in singles:
                for change in mended(self._changes(record), key):
                    await self._handle(transaction, change)

        unit = Unit(uuid7(), self._store.now(), rows=tuple(rows))
        await self._store.storage.exclusive(unit, run)
