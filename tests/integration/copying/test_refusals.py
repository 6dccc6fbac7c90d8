"""What a copy refuses, and what it notices; the target is as it was then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.copying.kit import Between, upgraded

from event_workflow_engine.errors import (
    DefinitionError,
    SchemaVersionError,
    StorageCorruptError,
    StoreInUseError,
    StoreNotEmptyError,
)
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.copying import copy_store
from event_workflow_engine.storage.port import EVENTS, UNITS, Row
from event_workflow_engine.storage.postgres.statements import OWN_TABLES as POSTGRES_TABLES
from event_workflow_engine.storage.sqlite.statements import OWN_TABLES as SQLITE_TABLES
from event_workflow_engine.storage.tables import TABLES
from event_workflow_engine.testing.conformance.holding import fill
from event_workflow_engine.testing.conformance.kit import append, events, record, row_unit, unit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.copying.kit import Stores

    from event_workflow_engine.storage.port import HeldStore, SqlSession

pytestmark = pytest.mark.timeout(60)
BACKENDS = ["sqlite", "postgres"]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_store_is_not_copied_into_itself(new_url: Stores, tmp_path: Path, backend: str) -> None:
    url = new_url(backend)
    await upgraded(url)
    if backend == "sqlite":
        (tmp_path / "alias.db").symlink_to(url.removeprefix("sqlite:///"))
        other = f"sqlite:///{tmp_path}/alias.db"
    else:
        other = url.replace("postgresql://", "postgres://") + "&application_name=other"
    assert other != url
    with pytest.raises(DefinitionError, match="the same store"):
        await copy_store(open_storage(url), open_storage(other))


async def test_schemas_must_be_at_this_version(new_url: Stores) -> None:
    made, missing = await upgraded(new_url("postgres")), open_storage(new_url("postgres"))
    for source, target in ((made, missing), (missing, made)):
        with pytest.raises(SchemaVersionError, match="ewe db upgrade"):
            await copy_store(source, target)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_tables_of_a_sql_projection_make_a_target_that_is_not_empty(new_url: Stores, backend: str) -> None:
    source, target = await upgraded(new_url("sqlite")), await upgraded(new_url(backend))

    async def make(session: SqlSession) -> None:
        await session.execute("CREATE TABLE p_sums_lines_g1 (n BIGINT)", {})
        await session.execute("CREATE TABLE their_own (n BIGINT)", {})

    async with source, target:
        await source.write(unit(events("a")))
        await target.exclusive(row_unit(), make)
        assert await target.hold(tables) == ["p_sums_lines_g1", "their_own"]
        with pytest.raises(StoreNotEmptyError, match=r"units, p_sums_lines_g1: .* second one, which is the target"):
            await copy_store(source, target)
        # Those of no projection that the store knows are not copied, and that is told.
        copied = await copy_store(target, await upgraded(new_url("sqlite")))
        assert (copied.starting_anew, copied.left_behind) == ((), ("p_sums_lines_g1", "their_own"))


async def tables(held: HeldStore) -> list[str]:
    return await held.tables()


def heartbeat(incarnation: int, beat: int, *, alive: int = 1) -> Row:
    values = {"incarnation": incarnation, "alive": alive, "beat": beat, "host": "h", "pid": 1, "started_at": 0}
    return Row("workers", "upsert", ("w",), values)


async def test_a_heart_that_stands_still_is_dead_after_a_lease(new_url: Stores) -> None:
    source, target = await upgraded(new_url("postgres")), await upgraded(new_url("sqlite"))
    async with source:
        await source.write(row_unit(heartbeat(1, 7)))
        assert (await copy_store(source, target, lease=0.2)).unit_ids == 1
    async with target:
        assert await target.query("live_workers") == []


async def test_a_worker_that_rises_while_it_is_looked_is_seen(new_url: Stores) -> None:
    """Between the last look and the moment in which the source is held nobody else writes."""
    source, target = await upgraded(new_url("postgres")), await upgraded(new_url("sqlite"))

    class Late(Between):
        async def hold(self, work: Any) -> Any:
            await self._storage.write(row_unit(heartbeat(1, 8)))
            return await self._storage.hold(work)

    async with source:
        await source.write(row_unit(heartbeat(1, 7)))
        with pytest.raises(StoreInUseError, match="pid 1 on h"):
            await copy_store(Late(source), target, lease=0.2)
    assert (await copy_store(source, target, lease=0.2)).unit_ids == 2


@pytest.mark.parametrize("backend", BACKENDS)
async def test_other_processes_wait_while_a_store_is_held(new_url: Stores, backend: str) -> None:
    """Another object of the same store has a lock, a connection and a queue of its own, as another process has."""
    url = new_url(backend)
    held, go_on = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def work(store: HeldStore) -> None:
        held.set()
        await go_on.wait()
        order.append(f"held at {await store.end()}")

    async with await upgraded(url) as one, open_storage(url) as other:
        await one.write(unit(events("a")))
        holding = asyncio.create_task(one.hold(work))
        await held.wait()
        writing = asyncio.create_task(other.write(unit(events("a"))))
        writing.add_done_callback(lambda _: order.append("written"))
        await asyncio.wait([writing], timeout=0.3)
        go_on.set()
        await asyncio.gather(holding, writing)
        assert order == ["held at 1", "written"]
        assert await one.head("a") == 2


class Spoiling(Between):
    def __init__(self, storage: Any, spoil: Callable[[str, list[Any]], list[Any]]) -> None:
        super().__init__(storage)
        self._spoil = spoil

    def put(self, part: str, rows: list[tuple[Any, ...]], /) -> list[tuple[Any, ...]]:
        return self._spoil(part, rows)


def without_last(wanted: str) -> Callable[[str, list[Any]], list[Any]]:
    return lambda part, rows: rows[:-1] if part == wanted else rows


def changed(wanted: str, place: int, more: Any) -> Callable[[str, list[Any]], list[Any]]:
    def spoil(part: str, rows: list[Any]) -> list[Any]:
        if part != wanted:
            return rows
        *others, last = rows
        return [*others, (*last[:place], last[place] + more, *last[place + 1 :])]

    return spoil


SPOILT = {
    "a record is missing": (without_last(EVENTS), "stream"),
    "another id": (changed(EVENTS, 5, "x"), "stream"),
    "another type": (changed(EVENTS, 6, "x"), "stream"),
    "another schema version": (changed(EVENTS, 7, 1), "stream"),
    "other data": (changed(EVENTS, 8, b"x"), "stream"),
    "other metadata": (changed(EVENTS, 9, b"x"), "stream"),
    "another time": (changed(EVENTS, 10, 1), "stream"),
    "another part": (changed(EVENTS, 4, 1), "stream"),
    "a unit is missing": (without_last(UNITS), UNITS),
    "another saga's id": (changed("saga_ids", 0, "x"), "saga_ids"),
    "a document is missing": (without_last("documents"), "documents"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_arrives_otherwise_is_noticed_and_nothing_is_kept(
    new_url: Stores, backend: str, spoilt: str
) -> None:
    target = await upgraded(new_url(backend))
    spoil, named = SPOILT[spoilt]
    async with open_storage("memory://") as source, target:
        await fill(source)
        with pytest.raises(StorageCorruptError, match=f"{named}.*nothing was copied"):
            await copy_store(source, Spoiling(target, spoil))
        assert await target.read_log() == []
        await copy_store(source, target)


async def test_a_damaged_source_is_noticed(new_url: Stores) -> None:
    """A record that the log has, and its stream has lost."""
    url = new_url("sqlite")
    source, target = await upgraded(url), await upgraded(new_url("postgres"))
    async with source:
        for _ in range(3):
            await source.write(unit(events("a")))
        await source.hold(cut_chain)
        with pytest.raises(StorageCorruptError, match="look for damage at the source"):
            await copy_store(source, target)
    async with target:
        assert await target.read_log() == []


async def cut_chain(held: Any) -> None:
    def cut() -> None:
        held._file._connection.execute("UPDATE events SET before = 0 WHERE position = 3")

    await held._call(cut)


async def test_what_postgresql_cannot_hold_is_named(new_url: Stores) -> None:
    source, target = await upgraded(new_url("sqlite")), await upgraded(new_url("postgres"))
    async with source, target:
        await source.write(row_unit(Row("documents", "insert", ("p", 1, "k"), {"body": "a\0b"})))
        with pytest.raises(DefinitionError, match=r"\('p', 1, 'k'\) of 'documents' holds the character NUL"):
            await copy_store(source, target)
        assert await target.hold(tables) == []
        await target.write(unit(events("a", expected=0)))


@pytest.mark.parametrize(("there", "here"), [("sqlite", "postgres"), ("postgres", "sqlite")])
async def test_gaps_stay_and_a_checkpoint_in_one_is_at_the_last_event(new_url: Stores, there: str, here: str) -> None:
    source, target = await upgraded(new_url(there)), await upgraded(new_url(here))

    async def to(position: int) -> None:
        async def move(held: HeldStore) -> None:
            await held.move_end(position)

        await source.hold(move)

    async with source, target:
        await to(10)
        await source.write(unit(append("a", record(), record(count=4))))
        await to(20)
        await source.write(
            unit(events("a"), rows=[Row("checkpoints", "insert", ("c",), {"position": 30, "owner": "w"})])
        )
        await to(30)
        copied = await copy_store(source, target)
        assert copied.position == 30
        assert [(r.position, r.version) for r in await target.read_stream("a")] == [(11, 1), (15, 5), (21, 6)]
        # A store whose last event is at 21 would take what has read up to 30 for rewound.
        row = await target.get("checkpoints", ("c",))
        assert row is not None
        assert (row["position"], row["owner"]) == (21, "")
        assert (await target.write(unit(events("b")))).appended[0].position == 31


class Unfinished(Between):
    def before_commit(self) -> None:
        raise LookupError("no")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_store_into_which_a_copy_was_undone_takes_another(new_url: Stores, backend: str) -> None:
    """Also a shorter one: PostgreSQL does not take back which positions were given."""
    target = await upgraded(new_url(backend))
    async with open_storage("memory://") as long, open_storage("memory://") as short, target:
        await fill(long)
        await short.write(unit(events("a", 3)))
        with pytest.raises(LookupError):
            await copy_store(long, Unfinished(target))
        copied = await copy_store(short, target)
        assert [record.position for record in await target.read_log()] == [1, 2, 3]
        assert (await target.write(unit(events("a", expected=3)))).appended[0].position > copied.position == 3
        async with open_storage("memory://") as other:
            assert (await copy_store(short, other)).checksum == copied.checksum


def test_every_table_that_names_a_worker_is_known_here() -> None:
    """Workers are not copied: `_Arrival` frees what one of them has, and slots are taken from whoever is not alive."""
    named = {(t.name, c) for t in TABLES.values() for c in t.columns if c in ("owner", "worker")}
    assert named == {("sagas", "owner"), ("checkpoints", "owner"), ("slots", "worker")}


def test_every_table_is_copied() -> None:
    """A table of the engine's that is not declared is to be copied on purpose, or left on purpose."""
    assert POSTGRES_TABLES - set(TABLES) == {"events", "units", "schema_migrations"}
    assert SQLITE_TABLES - set(TABLES) == {"events", "streams", "units", "positions_floor", "schema_migrations"}


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_new_store_has_no_other_tables(new_url: Stores, backend: str) -> None:
    async with await upgraded(new_url(backend)) as storage:
        assert await storage.hold(tables) == []
