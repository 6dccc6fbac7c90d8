"""The storage port: one atomic write, a handful of reads, and a bell that rings when the log grew.

Everything that changes is a `Unit`. A backend takes many units at once and gives each its own verdict; the group
committer in front of it gathers them. Services know this module and nothing behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from event_workflow_engine.storage.liveness import Liveness

__all__ = [
    "ANY_VERSION",
    "EVENTS",
    "EVENTS_BY_STREAM",
    "EVENT_COLUMNS",
    "STREAM_EXISTS",
    "UNITS",
    "Append",
    "Appended",
    "CommitHook",
    "HeldStore",
    "InlineFolder",
    "NewRecord",
    "Record",
    "Row",
    "RowOp",
    "RowPages",
    "RowReader",
    "Rows",
    "SqlSession",
    "Storage",
    "Told",
    "Unit",
    "WorkerRef",
    "Written",
]

T = TypeVar("T")

ANY_VERSION: Final = -1
STREAM_EXISTS: Final = -2

Rows = list[dict[str, Any]]
RowOp = Literal["insert", "update", "upsert", "delete", "check"]


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A row to be added to the log: one event, or the facts of one unit packed together.

    Attributes:
        id: The event's id, unique over the store. Fact *i* > 0 of a packed record has the id ``f"{id}:{i}"``.
        type: The event type's name; of a packed record the distinct names of its facts, sorted, joined by ``+``.
        data: The payload as encoded by the codec; of a packed record the facts in a JSON array.
        schema: The payload's schema version.
        metadata: JSON object, or ``b""``.
        count: How many events it holds; versions and positions advance by it.
    """

    id: str
    type: str
    data: bytes
    schema: int = 1
    metadata: bytes = b""
    count: int = 1


class Record(msgspec.Struct, frozen=True, gc=False):
    """A stored row of the log. `version` and `position` are those of its last event (see `count`)."""

    position: int
    stream: str
    version: int
    count: int
    id: str
    type: str
    schema: int
    data: bytes
    metadata: bytes
    recorded_at: int


class Append(msgspec.Struct, frozen=True, gc=False):
    """Records for one stream. With no records it is a check of the stream's version alone.

    Attributes:
        expected: The version the stream must have (0: no events), or `ANY_VERSION`, or `STREAM_EXISTS`.
    """

    stream: str
    records: tuple[NewRecord, ...]
    expected: int = ANY_VERSION


class Row(msgspec.Struct, frozen=True, gc=False):
    """One compare-and-set of a row of a declared table.

    ``insert`` fails where the key exists; ``update``, ``delete`` and ``check`` fail where no row has the key *and*
    the column values of `where`; ``upsert`` sets `values` whether the row exists or not (columns not named keep their
    value) and fails only where the row exists and `where` does not hold. `values` never holds key columns.
    A value in `where` may be ``None`` (IS NULL).
    """

    table: str
    op: RowOp
    key: tuple[Any, ...]
    values: Mapping[str, Any] = {}
    where: Mapping[str, Any] = {}


class WorkerRef(msgspec.Struct, frozen=True, gc=False):
    """Which life of which worker writes: the batch checks that it was not declared dead."""

    id: str
    incarnation: int


class Unit(msgspec.Struct, frozen=True, gc=False):
    """What is written together or not at all.

    Attributes:
        id: Unique. Writing a stored id again returns the first time's `Written` when the appends are the same ones
            (stream, ids, types, data), else fails with `EventIdConflictError`. Where it appends, it is the id of its
            first record; a unit without records has its id kept apart from those, for a week behind the newest unit,
            and is not compared.
        at: When, in microseconds since 1970; becomes `Record.recorded_at`.
        strict: An inline projection that raises fails this unit, instead of parking its key.
    """

    id: str
    at: int
    appends: tuple[Append, ...] = ()
    rows: tuple[Row, ...] = ()
    worker: WorkerRef | None = None
    strict: bool = False


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where the records of one `Append` landed: `version` and `position` of the last, `count` events in all."""

    stream: str
    version: int
    position: int
    count: int


class Written(msgspec.Struct, frozen=True, gc=False):
    """A unit's success: one `Appended` for each append that had records, in order."""

    unit_id: str
    appended: tuple[Appended, ...]


