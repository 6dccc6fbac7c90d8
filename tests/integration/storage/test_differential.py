"""Random units on the memory backend and another: the same verdicts, and the same store to read afterwards.

The memory backend is written to be read and takes no short cuts; the others judge from caches and write in batches.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from event_workflow_engine.errors import RowConflictError, VersionConflictError, WorkflowError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.judging import caches
from event_workflow_engine.storage.memory import MemoryStorage
from event_workflow_engine.storage.port import (
    ANY_VERSION,
    STREAM_EXISTS,
    Append,
    NewRecord,
    Row,
    Unit,
    WorkerRef,
    Written,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from event_workflow_engine.storage.port import Record, RowReader, SqlSession, Storage

STREAMS = ["a", "a-1", "b", "inbox-a", "größe"]
TYPES = ["x", "y", "x+y"]
WORKERS = ["w1", "w2"]
SAGAS = ["s1", "s2", "s3"]

# Of the form of ids that grow with time, and near that of the units: in order, unless they come later than a larger one.
ids = st.sampled_from([f"00000000-{n:04x}" for n in range(40)])
records = st.builds(
    NewRecord, ids, st.sampled_from(TYPES), st.sampled_from([b"1", b"2"]), count=st.sampled_from([1, 1, 1, 2, 40])
)
appends = st.builds(
    Append,
    st.sampled_from(STREAMS),
    st.lists(records, max_size=3).map(tuple),
    st.one_of(st.sampled_from([ANY_VERSION, ANY_VERSION, STREAM_EXISTS]), st.integers(0, 6)),
)
small = st.one_of(st.none(), st.integers(0, 3))
saga_values = st.fixed_dictionaries(
    {},
    optional={
        "owner": st.sampled_from(["", *WORKERS]),
        "wake_at": small,
        "fence": st.integers(0, 2),
        "state": st.sampled_from(["RUNNING", "COMPLETED"]),
        "ended_at": small,
        "saga": st.just("trip"),
        "saga_version": st.just(1),
    },
)
ops = st.sampled_from(["insert", "update", "upsert", "delete", "check"])
rows = st.one_of(
    st.builds(Row, st.just("sagas"), ops, st.tuples(st.sampled_from(SAGAS)), saga_values, saga_values),
    st.builds(
        Row,
        st.just("workers"),
        st.sampled_from(["upsert", "update"]),
        st.tuples(st.sampled_from(WORKERS)),
        st.fixed_dictionaries({"incarnation": st.integers(1, 2), "alive": st.integers(0, 1)}),
    ),
    st.builds(
        Row,
        st.just("documents"),
        ops,
        st.tuples(st.just("p"), st.integers(1, 2), st.sampled_from("kl")),
        st.fixed_dictionaries({}, optional={"body": st.sampled_from(['{"n":1}', '{"n":2}', '{"n":null}'])}),
    ),
    st.builds(
        Row,
        st.just("parked_events"),
        ops,
        st.tuples(st.just("p"), st.just(1), st.sampled_from("kl"), st.integers(1, 2)),
    ),
)
workers = st.one_of(st.none(), st.none(), st.builds(WorkerRef, st.sampled_from(WORKERS), st.integers(1, 2)))


def made(new: list[Append], changed: list[Row], worker: WorkerRef | None, spare: str, at: int) -> Unit:
    first = next((one.id for each in new for one in each.records), spare)
    return Unit(first, at, tuple(new), tuple(changed), worker)


units = st.builds(made, st.lists(appends, max_size=3), st.lists(rows, max_size=3), workers, ids, st.integers(0, 5))


def fold(_unit: Unit, new: Sequence[Record], view: RowReader) -> list[Row]:
    """Counts a category's events; refuses two of a kind in one unit."""
    out = []
    for one in new:
        if one.data == b"2" and one.count > 2:
            raise LookupError(one.id)
        row = view.get("documents", ("count", 1, one.stream)) if not out else None
        out.append(Row("documents", "upsert", ("count", 1, one.stream), {"body": f"{row}{one.position}"[-30:]}))
    return out


def plain(outcome: Any) -> Any:
    """A verdict, comparable."""
    if isinstance(outcome, VersionConflictError):
        return ("version", outcome.stream, outcome.expected, outcome.actual)
    if isinstance(outcome, RowConflictError):
        return ("row", outcome.table, outcome.key)
    if isinstance(outcome, WorkflowError | LookupError):
        return type(outcome).__name__
    return outcome


