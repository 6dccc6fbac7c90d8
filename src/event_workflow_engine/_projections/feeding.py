"""Feeds one generation of a projection from the log: checkpoint and read model in one unit, so exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine._projections.definitions import DocumentProjection, Projection, SqlProjection, Transaction
from event_workflow_engine._projections.folding import Change, Folding, matching, parked_rows
from event_workflow_engine.events import CURRENT_EVENT
from event_workflow_engine.feeds import Feed
from event_workflow_engine.ids import uuid7
from event_workflow_engine.serialization import EventCursor, metadata_of
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.storage.port import Record, SqlSession

__all__ = ["GenerationFeed", "checkpoint_name"]

_PAGE: Final = 1000
_CACHED: Final = 10_000


def checkpoint_name(projection: str, generation: int) -> str:
    """The name of a generation's checkpoint."""
    return f"projection:{projection}@{generation}"


class GenerationFeed:
    """One generation of an async projection, in the hands of this worker.

    What is kept in memory (documents, parked keys) is true as long as the checkpoint is this worker's: each unit moves
    it by compare-and-set, so one that lost it cannot write.
    """

    def __init__(self, store: EventStore, projection: Projection, generation: int, worker: str) -> None:
        self.projection = projection
        self.generation = generation
        self.feed = Feed(store.storage, checkpoint_name(projection.name, generation), worker, store.now)
        self.read_to = 0
        self._store = store
        self._folding = Folding(projection, store.serializer) if isinstance(projection, DocumentProjection) else None
        self._documents: dict[str, Any] = {}
        self._stored: set[str] = set()
        """Keys that have a row, among those in memory."""
        self._parked: set[str] = set()

    async def claim(self) -> bool:
        """Take the generation, if nobody alive has it."""
        if not await self.feed.claim():
            return False
        self.read_to = self.feed.position
        self._documents.clear()
        self._stored.clear()
        rows = await self._store.storage.query(
            "parked_keys_page", projection=self.projection.name, generation=self.generation
        )
        self._parked = {row["key"] for row in rows}
        if isinstance(self.projection, SqlProjection):
            await self._create_tables(self.projection)
        return True

    async def _create_tables(self, projection: SqlProjection) -> None:
        async def create(session: SqlSession) -> None:
            for table, columns in projection.tables.items():
                name = projection.table(table, self.generation)
                await session.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})", {})

        await self._store.storage.exclusive(Unit(uuid7(), self._store.now()), create)

    async def step(self) -> bool:
        """Fold the next page; whether there was one."""
        storage = self._store.storage
        names = sorted(self.projection.routes)
        end = await storage.last_position()
        records = await storage.read_log(after=self.read_to, limit=_PAGE, types=names)
        if not records:
            self.read_to = max(self.read_to, end)
            return False
        singles = list(matching(records, names))
        if self._folding is not None:
            await self._fold_documents(singles, records[-1].position)
        else:
            await self._run_sql(singles, records[-1].position)
        self.read_to = records[-1].position
        return True

    async def level(self) -> None:
        """Put on disk that events of other types were passed."""
        if self.read_to > self.feed.position:
            await self.feed.save(self.read_to)

    def _checkpoint(self, position: int, last: Record | None, count: int) -> Row:
        values: dict[str, Any] = {"events": self.feed.events + count}
        if last is not None:
            saga_id = metadata_of(last).saga_id
            if saga_id is None and last.stream.startswith("saga-"):
                saga_id = last.stream.removeprefix("saga-")
            values |= {"last_event_id": last.id, "saga_id": saga_id, "recorded_at": last.recorded_at}
        return self.feed.move(position, **values)

    # -- documents ---------------------------------------------------------------------------------------------------

    async def _fold_documents(self, singles: list[Record], position: int) -> None:
        folding = self._folding
        assert folding is not None
        changes = [change for record in singles for change in folding.changes(record)]
        await self._load({change.key for change in changes})
        documents, touched = self._documents, dict[str, None]()
        rows: list[Row] = []
        for change in changes:
            if change.key in self._parked:
                rows += parked_rows(self.projection.name, self.generation, change, None, 0)
                continue
            try:
                documents[change.key] = folding.apply(change, documents.get(change.key))
            except Exception as error:  # noqa: BLE001 - a fold may raise anything: its key is parked, others go on
                rows += self._park(change, error)
            else:
                touched[change.key] = None
        for key in touched:
            rows += self._document_rows(key)
        last = singles[-1] if singles else None
        row = self._checkpoint(position, last, len(singles))
        await self._store.storage.write(Unit(uuid7(), self._store.now(), rows=(row, *rows)))
        self.feed.moved(position, len(singles))
        if len(documents) > _CACHED:
            documents.clear()
            self._stored.clear()

    def _park(self, change: Change, error: Exception) -> list[Row]:
        self._parked.add(change.key)
        return parked_rows(self.projection.name, self.generation, change, error, self._store.now())

    async def _load(self, keys: set[str]) -> None:
        assert self._folding is not None
        missing = sorted(keys - self._documents.keys())
        if not missing:
            return
        rows = await self._store.storage.query(
            "documents_by_keys",
            projection=self.projection.name,
            generation=self.generation,
            keys=msgspec.json.encode(missing).decode(),
        )
        self._documents |= dict.fromkeys(missing)
        self._documents |= {row["key"]: self._folding.read(row["body"]) for row in rows}
        self._stored.update(row["key"] for row in rows)

    def _document_rows(self, key: str) -> list[Row]:
        assert self._folding is not None
        row = (self.projection.name, self.generation, key)
        document = self._documents[key]
        if document is not None:
            self._stored.add(key)
            return [Row("documents", "upsert", row, {"body": self._folding.write(document)})]
        if key not in self._stored:
            return []
        self._stored.discard(key)
        return [Row("documents", "delete", row)]

    # -- SQL ---------------------------------------------------------------------------------------------------------

    async def _run_sql(self, singles: list[Record], position: int) -> None:
        """A page in one transaction; where an event raises, those before it, then it is parked, then the rest."""
        while True:
            failed = await self._run_page(singles, position)
            if failed is None:
                return
            at, change, error = failed
            before = singles[:at]
            if before:
                again = await self._run_page(before, before[-1].position)
                if again is not None:
                    continue
            name, generation = self.projection.name, self.generation
            rows = parked_rows(name, generation, change, error, self._store.now())
            self._parked.add(change.key)
            row = self._checkpoint(change.record.position, change.record, 1)
            await self._store.storage.write(Unit(uuid7(), self._store.now(), rows=(row, *rows)))
            self.feed.moved(change.record.position, 1)
            singles = singles[at + 1 :]
            if not singles and self.feed.position >= position:
                return

    async def _run_page(self, singles: list[Record], position: int) -> tuple[int, Change, Exception] | None:
        projection = self.projection
        assert isinstance(projection, SqlProjection)
        parked: list[Change] = []
        failed: list[tuple[int, Change, Exception]] = []

        async def run(session: SqlSession) -> None:
            transaction = Transaction(session, projection, self.generation)
            for at, record in enumerate(singles):
                for change in self._sql_changes(record):
                    if change.key in self._parked:
                        parked.append(change)
                        continue
                    try:
                        await self._handle(transaction, change)
                    except Exception as error:
                        failed.append((at, change, error))
                        raise

        rows: list[Row] = []
        for record in singles:
            for change in self._sql_changes(record):
                if change.key in self._parked:
                    rows += parked_rows(projection.name, self.generation, change, None, 0)
        last = singles[-1] if singles else None
        unit = Unit(uuid7(), self._store.now(), rows=(self._checkpoint(position, last, len(singles)), *rows))
        try:
            await self._store.storage.exclusive(unit, run)
        except Exception:
            if failed:
                return failed[0]
            raise
        self.feed.moved(position, len(singles))
        return None

    def _sql_changes(self, record: Record) -> list[Change]:
        try:
            payload = self._store.serializer.payload(record)
        except Exception as error:  # noqa: BLE001 - a user's upcaster may raise anything
            return [Change(record, record.stream, None, None, error)]
        found = []
        for route in self.projection.routes[record.type]:
            try:
                key = record.stream if route.key is None else str(route.key(payload))
            except Exception as error:  # noqa: BLE001 - a user's key function may raise anything
                found.append(Change(record, record.stream, payload, route, error))
            else:
                found.append(Change(record, key, payload, route))
        return found

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
        if self._folding is not None:
            await self._retry_document(key, singles, gone)
        else:
            await self._retry_sql(key, singles, gone)
        self._parked.discard(key)
        return len(singles)

    async def _retry_document(self, key: str, singles: list[Record], gone: list[Row]) -> None:
        folding = self._folding
        assert folding is not None
        await self._load({key})
        document = self._documents.get(key)
        for record in singles:
            for change in folding.changes(record):
                if change.key == key:
                    document = folding.apply(change, document)
        previous, self._documents[key] = self._documents.get(key), document
        row = self.feed.move(self.feed.position)
        try:
            await self._store.storage.write(
                Unit(uuid7(), self._store.now(), rows=(row, *self._document_rows(key), *gone))
            )
        except BaseException:
            self._documents[key] = previous
            raise

    async def _retry_sql(self, key: str, singles: list[Record], gone: list[Row]) -> None:
        projection = self.projection
        assert isinstance(projection, SqlProjection)

        async def run(session: SqlSession) -> None:
            transaction = Transaction(session, projection, self.generation)
            for record in singles:
                for change in self._sql_changes(record):
                    if change.key == key:
                        await self._handle(transaction, change)

        unit = Unit(uuid7(), self._store.now(), rows=(self.feed.move(self.feed.position), *gone))
        await self._store.storage.exclusive(unit, run)
