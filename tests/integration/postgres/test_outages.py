"""A database that goes away is no fault of the transactional step that runs meanwhile: it counts as no interruption."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from event_workflow_engine import (
    EngineConfig,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    StepContext,
    WorkflowEngine,
)
from event_workflow_engine.history import SagaHandedOver, StepFailed, StepStarted
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.network import FaultProxy
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

LIMIT = 1
"""Of interruptions: the next one would be one too many."""

COMMIT = b"COMMIT\0"


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    """A server that tests may bring down."""
    with PostgresServer(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
async def mortal_url(mortal: PostgresServer, request: pytest.FixtureRequest) -> str:
    """A store of its own there, with a table of the user's."""
    schema = f"t_{abs(hash(request.node.nodeid)):x}"
    url = f"{mortal.url()}?schema={schema}"
    async with open_storage(url, auto_upgrade=True):
        pass
    mortal.query("CREATE TABLE IF NOT EXISTS notes (saga TEXT, run BIGINT)")
    mortal.query("TRUNCATE notes")
    return url


@pytest.fixture
def given_up() -> Iterator[asyncio.Event]:
    """Set when a worker lets go of a saga that it could not write."""
    told = asyncio.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is loaded again" in record.getMessage():
                told.set()

    logger, handler = logging.getLogger("event_workflow_engine.runner"), Listening()
    logger.addHandler(handler)
    yield told
    logger.removeHandler(handler)


class Noting:
    """A saga of one transactional step, to which something happens in each of its first runs."""

    def __init__(self, trouble: Callable[[StepContext[Any]], Awaitable[None]], times: int) -> None:
        self.runs = 0
        self._trouble = trouble
        self._times = times
        policy = RetryPolicy(attempts=1, max_interruptions=LIMIT)
        self.saga: Saga[Any, Any] = Saga("noting", [SagaStep("note", self.note, transactional=True, retry=policy)])

    async def note(self, ctx: StepContext[Any]) -> int:
        self.runs += 1
        run = self.runs
        await ctx.transaction.execute("INSERT INTO notes VALUES (:saga, :run)", saga=ctx.saga_id, run=run)
        if run <= self._times:
            await self._trouble(ctx)
            await ctx.transaction.execute("SELECT 1")
        return run


async def facts(engine: WorkflowEngine, kind: type) -> list[Any]:
    return [one.data for one in await engine.handle("s").history() if isinstance(one.data, kind)]


@pytest.mark.parametrize("kill", [False, True], ids=["restarted", "killed"])
async def test_a_server_that_goes_away_again_and_again_interrupts_no_step(
    mortal: PostgresServer, mortal_url: str, kill: bool
) -> None:
    async def restart(_: StepContext[Any]) -> None:
        await asyncio.to_thread(mortal.restart, kill=kill)

    noting = Noting(restart, 3)
    engine = WorkflowEngine(mortal_url, config=EngineConfig(lease=30))
    engine.register(noting.saga)
    async with engine, asyncio.timeout(60):
        assert (await engine.execute(noting.saga, id="s"))["note"] == 4
        assert {fact.interruptions for fact in await facts(engine, StepStarted)} == {0}
        events = await engine.handle("s").history()
    assert mortal.query("SELECT run FROM notes") == "4"
    given_up = [one.recorded_at for one in events if isinstance(one.data, SagaHandedOver)]
    begun = [one.recorded_at for one in events if isinstance(one.data, StepStarted)][1:]
    waits = [(later - earlier).total_seconds() for earlier, later in zip(given_up, begun, strict=True)]
    assert all(wait >= least for wait, least in zip(waits, (0, 1, 3), strict=True)), waits