class Differential(RuleBasedStateMachine):
    """Both stores, and all that is done to them."""

    keeps_positions: ClassVar[bool] = True
    """Whether a batch that is stored at the second attempt gets the positions that it had in the first."""

    def url(self) -> str:
        """Of a new store."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ewe-differential-"))
        self.runner = asyncio.Runner()
        # So little is remembered that much is forgotten between batches.
        self.limits = {
            name: getattr(caches, name) for name in ("HEADS_LIMIT", "SAGAS_LIMIT", "ROWS_LIMIT", "_AGE_EVERY")
        }
        for name in self.limits:
            setattr(caches, name, 1)
        self.memory = MemoryStorage()
        # Two on one store, as in two processes: each remembers what the other may have changed.
        url = self.url()
        self.judged, self.other = (open_storage(url, auto_upgrade=True) for _ in range(2))
        self.told: dict[str, list[tuple[Unit, Written]]] = {"memory": [], "judged": []}
        for store in self.all:
            self.runner.run(store.__aenter__())
            store.add_commit_hook(self.told["memory" if store is self.memory else "judged"].extend)

    @property
    def all(self) -> list[Storage]:
        return [self.memory, self.judged, self.other]

    def teardown(self) -> None:
        for store in self.all:
            self.runner.run(store.__aexit__(None, None, None))
        for name, limit in self.limits.items():
            setattr(caches, name, limit)
        self.runner.close()
        shutil.rmtree(self.folder)

    @rule()
    def switch(self) -> None:
        self.judged, self.other = self.other, self.judged

    def both(self, do: Callable[[Storage], Awaitable[Any]]) -> Any:
        async def attempt(store: Storage) -> Any:
            try:
                return await do(store)
            except WorkflowError as error:
                return plain(error)

        memory, judged = (self.runner.run(attempt(store)) for store in (self.memory, self.judged))
        assert judged == memory
        return memory

    @initialize(folded=st.booleans())
    def begin(self, folded: bool) -> None:
        for store in self.all:
            store.set_inline_folder(fold if folded else None)

    @rule(batch=st.lists(units, min_size=1, max_size=12))
    def write(self, batch: list[Unit]) -> None:
        if not self.keeps_positions:
            taken = {unit.id for unit, written in self.told["memory"] if not written.appended}
            batch = [unit for unit in batch if unit.id not in taken or any(each.records for each in unit.appends)]

        async def do(store: Storage) -> list[Any]:
            futures = [store.submit(unit) for unit in batch]
            return [plain(verdict) for verdict in await asyncio.gather(*futures, return_exceptions=True)]

        self.both(do)

    @rule(unit=units, keeps=st.booleans())
    def exclusive(self, unit: Unit, keeps: bool) -> None:
        async def work(session: SqlSession) -> None:
            await session.execute("CREATE TABLE IF NOT EXISTS own (a TEXT)", {})
            await session.execute("INSERT INTO own VALUES (:a)", {"a": unit.id})
            if not keeps:
                raise WorkflowError("no")

        async def do(store: Storage) -> Any:
            try:
                return plain(await store.exclusive(unit, work))
            except LookupError as error:
                return plain(error)

        self.both(do)

    @rule(now=st.integers(0, 3), limit=st.integers(0, 3), worker=st.sampled_from(WORKERS))
    def claim_sagas(self, now: int, limit: int, worker: str) -> None:
        self.both(lambda s: s.perform("claim_sagas", worker=worker, now=now, limit=limit, sagas='[["trip",1]]'))

    @rule(saga=st.sampled_from(SAGAS), worker=st.sampled_from(WORKERS))
    def claim_saga(self, saga: str, worker: str) -> None:
        self.both(lambda s: s.perform("claim_saga", worker=worker, id=saga))

    @rule(worker=st.sampled_from(WORKERS), incarnation=st.integers(1, 2), now=st.integers(0, 3))
    def bury(self, worker: str, incarnation: int, now: int) -> None:
        self.both(lambda s: s.perform("bury_worker", beat=None, id=worker, incarnation=incarnation, now=now))

    @rule(worker=st.sampled_from(WORKERS), fence=st.integers(0, 3), now=st.integers(0, 3))
    def release(self, worker: str, fence: int, now: int) -> None:
        fences = f'{{"s1":{fence},"s2":{fence}}}'
        self.both(lambda s: s.perform("release_sagas", worker=worker, fences=fences, now=now))

    @rule(generation=st.integers(1, 2))
    def delete_documents(self, generation: int) -> None:
        self.both(lambda s: s.perform("delete_documents", projection="p", generation=generation))

    @rule()
    def leave_and_enter(self) -> None:
        for store in (self.memory, self.judged):
            self.runner.run(store.__aexit__(None, None, None))
            self.runner.run(store.__aenter__())

    @rule(stream=st.sampled_from(STREAMS), after=st.one_of(st.none(), st.integers(0, 90)), limit=st.integers(0, 5))
    def read_stream(self, stream: str, after: int | None, limit: int) -> None:
        for backwards in (False, True):
            self.both(lambda s, b=backwards: s.read_stream(stream, after=after, limit=limit, backwards=b))

    @rule(
        after=st.integers(0, 60),
        limit=st.integers(0, 5),
        types=st.lists(st.sampled_from(["x", "y", "z"])),
        categories=st.lists(st.sampled_from(["a", "b", "inbox", "größe"])),
        seen=st.booleans(),
    )
    def read_log(self, after: int, limit: int, types: list[str], categories: list[str], seen: bool) -> None:
        self.both(lambda s: s.read_log(after=after, limit=limit, types=types, categories=categories, seen=seen))

    @rule(
        where=st.sampled_from(["{}", '{"n":1}', '{"n":null}']),
        order_by=st.sampled_from([None, '"n"']),
        descending=st.integers(0, 1),
    )
    def find(self, where: str, order_by: str | None, descending: int) -> None:
        of = {"projection": "p", "generation": 1, "where": where, "order_by": order_by, "descending": descending}
        self.both(lambda s: s.query("documents_find", **of, limit=3, offset=1))

    @rule(unit_id=ids)
    def outcome(self, unit_id: str) -> None:
        self.both(lambda s: s.outcome(unit_id))

    @invariant()
    def everything_readable_is_the_same(self) -> None:
        self.both(lambda s: s.last_position())
        self.both(lambda s: s.query("log_end"))
        log = self.both(lambda s: s.read_log(limit=10_000))
        assert [r.position for r in log] == sorted({r.position for r in log})
        self.both(lambda s: s.read_streams(STREAMS))
        for stream in STREAMS:
            assert self.both(lambda s, n=stream: s.read_stream(n)) == [r for r in log if r.stream == stream]
            self.both(lambda s, n=stream: s.head(n))
        self.both(lambda s: s.query("streams_page", prefix="", after="", limit=99))
        self.both(lambda s: s.query("sagas_page", state=None, saga=None, after="", limit=99))
        self.both(lambda s: s.query("sagas_page", state="RUNNING", saga="trip", after="s1", limit=99))
        self.both(lambda s: s.query("sagas_count"))
        self.both(lambda s: s.query("next_wake", sagas='[["trip",1]]'))
        self.both(lambda s: s.query("live_workers"))
        for worker in WORKERS:
            self.both(lambda s, w=worker: s.query("woken_sagas", worker=w))
        for generation in (1, 2):
            of = {"projection": "p", "generation": generation}
            self.both(lambda s, of=of: s.query("parked_events_page", **of, key=None, limit=99))
            for key in "kl":
                self.both(lambda s, g=generation, k=key: s.get("documents", ("p", g, k)))
        for stream in STREAMS:
            self.both(lambda s, n=stream: s.get("documents", ("count", 1, n)))
        assert self.told["judged"] == self.told["memory"]


class OnSqlite(Differential):
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'store.db'}"


class OnPostgres(Differential):
    server: ClassVar[str]
    # A unit without events that is stored already has the server undo its batch, but for the sequence of positions.
    keeps_positions = False

    def url(self) -> str:
        return f"{self.server}?schema=d_{uuid4().hex[:16]}"


OnSqlite.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
OnPostgres.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
test_memory_and_sqlite_agree = OnSqlite.TestCase


@pytest.mark.slow
class TestMemoryAndPostgresAgree(OnPostgres.TestCase):
    @pytest.fixture(autouse=True)
    def of_the_run(self, postgres: str) -> None:
        OnPostgres.server = postgres