CommitHook = Callable[[Sequence[tuple[Unit, Written]]], None]
"""What runs on the loop after each batch of this process, with what it committed, in order."""


Told = Callable[[Written | Exception], None]
"""Who is told on the loop what became of a posted unit: that it was written, or why nothing of it was."""


class RowReader(Protocol):
    """Reads rows inside a batch, as its earlier units left them."""

    def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The row, key columns included, or ``None``."""
        ...


class InlineFolder(Protocol):
    """Folds the records of a unit into rows, inside the commit, in batch order. Runs on the writer's thread.

    It depends on its arguments alone: where other processes write to the store it may be called again for a unit, with
    other rows to read and other positions, and only what it returned last is written.
    """

    def __call__(self, unit: Unit, records: Sequence[Record], rows: RowReader, /) -> Sequence[Row]:
        """The rows to write with `unit`. Raising fails the unit; it raises only where ``unit.strict``."""
        ...


class SqlSession(Protocol):
    """A session inside an open write transaction: of SQL projections, of transactional steps. Parameters are ``:name``.

    Attributes:
        connection: The driver's own, where it may be used beside; ``None`` elsewhere.
    """

    connection: Any

    async def execute(self, sql: str, params: Mapping[str, Any], /) -> int:
        """Run a statement; the number of rows it changed."""
        ...

    async def fetch(self, sql: str, params: Mapping[str, Any], /) -> Rows:
        """Run a query; all its rows."""
        ...

    async def check(self) -> None:
        """Have the database check what it would check at the commit.

        Raises:
            StorageError: A constraint of the user's tables fails.
            DefinitionError: The transaction was ended over the driver's connection, or by user's SQL.
        """
        ...


EVENTS: Final = "events"
"""Part of a `HeldStore`: the log, by position."""

EVENTS_BY_STREAM: Final = "events_by_stream"
"""The same rows by stream and version, found the way in which a stream is read. For reading only."""

UNITS: Final = "units"
"""The ids of units without records, and their times: by time and id."""

EVENT_COLUMNS: Final = (
    "position", "stream", "version", "count", "part", "id", "type", "schema", "data", "metadata", "recorded_at",
)  # fmt: skip
"""Of a row of the log: those of a `Record`, and `part`, which is 0 for the first record of its unit, else 1 + the place
of the append that it belongs to.
"""


class RowPages(Protocol):
    """Rows in their order, some at a time."""

    async def next(self, limit: int, /) -> list[tuple[Any, ...]]:
        """Some more, `limit` of them at most and fewer where they are large; none at the end."""
        ...


class HeldStore(Protocol):
    """All that a store keeps, row by row, while nobody else changes it: for copying a store as a whole.

    A part of it is `EVENTS`, `EVENTS_BY_STREAM`, `UNITS`, or a declared table, whose rows are images by key.
    """

    def rows(self, part: str, /) -> RowPages:
        """The rows of a part, by Unicode code point where text is their order."""
        ...

    async def put(self, part: str, rows: Sequence[tuple[Any, ...]], /) -> None:
        """Add rows that are not there yet, in the order of `rows`. Events come by position, behind those there are."""
        ...

    async def end(self) -> int:
        """The position behind which the next event will be."""
        ...

    async def move_end(self, position: int, /) -> None:
        """Have the next event behind `position`, which is that of the last one at least. The last thing to be done."""
        ...

    async def tables(self) -> list[str]:
        """The names of all tables that stand beside the store's own, those of SQL projections among them."""
        ...

    async def awaited(self) -> bool:
        """Whether another process waits until the store is free, to write to it or, in a file, to open it."""
        ...


