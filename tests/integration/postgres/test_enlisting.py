"""Starts, appends and signals in a transaction of the user's own: all of it, or nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from event_workflow_engine import (
    EngineConfig,
    Saga,
    SagaStep,
    Signal,
    StepContext,
    WorkflowEngine,
    event,
    saga,
    staging,
    wait_for_signal,
)
from event_workflow_engine.errors import (
    DefinitionError,
    DuplicateSagaError,
    EncodeError,
    NotRegisteredError,
    SagaConflictError,
    SagaEndedError,
    SagaNotFoundError,
    SchemaVersionError,
)
from event_workflow_engine.queues import Queue
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.postgres.kit import Server

GO = Signal("go", int)


@event("enlisting-placed")
@dataclass(frozen=True)
class Placed:
    order: str


async def greet(ctx: StepContext[str]) -> str:
    return f"hello {ctx.input}"


greeting = Saga("greeting", [SagaStep("greet", greet)], input_type=str)


@saga("listening")
async def listening() -> int:
    return await wait_for_signal(GO)


class Shop:
    """An engine, and a table of the user's own in the same database."""

    def __init__(self, url: str, config: EngineConfig) -> None:
        parts = urlsplit(url)
        self.url = url
        self.dsn = urlunsplit((*parts[:3], "", ""))
        self.table = f"orders_{uuid4().hex[:12]}"
        self.insert = f"INSERT INTO {self.table} (name) VALUES ('o-1')"
        self.engine = WorkflowEngine(url, config=config)
        self.engine.register(greeting, listening)
        self.connection: Any = None

    async def orders(self) -> int:
        return int(await self.connection.fetchval(f"SELECT count(*) FROM {self.table}"))

    async def refused(self) -> list[str]:
        """Why what is still staged cannot be written."""
        schema = self.engine.storage.address.schema  # type: ignore[attr-defined]
        return [
            row["refused"] for row in await self.connection.fetch(f"SELECT refused FROM {schema}.staged ORDER BY id")
        ]

    async def nothing_staged(self) -> None:
        """Wait until all that was staged has been moved, or refused."""
        async with asyncio.timeout(10):
            rang = asyncio.Event()
            remove = self.engine.storage.add_bell(rang.set)
            try:
                while await self.engine.storage.query("staged_page", after="", limit=1):
                    await rang.wait()
                    rang.clear()
            finally:
                remove()


@asynccontextmanager
async def shop_at(url: str, **config: Any) -> AsyncIterator[Shop]:
    shop = Shop(url, EngineConfig(**config))
    async with open_storage(url, auto_upgrade=True):
        pass
    shop.connection = await asyncpg.connect(shop.dsn)
    try:
        await shop.connection.execute(f"CREATE TABLE {shop.table} (name text)")
        async with shop.engine:
            yield shop
    finally:
        await shop.connection.close()


@pytest.fixture
async def shop(postgres_url: str) -> AsyncIterator[Shop]:
    async with shop_at(postgres_url) as shop:
        yield shop


class RolledBackError(Exception):
    pass


async def test_all_of_it_happens_with_the_commit_and_in_order(shop: Shop) -> None:
    engine, connection = shop.engine, shop.connection
    async with connection.transaction():
        await connection.execute(shop.insert)
        mine = engine.enlist(connection)
        greeted = await mine.start(greeting, "ann", id="g-1")
        heard = await mine.start(listening, id="l-1")
        await mine.signal("l-1", GO, 7)
        await mine.append("order-1", [Placed("o-1"), Placed("o-2")])
        assert await engine.storage.get("sagas", ("g-1",)) is None, "nobody sees it before"
        with pytest.raises(SagaNotFoundError):
            await greeted.status()
    assert (await asyncio.wait_for(_found(greeted), 10))["greet"] == "hello ann"
    assert await _found(heard) == 7
    await shop.nothing_staged()
    assert [one.data.order async for one in engine.store.read("order-1")] == ["o-1", "o-2"]
    assert await shop.orders() == 1


async def _found(handle: Any) -> Any:
    """The result, waiting also until the saga is there."""
    while True:
        try:
            return await handle.result()
        except SagaNotFoundError:
            await asyncio.sleep(0)


async def test_nothing_of_it_happens_where_it_is_rolled_back(shop: Shop) -> None:
    connection = shop.connection
    with pytest.raises(RolledBackError):
        async with connection.transaction():
            await connection.execute(shop.insert)
            mine = shop.engine.enlist(connection)
            await mine.start(greeting, "ann", id="g-1")
            await mine.append("order-1", Placed("o-1"))
            raise RolledBackError
    async with connection.transaction():
        await shop.engine.enlist(connection).append("order-2", Placed("o-2"))
    await shop.nothing_staged()
    assert await shop.engine.storage.get("sagas", ("g-1",)) is None
    assert [record.stream for record in await shop.engine.storage.read_log()] == ["order-2"]
    assert await shop.orders() == 0


