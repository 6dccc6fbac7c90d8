"""SQL projections: tables, poison, reading only, rebuilds, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.integration.projections.kit import POISON, Added, Noise, book

from event_workflow_engine import SqlProjection, WorkflowEngine
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.projections import DocumentProjection

if TYPE_CHECKING:
    from event_workflow_engine.projections import Transaction
    from event_workflow_engine.storage.port import Storage


async def put(engine: WorkflowEngine, *events: Any) -> int:
    position = 0
    for one in events:
        position = (await engine.store.append(f"sum-{getattr(one, 'key', 'none')}", one)).positions[-1]
    return position


async def lines(engine: WorkflowEngine, projection: SqlProjection) -> list[tuple[str, int]]:
    """In the order in which they were written."""
    written = "ctid" if on_postgres(engine) else "rowid"
    rows = await engine.projections.fetch(projection, f"SELECT key, amount FROM {{lines}} ORDER BY {written}")
    return [(row["key"], row["amount"]) for row in rows]


def on_postgres(engine: WorkflowEngine) -> bool:
    return engine.storage.url.startswith("postgresql:")


async def test_poison_parks_its_streams_later_events_and_others_go_on(engine: WorkflowEngine) -> None:
    projection = book()
    events = [Added("a", 1), Added("b", 1), Added("a", POISON), Added("b", 2), Added("a", 3), Added("b", POISON)]
    await put(engine, *events)
    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("c", 4), Noise()))
    assert await lines(engine, projection) == [("a", 1), ("b", 1), ("b", 2), ("c", 4)]
    status = await engine.projections.status(projection)
    assert (status.events, status.parked, status.lag_events) == (4, 3, 0)


async def test_one_poisoned_change_of_an_event_leaves_its_others(engine: WorkflowEngine) -> None:
    projection = SqlProjection("two", tables={"lines": "key TEXT, amount BIGINT"})
    broken = True

    @projection.on(Added, key=lambda event: "poisoned")
    async def poisoned(tx: Transaction, event: Added) -> None:
        if broken:
            raise ValueError("poison")
        await tx.execute("INSERT INTO {lines} VALUES ('mended', :amount)", amount=event.amount)

    @projection.on(Added, key=lambda event: "well")
    async def well(tx: Transaction, event: Added) -> None:
        await tx.execute("INSERT INTO {lines} VALUES ('well', :amount)", amount=event.amount)

    await put(engine, Added("a", 1), Added("a", 2))
    engine.projections.register(projection)
    await engine.projections.wait_for(projection, 2)
    assert await lines(engine, projection) == [("well", 1), ("well", 2)]
    broken = False
    assert await engine.projections.retry_parked(projection) == 2
    assert await lines(engine, projection) == [("well", 1), ("well", 2), ("mended", 1), ("mended", 2)]
    assert (await engine.projections.status(projection)).parked == 0


async def test_fetch_only_reads(engine: WorkflowEngine) -> None:
    projection = book()
    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("a", 1)))
    for sql in ("DELETE FROM {lines}", "DROP TABLE {lines}", "UPDATE {lines} SET amount = 2", "CREATE TABLE t (x INT)"):
        with pytest.raises(DefinitionError):
            await engine.projections.fetch(projection, sql)
    with pytest.raises(DefinitionError, match=r"no table 'other', but \['lines'\]"):
        await engine.projections.fetch(projection, "SELECT * FROM {other}")
    assert (
        await engine.projections.fetch(projection, "SELECT amount FROM {lines} WHERE key = :key", key="a' OR 1=1 --")
        == []
    )
    assert await lines(engine, projection) == [("a", 1)]


async def test_handlers_may_not_touch_the_engines_tables(engine: WorkflowEngine) -> None:
    projection = SqlProjection("evil", tables={"lines": "key TEXT, amount BIGINT"})

    @projection.on(Added)
    async def evil(tx: Transaction, event: Added) -> None:
        await tx.execute("DELETE FROM events")

    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("a", 1)))
    assert (await engine.projections.status(projection)).parked == 1
    assert [one.data async for one in engine.store.read_all()] == [Added("a", 1)]


async def test_inline_is_seen_by_the_next_read_and_fails_no_append(engine: WorkflowEngine) -> None:
    projection = book(mode="inline")
    engine.projections.register(projection)
    for amount in (1, 2, POISON, 3):
        await engine.store.append("sum-a", Added("a", amount), strict=True)
        expected = [("a", one) for one in (1, 2) if one <= amount]
        assert await lines(engine, projection) == expected


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_rebuild_and_versions_begin_with_empty_tables(storage: Storage, mode: Literal["async", "inline"]) -> None:
    async with WorkflowEngine(storage) as engine:
        projection = book(mode=mode)
        engine.projections.register(projection)
        position = await put(engine, Added("a", 1), Added("b", POISON), Added("a", 2))
        await engine.projections.wait_for(projection, position)
        for _ in range(3):
            await engine.projections.rebuild(projection)
            assert await lines(engine, projection) == [("a", 1), ("a", 2)]
            assert (await engine.projections.status(projection)).parked == 1
        there = (
            "SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema() AND tablename LIKE 'p_book%'"
            if on_postgres(engine)
            else "SELECT name FROM sqlite_master WHERE name LIKE 'p_book%'"
        )
        assert [row["name"] for row in await engine.projections.fetch(projection, there)] == ["p_book_lines_g4"]
        await engine.projections.wait_for(projection, await put(engine, Added("a", 3)))
        assert await lines(engine, projection) == [("a", 1), ("a", 2), ("a", 3)]
    async with WorkflowEngine(storage) as engine:
        newer = book(mode=mode, version=2, sign=-1)
        engine.projections.register(newer)
        await engine.projections.wait_for(newer, await engine.storage.last_position())
        assert await lines(engine, newer) == [("a", -1), ("a", -2), ("a", -3)]


def test_tables_of_projections_never_share_a_name() -> None:
    names = set()
    pairs = [("a", "b_c"), ("a_b", "c"), ("a-b", "c"), ("A-b", "c"), ("A", "b_c"), ("ab", "c"), ("aB", "c")]
    for name, table in pairs:
        names.add(SqlProjection(name, tables={table: "x INT"}).table(table, 1))
    assert len(names) == len(pairs)
    assert all(name.isascii() and name == name.lower() for name in names)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a;b", "ä", "a" * 62, "a\n"])
def test_names_are_checked(name: str) -> None:
    for make in (lambda: SqlProjection(name, tables={"t": "x INT"}), lambda: DocumentProjection(name, dict)):
        with pytest.raises(DefinitionError, match="projection name"):
            make()


@pytest.mark.parametrize(
    "tables", [{}, {"T": "x"}, {"t; DROP": "x"}, {"t": ""}, {"t": "x); DROP TABLE events"}, {"t": "x -- y"}, {"1": "x"}]
)
def test_tables_are_checked(tables: dict[str, str]) -> None:
    with pytest.raises(DefinitionError, match="projection 'p'"):
        SqlProjection("p", tables=tables)


def test_modes_and_versions_are_checked() -> None:
    with pytest.raises(DefinitionError, match="'async', 'inline' or 'live'"):
        DocumentProjection("p", dict, mode="late")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="'async' or 'inline'"):
        SqlProjection("p", tables={"t": "x"}, mode="live")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="version 0"):
        DocumentProjection("p", dict, version=0)