class Storage(Protocol):
    """A store. Opened by `open_storage`; entered and left as an async context manager.

    Order: units submitted by one caller land in the order of submission. Positions strictly increase in the order of
    commits and are never reused; a reader that saw position *p* never later finds a new smaller one.

    Verdicts: a unit wins or loses alone, whatever else is in its batch. It is checked in this order, and the first
    failure is its error: its form (`DefinitionError`), its ids (`EventIdConflictError`, or the first time's `Written`
    where it is stored), its worker (`OwnershipLostError`), its size (`EncodeError`), the versions of its appends
    (`VersionConflictError`), its rows (`RowConflictError`), the inline folds (what they raise).
    `StorageUnavailableError` may leave it open whether it landed: `outcome` tells. Cancelling a waiting caller
    withdraws its unit only while it is queued.

    Telling: of a batch's units first all futures get their verdicts, then the commit hooks run, then the bells, then
    those are told who posted a unit, and only then do those who wait for the futures go on. The commit hooks are not
    told again of a unit that had landed before.
    """

    url: str
    stages: bool
    """Whether `stage` can be asked for."""

    @property
    def rewinds(self) -> Sequence[tuple[int, int]]:
        """One entry for each time that something which this process had read or written turned out to be lost.

        That may be so after a failover. An entry tells up to where the process knew the log, and where that ended. All
        that is on its way or waits by then is refused with a `LogRewoundError`. Who reads, then decides, then writes
        counts the entries before reading and again on writing: where there are more, what was decided is void.
        """
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...

    def submit(self, unit: Unit) -> asyncio.Future[Written]:
        """Queue a unit without waiting for room: for callers that bound themselves. Never blocks, never raises."""
        ...

    def post(self, unit: Unit, told: Told) -> None:
        """The same for a unit that is never withdrawn; `told` is called once, after this has returned."""
        ...

    async def write(self, unit: Unit) -> Written:
        """Queue a unit, waiting while the queue is full, and wait for its verdict."""
        ...

    async def outcome(self, unit_id: str) -> Written | None:
        """Whether the unit landed, waiting while it is on its way: final for units withdrawn or sent."""
        ...

    async def exclusive(self, unit: Unit, work: Callable[[SqlSession], Awaitable[None]]) -> Written:
        """Run `work` in a write transaction of its own and commit `unit` with it: both or neither.

        All other writers wait meanwhile, so `work` must be short: past ten seconds it fails with a `StorageError`.
        Writes to this store from inside `work` are an `EngineStateError`. SQL may change the tables of SQL projections
        only; its mistakes are a `DefinitionError`. A unit that is stored already has its `work` undone.
        """
        ...

    async def transact(self, work: Callable[[SqlSession], Awaitable[Unit]]) -> Written:
        """Run `work` in a transaction and commit the unit that it returns with what it did: both or neither.

        Where the store's database can do both, other writers go on meanwhile, and the unit commits among theirs;
        elsewhere they wait, and `work` is bounded as in `exclusive`. Writes to this store from inside `work` are an
        `EngineStateError`. SQL may change all tables but the engine's.
        """
        ...

    def liveness(self, lease: float) -> Liveness:
        """How a worker on this store shows that it lives, and tells of others.

        Args:
            lease: Seconds that an unchanged heartbeat leaves the worker alive, where there are heartbeats.
        """
        ...

    async def stage(self, connection: Any, row: Row) -> None:
        """Insert a row of `staged` in the transaction that is open on a user's connection to this store's database.

        Raises:
            DefinitionError: It is no connection on which a transaction is open, or the store cannot share one.
            StorageError: The connection cannot do it, for a typed reason. Its transaction has failed.
        """
        ...

    async def hold(self, work: Callable[[HeldStore], Awaitable[T]]) -> T:
        """Run `work` while no other writer gets in, however long it takes; what it put is there when it has returned.

        Nothing of it is, where it raises or its process dies. No inline projection folds it and no commit hook is
        told; the bells ring. Writes to this store from inside `work` are an `EngineStateError`.
        """
        ...

    async def identity(self) -> str:
        """Text that is the same for two objects where they are of one store, whatever their URLs."""
        ...

    async def perform(self, name: str, /, **params: Any) -> Rows:
        """Run a named claim (see `CLAIMS`): a hand-written statement that changes rows and returns them, alone."""
        ...

    async def head(self, stream: str) -> int:
        """The stream's version; 0 when it has no events."""
        ...

    async def last_position(self) -> int:
        """The position of the last event committed; 0 in an empty store."""
        ...

    async def read_stream(
        self, stream: str, *, after: int | None = None, limit: int = 1000, backwards: bool = False
    ) -> list[Record]:
        """Up to `limit` records with events behind version `after`; backwards: below it (``None``: from the end)."""
        ...

    async def read_streams(self, streams: Sequence[str]) -> list[Record]:
        """All records of several streams, each stream's in order: for recovery."""
        ...

    async def read_log(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        types: Sequence[str] = (),
        categories: Sequence[str] = (),
        seen: bool = False,
    ) -> list[Record]:
        """Records behind position `after` in order. `types` matches packed records that hold one of the types.

        With `seen` the record whose last event is at `after` comes first, where there is one, whatever its type and
        beyond the limit: so that a reader sees in the same look that what it read before is still there.
        """
        ...

    async def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """One row of a declared table by its key."""
        ...

    async def query(self, name: str, /, **params: Any) -> Rows:
        """Run a named read (see `READS`)."""
        ...

    async def fetch(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """A read-only query over the tables of SQL projections, on a reader."""
        ...

    async def status(self) -> dict[str, Any]:
        """What this store is and holds, for people.

        Returns:
            url, backend, schema_version, last_position, and as `estimates` numbers that are told without counting:
            events and sagas, beside others; of a file also path, file_size and wal_size in bytes, journal_mode,
            synchronous and sqlite_version; of a server log_size, its schema and server_version. It costs the same
            however long the log is.
        """
        ...

    def add_commit_hook(self, hook: CommitHook) -> Callable[[], None]:
        """Call `hook` on the loop after each batch of this process, in commit order; returns its remover."""
        ...

    def add_bell(self, ring: Callable[[], None], *, own: bool = True) -> Callable[[], None]:
        """Call `ring` on the loop whenever anything was committed, by this process or another, and once the store was
        closed; returns its remover.

        Args:
            ring: What to call.
            own: Also for batches of which this process's commit hooks are told.
        """
        ...

    def set_inline_folder(self, folder: InlineFolder | None) -> None:
        """Install what folds inline projections, or remove it."""
        ...


READS: Final = (
    "log_end",  # -> position and id of the log's last record, or no row
    "sagas_page",  # :state (or NULL) :saga (or NULL) :after (id, '' first) :limit -> rows of sagas, by id
    "sagas_by_ids",  # :ids (JSON array) -> rows of sagas
    "next_wake",  # :sagas (JSON array of [name, version]) -> one row wake_at: smallest over unended sagas of these
    #               definitions that are unowned, or given to a worker that has not taken them, or no row
    "woken_sagas",  # :worker -> rows of sagas that :worker owns and to whose inbox somebody wrote (wake_at is set)
    "owned_sagas",  # :worker -> one column id: the unended sagas that :worker owns, by id
    "sagas_count",  # -> rows state, n (counted over all sagas)
    "sagas_count_to",  # :states (JSON array) :limit -> rows state, n for each of them, in their order: how many sagas,
    #                    counted no further than :limit
    "sagas_unclaimed",  # :before :limit -> rows saga, saga_version, n, since: sagas that nobody has though they were
    #                     due before then, or wait in a queue since, by definition; no more than :limit of either are
    #                     looked at, the longest due first
    "live_workers",  # -> rows of workers where alive = 1
    "worker_loads",  # -> of each living worker id, max_running, runs, held (how many unended sagas it owns, with those
    #                  that are given to it), given (how many of them it has not taken), by id
    "streams_page",  # :prefix ('' all) :after (stream, '' first) :limit -> stream, version, events, last_at
    "due_schedules",  # :now :limit -> rows of schedules not paused, next_run <= :now, by next_run
    "next_schedule",  # -> one row next_run: smallest over schedules not paused, or no row
    "schedules_all",  # -> rows of schedules by id
    "open_slots",  # -> rows of slots where done = 0
    "checkpoints_all",  # -> rows of checkpoints by name
    "projections_all",  # -> rows of projections by name
    "documents_find",  # :projection :generation :where (JSON object of column->value, equality on top-level fields)
    #                     :order_by (field as JSON text, or NULL) :descending (0/1) :limit :offset -> rows of
    #                     documents
    "documents_by_keys",  # :projection :generation :keys (JSON array) -> rows of documents by key
    "parked_keys_page",  # :projection :generation -> rows of parked_keys
    "parked_events_page",  # :projection :generation :key (or NULL) :limit -> rows of parked_events by position
    "parked_count",  # :projection :generation -> one row n
    "queues_all",  # -> rows of queues by name
    "queue_counts",  # -> rows queue, state, n: how many sagas of each queue are in each state of `queued`, by both; of
    #                   those that stand at NEEDS_INTERVENTION, state is -1
    "queue_work",  # -> rows of queues by name, with early (smallest not_before of state 0, or NULL) and the flags
    #                 waiting, returned (it has rows of state 1, 3) and woken (somebody wrote to inboxes of its sagas)
    "queue_early",  # :queue :now :limit -> rows of queued of state 0, not_before <= :now, by not_before
    "queue_heads",  # :queue :sagas (JSON array of [name, version]) :each :most -> of each partition the first rows of
    #                  queued of state 1 whose sagas are of these definitions, with the saga's fence, by partition;
    #                  in it the highest priority first, then the oldest. From each up to :each, and no more than its
    #                  share of :most, but 1 at least; how many that is comes with each row as `each`
    "queue_returned",  # :queue :sagas :limit -> the same of state 3, by enqueued_at
    "queue_running",  # :queue -> rows partition, running, standing: rows from state 2 on, by partition, and how many of
    #                    them stand at NEEDS_INTERVENTION
    "queue_place",  # :queue :partition :priority :enqueued_at :saga -> one row n: how many of state 1 go before it
    "staged_refused",  # :after (id, '' first) :limit -> rows of staged that were refused, by id
    "backlog_counts",  # :limit -> one row dead_letters, parked_keys, parked_events, staged, refused (both of `staged`),
    #                    each counted no further than :limit
    "staged_page",  # :after (id, '' first) :limit -> rows of staged that were not refused, by id
    "dead_letters_page",  # :subscription (or NULL) :limit -> rows of dead_letters by parked_at
)
"""The named reads that every backend has, with their parameters and rows."""

CLAIMS: Final = (
    "claim_sagas",  # :worker :now :limit :sagas (JSON array of [name, version]) -> claims unended rows of a registered
    #                  definition: first those that are given to :worker, then those with wake_at <= :now that are
    #                  unowned, then those that are given to others: owner = :worker, fence + 1, wake_at NULL; the rows
    "claim_saga",  # :worker :id -> the same for one unended, unowned saga, whatever its wake_at; 0 or 1 rows
    "bury_worker",  # :id :incarnation :beat :now -> where its heart has beaten so often, or :beat is NULL, or it was
    #                 dead before: alive = 0 (irrevocable), its sagas and those that are given to it:
    #                 owner '', wake_at :now; those rows. Claims give sagas to living workers only: what a dead one got
    #                 would be found by nobody
    "prune_workers",  # :before -> deletes rows of workers that were buried before then and own nothing
    "release_sagas",  # :worker :fences (JSON object id -> fence) :now -> owner '', wake_at :now where owner is :worker
    #                   and the fence is still that one: late, it does not take what was claimed again since; the rows
    "delete_documents",  # :projection :generation -> deletes documents, parked keys and events of a generation
    "swap_projection",  # :name :shadow :version :position -> under the lock: makes shadow the live generation where the
    #                      shadow's checkpoint is at :position and that is the log's last position, and an inline one
    #                      inline from there on; 0 or 1 rows
)
"""The named claims that every backend has."""

RINGING_CLAIMS: Final = frozenset({"bury_worker"})
"""Claims that ring the bells whatever rows they return: what a dead worker fed is free, though it had no saga."""