@pytest.mark.parametrize("commits", [True, False])
async def test_a_sqlalchemy_session_is_one_too(shop: Shop, commits: bool) -> None:
    alchemy = create_async_engine(shop.dsn.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with AsyncSession(alchemy) as session:
            handle = await shop.engine.enlist(session).start(greeting, "ann", id="g-1")
            await session.execute(text(shop.insert))
            await (session.commit() if commits else session.rollback())
        async with AsyncSession(alchemy) as session, session.begin():
            connection = await session.connection()
            await shop.engine.enlist(connection).append("order-2", Placed("o-2"))
        await shop.nothing_staged()
    finally:
        await alchemy.dispose()
    assert await shop.orders() == commits
    if commits:
        assert (await handle.result())["greet"] == "hello ann"
    else:
        with pytest.raises(SagaNotFoundError):
            await handle.result()
    assert await shop.engine.storage.head("order-2") == 1


async def test_an_open_transaction_holds_nobody_up(shop: Shop) -> None:
    """The same id, too: who commits first has started it."""
    async with shop.connection.transaction():
        await shop.engine.enlist(shop.connection).start(greeting, "ann", id="g-1")
        assert (await shop.engine.execute(greeting, "ann", id="g-1"))["greet"] == "hello ann"
        await shop.engine.store.append("order-1", Placed("o-1"))
    await shop.nothing_staged()
    rows = await shop.engine.storage.query("sagas_page", state=None, saga=None, after="", limit=9)
    assert [row["id"] for row in rows] == ["g-1"]
    assert await shop.refused() == []


async def test_what_cannot_happen_is_refused_at_once_where_that_is_known(shop: Shop) -> None:
    engine, connection = shop.engine, shop.connection
    engine.queues.register(Queue("q"))
    await engine.execute(greeting, "ann", id="g-1")
    await engine.queues.pause("q")
    await engine.start(greeting, "ann", id="g-2", queue="q", dedup_key="k")
    async with connection.transaction():
        mine = engine.enlist(connection)
        with pytest.raises(SagaConflictError):
            await mine.start(greeting, "bob", id="g-1")
        again = await mine.start(greeting, "ann", id="g-1")
        with pytest.raises(DuplicateSagaError):
            await mine.start(greeting, "ann", queue="q", dedup_key="k")
        joined = await mine.start(greeting, "ann", queue="q", dedup_key="k", on_duplicate="join")
        with pytest.raises(SagaEndedError):
            await mine.signal("g-1", GO, 7)
        with pytest.raises(EncodeError):
            await mine.signal("l-1", GO, "seven")  # type: ignore[arg-type]
        with pytest.raises(EncodeError):
            await mine.start(greeting, 5, id="g-3")  # type: ignore[arg-type]
        with pytest.raises(DefinitionError, match="is the engine's"):
            await mine.append("saga-g-1", Placed("o-1"))
    assert (again.id, joined.id) == ("g-1", "g-2")
    assert await engine.storage.query("staged_page", after="", limit=9) == []


async def test_what_turns_out_impossible_later_is_told_of_and_kept(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    engine, connection = shop.engine, shop.connection
    async with connection.transaction():
        mine = engine.enlist(connection)
        await mine.start(greeting, "ann", id="g-1")
        await mine.signal("nobody", GO, 7)
        await mine.append("order-1", Placed("o-1"))
        await engine.execute(greeting, "bob", id="g-1")
    await shop.nothing_staged()
    assert await engine.storage.head("order-1") == 1, "the others of the transaction happen"
    assert len(await shop.refused()) == 2
    assert caplog.text.count("cannot be written, and stays in table staged") == 2
    assert (await engine.handle("g-1", greeting).result())["greet"] == "hello bob"


async def test_sending_twice_is_once_where_the_id_says_so(shop: Shop) -> None:
    engine, connection = shop.engine, shop.connection
    handle = await engine.start(listening, id="l-1")
    for _ in range(2):
        async with connection.transaction():
            await engine.enlist(connection).signal("l-1", GO, 7, id="s-1")
        await shop.nothing_staged()
    assert await handle.result() == 7
    assert await engine.storage.head("inbox-l-1") == 1


async def test_many_workers_move_each_once(shop: Shop) -> None:
    """Each of them sees what is staged; one writes it."""
    async with WorkflowEngine(shop.url), WorkflowEngine(shop.url, config=EngineConfig(worker=False)):
        for part in range(5):
            async with shop.connection.transaction():
                mine = shop.engine.enlist(shop.connection)
                for n in range(40):
                    await mine.append("order-1", Placed(f"o-{part}-{n:02}"))
        await shop.nothing_staged()
        orders = [one.data.order async for one in shop.engine.store.read("order-1")]
    assert orders == [f"o-{part}-{n:02}" for part in range(5) for n in range(40)]


async def test_a_process_that_runs_no_sagas_moves_it_too(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its own commits it looks at once; for the second one only the user's commit can have told it."""
    monkeypatch.setattr(staging, "_GATHER_S", 0)
    async with shop_at(postgres_url, worker=False) as shop:
        for n in range(3):
            async with shop.connection.transaction():
                await shop.engine.enlist(shop.connection).append("order-1", Placed("o-1"))
            await shop.nothing_staged()
            assert await shop.engine.storage.head("order-1") == n + 1


async def test_what_was_staged_while_nobody_was_there_is_moved_when_somebody_comes(shop: Shop) -> None:
    """As after a crash between the user's commit and the move."""
    async with shop.connection.transaction():
        await shop.engine.enlist(shop.connection).start(greeting, "ann", id="g-1")
        await shop.engine.__aexit__(None, None, None)
    await shop.engine.__aenter__()
    await shop.nothing_staged()
    assert (await shop.engine.handle("g-1", greeting).result())["greet"] == "hello ann"


async def test_connections_that_cannot_are_refused(shop: Shop, tmp_path: Any) -> None:
    enlist = shop.engine.enlist
    with pytest.raises(DefinitionError, match="no transaction is open"):
        await enlist(shop.connection).append("order-1", Placed("o-1"))
    with pytest.raises(DefinitionError, match="a str is no asyncpg connection"):
        await enlist(shop.dsn).append("order-1", Placed("o-1"))
    async with WorkflowEngine(f"sqlite:///{tmp_path}/s.db") as other, shop.connection.transaction():
        with pytest.raises(DefinitionError, match="in a transactional step, or use PostgreSQL"):
            await other.enlist(shop.connection).append("order-1", Placed("o-1"))


async def test_a_connection_to_a_database_without_the_store_is_told_of(shop: Shop) -> None:
    name = f"d_{uuid4().hex[:12]}"
    await shop.connection.execute(f"CREATE DATABASE {name}")
    elsewhere = await asyncpg.connect(shop.dsn, database=name)
    try:
        with pytest.raises(SchemaVersionError):
            async with elsewhere.transaction():
                await shop.engine.enlist(elsewhere).append("order-1", Placed("o-1"))
    finally:
        await elsewhere.close()
        await shop.connection.execute(f"DROP DATABASE {name}")


async def test_a_connection_to_another_store_is_refused_and_nothing_is_left_there(shop: Shop) -> None:
    """A database of the same server, with a store in a schema of the same name: no worker of ours would look there."""
    name = f"d_{uuid4().hex[:12]}"
    await shop.connection.execute(f"CREATE DATABASE {name}")
    schema = shop.engine.storage.address.schema  # type: ignore[attr-defined]
    elsewhere = await asyncpg.connect(shop.dsn, database=name)
    try:
        parts = urlsplit(shop.url)
        async with open_storage(urlunsplit((*parts[:2], f"/{name}", parts.query, "")), auto_upgrade=True):
            pass
        for _ in range(2):
            async with elsewhere.transaction():
                mine = shop.engine.enlist(elsewhere)
                with pytest.raises(DefinitionError, match=r"to another database than the store's.*nothing was staged"):
                    await mine.append("order-1", Placed("o-1"))
                with pytest.raises(DefinitionError, match="to another database"):
                    await mine.start(greeting, "ann", id="g-1")
                assert await elsewhere.fetchval(f"SELECT count(*) FROM {schema}.staged") == 0, "it can be gone on with"
        async with shop.connection.transaction():
            await shop.engine.enlist(shop.connection).append("order-1", Placed("o-1"))
        await shop.nothing_staged()
        assert await shop.engine.storage.head("order-1") == 1
    finally:
        await elsewhere.close()
        await shop.connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_role_that_may_not_ask_for_the_cluster_may_enlist(shop: Shop, server: Server) -> None:
    role = await server.role()
    schema = shop.engine.storage.address.schema  # type: ignore[attr-defined]
    await shop.connection.execute(
        f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT INSERT ON {schema}.staged TO {role}; "
        f"GRANT USAGE ON SEQUENCE {schema}.commits TO {role}; "
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"
    )
    theirs = await asyncpg.connect(server.at(user=role))
    try:
        async with theirs.transaction():
            await shop.engine.enlist(theirs).append("order-1", Placed("o-1"))
        await shop.nothing_staged()
        assert await shop.engine.storage.head("order-1") == 1
    finally:
        await theirs.close()
        await shop.connection.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


async def test_what_was_refused_is_listed_tried_again_and_dropped(shop: Shop) -> None:
    engine, connection = shop.engine, shop.connection
    async with connection.transaction():
        mine = engine.enlist(connection)
        await mine.start(greeting, "ann", id="g-1")
        await mine.signal("l-1", GO, 7)
        await engine.execute(greeting, "bob", id="g-1")
    await shop.nothing_staged()
    start, signal = await engine.refusals.list()
    assert (start.what, signal.what) == ("start of saga 'g-1'", "signal to saga 'l-1'")
    assert [one.id for one in await engine.refusals.list(after=start.id, limit=1)] == [signal.id]
    assert start.reason
    handle = await engine.start(listening, id="l-1")
    await engine.refusals.retry(signal.id)
    assert await handle.result() == 7
    await engine.refusals.retry(start.id)
    await shop.nothing_staged()
    assert [one.id for one in await engine.refusals.list()] == [start.id], "it is as impossible as it was"
    await engine.refusals.drop(start.id)
    assert await engine.refusals.list() == []
    for change in (engine.refusals.drop, engine.refusals.retry):
        with pytest.raises(NotRegisteredError, match="see ewe db staged"):
            await change(start.id)