async def test_a_network_that_is_cut_again_and_again_interrupts_no_step(
    mortal: PostgresServer, mortal_url: str
) -> None:
    parts = urlsplit(mortal_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with FaultProxy(parts.hostname, parts.port) as proxy:

        async def cut(_: StepContext[Any]) -> None:
            proxy.cut()

        noting = Noting(cut, 3)
        engine = WorkflowEngine(proxy.url(mortal_url), config=EngineConfig(lease=30))
        engine.register(noting.saga)
        async with engine, asyncio.timeout(60):
            assert (await engine.execute(noting.saga, id="s"))["note"] == 4
            assert {fact.interruptions for fact in await facts(engine, StepStarted)} == {0}
    assert mortal.query("SELECT run FROM notes") == "4"


async def test_a_step_whose_own_connection_is_cut_time_after_time_is_given_up(
    mortal: PostgresServer, mortal_url: str
) -> None:
    """The server was there all along, so it may be the step that is to blame, and it is not run for ever."""

    async def stand_still(ctx: StepContext[Any]) -> None:
        await ctx.transaction.connection.execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
        ended = asyncio.Event()
        ctx.transaction.connection.add_termination_listener(lambda _: ended.set())
        await ended.wait()

    noting = Noting(stand_still, 99)
    engine = WorkflowEngine(mortal_url, config=EngineConfig(lease=30))
    engine.register(noting.saga)
    async with engine, asyncio.timeout(60):
        with pytest.raises(SagaFailedError, match=r"connection alone was cut, 2 times, and max_interruptions is 1"):
            await engine.execute(noting.saga, id="s")
        assert [fact.interruptions for fact in await facts(engine, StepStarted)] == [0, 1]
        assert len(await facts(engine, StepFailed)) == 1, "and nothing of it has happened"
    assert mortal.query("SELECT run FROM notes") == ""


async def test_an_end_that_an_outage_kept_from_being_recorded_is_no_interruption(
    mortal: PostgresServer, mortal_url: str, given_up: asyncio.Event
) -> None:
    """A plain step: it may have happened, so it runs again with its key, and the worker was alive all along."""
    runs = 0

    async def act() -> int:
        nonlocal runs
        runs += 1
        if runs == 1:
            proxy.refuse()
            proxy.cut()
        return runs

    plain: Saga[Any, Any] = Saga("plain", [SagaStep("act", act, retry=RetryPolicy(attempts=1, max_interruptions=0))])
    parts = urlsplit(mortal_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with FaultProxy(parts.hostname, parts.port) as proxy:
        engine = WorkflowEngine(proxy.url(mortal_url), config=EngineConfig(lease=60))
        engine.register(plain)
        async with engine, asyncio.timeout(60):
            handle = await engine.start(plain, id="s")
            await given_up.wait()
            await proxy.accept()
            assert (await handle.result())["act"] == 2
            assert [fact.lost for fact in await facts(engine, SagaHandedOver)] == [True]


@pytest.mark.parametrize("landed", [True, False])
async def test_a_commit_in_doubt_is_asked_for_when_the_server_is_back(
    mortal: PostgresServer, mortal_url: str, landed: bool, given_up: asyncio.Event
) -> None:
    """The outage is longer than the worker's patience, so that it hears nothing of its commit for the time being."""
    parts = urlsplit(mortal_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with FaultProxy(parts.hostname, parts.port) as proxy:

        async def die(_: StepContext[Any]) -> None:
            proxy.cut_after(COMMIT, deliver=landed).add_done_callback(lambda _: proxy.refuse())

        noting = Noting(die, 1)
        engine = WorkflowEngine(proxy.url(mortal_url), config=EngineConfig(lease=60))
        engine.register(noting.saga)
        async with engine, asyncio.timeout(60):
            handle = await engine.start(noting.saga, id="s")
            await given_up.wait()
            await proxy.accept()
            assert (await handle.result())["note"] == (1 if landed else 2)
            assert {fact.interruptions for fact in await facts(engine, StepStarted)} == {0}
            assert len(await facts(engine, SagaHandedOver)) == (0 if landed else 1)
    assert mortal.query("SELECT run FROM notes") == ("1" if landed else "2")
