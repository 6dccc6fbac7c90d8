"""Transactional steps: what they write to the store's database is there exactly when their record is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from tests.rules.conftest import Lab

from event_workflow_engine import (
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    StepContext,
    WorkflowState,
    current_step,
    saga,
    step,
    wait_for_signal,
)
from event_workflow_engine.errors import DefinitionError, EngineStateError, StorageError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance.kit import events, unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.context import StepTransaction
    from event_workflow_engine.storage.port import SqlSession, Unit

GO = Signal("go", str)


class Bank:
    """A store with a table of the user's, of a name of its own: tests share the database."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.table = f"accounts_{uuid4().hex[:12]}"
        columns = "(name TEXT NOT NULL UNIQUE, cents BIGINT NOT NULL CHECK (cents >= 0))"
        self.create = f"CREATE TABLE {self.table} {columns}"
        self.opening = Saga("opening", [SagaStep("open", self.open, transactional=True)])

    async def open(self, ctx: StepContext[Any]) -> int:
        """Runs once for a saga, or the name would be taken."""
        await self.insert(ctx, ctx.saga_id, 100)
        ((n,),) = [
            tuple(row.values()) for row in await ctx.transaction.fetch(f"SELECT count(*) AS n FROM {self.table}")
        ]
        return int(n)

    async def insert(self, ctx: StepContext[Any], name: str, cents: int = 1) -> None:
        sql = f"INSERT INTO {self.table} (name, cents) VALUES (:name, :cents)"
        assert await ctx.transaction.execute(sql, name=name, cents=cents) == 1

    async def accounts(self) -> dict[str, int]:
        rows = await self.lab.storage.fetch(f"SELECT name, cents FROM {self.table}", {})
        return {row["name"]: row["cents"] for row in rows}


async def opened(lab: Lab) -> Bank:
    bank = Bank(lab)

    async def create(session: SqlSession) -> Unit:
        await session.execute(bank.create, {})
        return unit(events("opened"))

    await lab.storage.transact(create)
    return bank


@pytest.fixture
async def bank(lab: Lab) -> Bank:
    return await opened(lab)


@pytest.fixture
async def shared_bank(postgres_url: str) -> AsyncIterator[Bank]:
    """Where a transaction does not hold the store."""
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        yield await opened(Lab(storage))


async def test_what_the_step_wrote_and_its_record_are_there_together(bank: Bank) -> None:
    async with bank.lab.engine(bank.opening) as engine:
        assert (await engine.execute(bank.opening, id="a"))["open"] == 1
        assert (await engine.execute(bank.opening, id="b"))["open"] == 2
        assert await bank.lab.facts(engine, "a") == ["saga-started", "step-started", "step-succeeded", "saga-completed"]
    assert await bank.accounts() == {"a": 100, "b": 100}


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_step_that_raises_has_written_nothing_and_has_failed(bank: Bank, attempts: int) -> None:
    tries = 0

    async def act(ctx: StepContext[Any]) -> None:
        nonlocal tries
        await bank.insert(ctx, "a", tries)
        tries += 1
        if tries < 3:
            raise ConnectionResetError

    saga_ = Saga("s", [SagaStep("act", act, transactional=True, retry=RetryPolicy(attempts=attempts, delay=0))])
    async with bank.lab.engine(saga_) as engine:
        handle = await engine.start(saga_, id="s")
        if attempts == 1:
            with pytest.raises(SagaFailedError):
                await handle.result()
            assert await handle.status() is WorkflowState.FAILED
        else:
            await handle.result()
    assert await bank.accounts() == ({} if attempts == 1 else {"a": 2})


async def test_a_step_whose_sql_ended_its_transaction_has_failed(bank: Bank) -> None:
    """SQLite rolls back where the SQL says so, and the action may not know that nothing of it stays."""

    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")
        with suppress(StorageError):  # on PostgreSQL there is no such SQL
            await ctx.transaction.execute(f"INSERT OR ROLLBACK INTO {bank.table} (name, cents) VALUES ('a', 1)")

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="DefinitionError"):
            await engine.execute(saga_, id="s")
    assert await bank.accounts() == {}


async def test_its_outcome_is_failed_not_unknown_when_it_runs_out_of_time(bank: Bank) -> None:
    """Its transaction was rolled back, so there is nothing to compensate."""
    undone = False

    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")
        await asyncio.Event().wait()

    async def undo() -> None:
        nonlocal undone
        undone = True

    saga_ = Saga("s", [SagaStep("act", act, undo, transactional=True, timeout=0.05)], on_exception="unknown")
    async with bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(saga_, id="s")
        assert "step-failed" in await bank.lab.facts(engine, "s")
    assert await bank.accounts() == {}
    assert not undone


async def test_it_has_failed_also_where_an_earlier_attempt_was_interrupted(bank: Bank) -> None:
    """That one was rolled back, too, so there is nothing to compensate when the saga fails before its next."""
    undone = False
    begun, again, waits = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")
        if not again.is_set():
            begun.set()
            await asyncio.Event().wait()
        raise ValueError("no")

    async def undo() -> None:
        nonlocal undone
        undone = True

    async def refuse() -> None:
        await waits.wait()
        raise ValueError("no")

    patient = RetryPolicy(attempts=2, delay=3600)
    saga_ = Saga("s", [SagaStep("act", act, undo, transactional=True, retry=patient), SagaStep("refuse", refuse)])
    async with bank.lab.engine(saga_, shutdown_timeout=0) as engine:
        await engine.start(saga_, id="s")
        await begun.wait()
    again.set()
    async with bank.lab.engine(saga_) as engine:
        await bank.lab.until_fact(engine, "s", "step-failed")
        waits.set()
        with pytest.raises(SagaFailedError):
            await engine.handle("s", saga_).result()
    assert await bank.accounts() == {}
    assert not undone


async def test_a_result_that_cannot_be_stored_undoes_what_was_written(bank: Bank) -> None:
    async def act(ctx: StepContext[Any]) -> Any:
        await bank.insert(ctx, "a")
        return object()

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="result of step 'act'"):
            await engine.execute(saga_, id="s")
        assert "step-failed" in await bank.lab.facts(engine, "s")
    assert await bank.accounts() == {}


async def test_a_constraint_that_fails_fails_the_step(bank: Bank) -> None:
    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")
        await ctx.transaction.execute(f"UPDATE {bank.table} SET cents = cents - 5")

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(saga_, id="s")
    assert await bank.accounts() == {}


async def test_steps_beside_it_are_recorded_with_it_or_after_it(bank: Bank) -> None:
    """What ends while the transaction is open waits for it, and never the other way round."""
    inside, beside = asyncio.Event(), asyncio.Event()

    async def slow(ctx: StepContext[Any]) -> None:
        inside.set()
        await beside.wait()
        await bank.insert(ctx, ctx.saga_id)

    async def quick() -> None:
        await inside.wait()
        beside.set()

    async def again(ctx: StepContext[Any]) -> None:
        await ctx.transaction.execute(f"UPDATE {bank.table} SET cents = cents + 1 WHERE name = :name", name=ctx.saga_id)

    saga_ = Saga("s", [
        SagaStep("slow", slow, transactional=True),
        SagaStep("quick", quick),
        SagaStep("again", again, transactional=True, after="slow"),
        SagaStep("more", quick, after="quick"),
    ])  # fmt: skip
    async with bank.lab.engine(saga_) as engine:
        for n in range(5):
            inside.clear()
            beside.clear()
            async with asyncio.timeout(8):
                await engine.execute(saga_, id=f"s-{n}")
    assert await bank.accounts() == {f"s-{n}": 2 for n in range(5)}


async def test_a_cancelled_saga_keeps_nothing_of_an_open_transaction(shared_bank: Bank) -> None:
    bank = shared_bank
    inside = asyncio.Event()

    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")
        inside.set()
        await asyncio.Event().wait()

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        handle = await engine.start(saga_, id="s")
        await inside.wait()
        await handle.cancel()
        with pytest.raises(SagaFailedError):
            await handle.result()
    assert await bank.accounts() == {}


async def test_a_worker_that_is_taken_for_dead_commits_nothing(shared_bank: Bank) -> None:
    """Its transaction is open when another worker has the saga: of the two, one commits."""
    bank = shared_bank
    inside, go, runs = asyncio.Event(), asyncio.Event(), 0

    async def act(ctx: StepContext[Any]) -> int:
        nonlocal runs
        runs += 1
        mine = runs
        await bank.insert(ctx, f"run-{mine}", mine)
        if mine == 1:
            inside.set()
            await go.wait()
        return mine

    saga_ = Saga("s", [SagaStep("act", act, transactional=True, idempotent=False)])
    async with bank.lab.engine(saga_, lease=15) as first:
        handle = await first.start(saga_, id="s")
        await inside.wait()
        (row,) = await bank.lab.storage.query("live_workers")
        await bank.lab.storage.perform("bury_worker", beat=None, id=row["id"], incarnation=row["incarnation"], now=1)
        async with bank.lab.engine(saga_, lease=15) as second:
            assert (await second.handle("s", saga_).result(timeout=8))["act"] == 2
            go.set()
            await handle.result(timeout=8)
    assert await bank.accounts() == {"run-2": 2}


@pytest.mark.parametrize("over", ["session", "connection"])
async def test_a_connection_that_is_lost_is_no_failure_of_the_step(shared_bank: Bank, over: str) -> None:
    """Nothing of the attempt has happened, for certain, and the step was not to blame: it runs again."""
    bank, runs = shared_bank, 0

    async def act(ctx: StepContext[Any]) -> int:
        nonlocal runs
        runs += 1
        await bank.insert(ctx, "a", runs)
        if runs == 1 and over == "session":
            await ctx.transaction.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
        elif runs == 1:
            await ctx.transaction.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return runs

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        assert (await engine.execute(saga_, id="s"))["act"] == 2
        assert "step-failed" not in await bank.lab.facts(engine, "s")
    assert await bank.accounts() == {"a": 2}


async def test_the_engine_is_not_written_to_from_inside(bank: Bank) -> None:
    async def act(ctx: StepContext[Any]) -> None:
        await engine.start(bank.opening, id="inner")

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_, bank.opening) as engine:
        with pytest.raises(SagaFailedError, match="inside of a transaction of the store") as failure:
            await engine.execute(saga_, id="s")
        assert isinstance(failure.value.__cause__, EngineStateError)
    assert await bank.accounts() == {}


async def test_only_transactional_steps_have_a_transaction(bank: Bank) -> None:
    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")

    saga_ = Saga("s", [SagaStep("act", act)])
    async with bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="transactional=True") as failure:
            await engine.execute(saga_, id="s")
        assert isinstance(failure.value.__cause__, DefinitionError)


def test_a_plain_function_cannot_be_transactional() -> None:
    def act(ctx: StepContext[Any]) -> None: ...

    with pytest.raises(DefinitionError, match="a transactional action is async"):
        Saga("s", [SagaStep("act", act, transactional=True)])


async def test_a_function_has_steps_in_transactions(bank: Bank) -> None:
    """The function gets the transaction first, then its arguments; what it returns is read back after a crash."""

    async def pay_in(transaction: StepTransaction, name: str, cents: int) -> str:
        sql = f"INSERT INTO {bank.table} (name, cents) VALUES (:name, :cents)"
        await transaction.execute(sql, name=name, cents=cents)
        assert current_step().transaction is transaction
        return f"{name} has {cents}"

    @saga("paying")
    async def paying(name: str) -> str:
        told = await step.in_transaction(pay_in, name, 7)
        return told + " " + await wait_for_signal(GO)

    async with bank.lab.doomed(paying) as engine:
        await engine.start(paying, "ann", id="p")
        await bank.lab.until_fact(engine, "p", "step-succeeded")
    async with bank.lab.engine(paying) as engine:
        await engine.handle("p").signal(GO, "now")
        assert await engine.handle("p", paying).result() == "ann has 7 now"
    assert await bank.accounts() == {"ann": 7}


async def test_the_drivers_connection_is_there_where_it_can_be_used(bank: Bank) -> None:
    async def act(ctx: StepContext[Any]) -> int:
        return int(await ctx.transaction.connection.fetchval("SELECT 41 + 1"))

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        if bank.lab.storage.url.startswith("postgresql"):
            assert (await engine.execute(saga_))["act"] == 42
        else:
            with pytest.raises(SagaFailedError, match="connection is its own"):
                await engine.execute(saga_)


@pytest.mark.parametrize("how", ["COMMIT", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
async def test_a_transaction_that_was_ended_over_the_connection_fails_the_step(shared_bank: Bank, how: str) -> None:
    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.connection.execute(how)

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with shared_bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="leave COMMIT and ROLLBACK to the engine"):
            await engine.execute(saga_)


async def test_a_deferred_constraint_fails_the_step_not_the_commit(shared_bank: Bank) -> None:
    bank = shared_bank

    async def act(ctx: StepContext[Any]) -> None:
        connection = ctx.transaction.connection
        await connection.execute(f"ALTER TABLE {bank.table} ADD UNIQUE (cents) DEFERRABLE INITIALLY DEFERRED")
        await bank.insert(ctx, "a", 1)
        await bank.insert(ctx, "b", 1)

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="duplicate key"):
            await engine.execute(saga_, id="s")
        assert (await bank.lab.facts(engine, "s")).count("step-started") == 1
    assert await bank.accounts() == {}


async def test_two_transactions_of_one_saga_end_at_once(shared_bank: Bank) -> None:
    """The record of one is on its way to disk when the other one wants to be."""
    bank, inside, go = shared_bank, asyncio.Semaphore(0), asyncio.Event()

    async def act(ctx: StepContext[Any]) -> str:
        await bank.insert(ctx, f"{ctx.saga_id} {ctx.step}")
        inside.release()
        await go.wait()
        return ctx.step

    names = [f"step-{n}" for n in range(5)]
    saga_ = Saga("s", [SagaStep(name, act, transactional=True) for name in names])
    async with bank.lab.engine(saga_) as engine:
        handle = await engine.start(saga_, id="s")
        for _ in names:
            await inside.acquire()
        go.set()
        assert dict(await handle.result(timeout=8)) == {name: name for name in names}
        assert (await bank.lab.facts(engine, "s")).count("step-started") == len(names)
    assert len(await bank.accounts()) == len(names)


@pytest.mark.parametrize("sql", ["DELETE FROM {}.sagas", "UPDATE {}.events SET type = 'x'", "TRUNCATE {}.units"])
async def test_the_engines_tables_refuse_to_be_changed(shared_bank: Bank, sql: str) -> None:
    schema = shared_bank.lab.storage.address.schema  # type: ignore[attr-defined]

    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.connection.execute(sql.format(schema))

    saga_ = Saga("s", [SagaStep("act", act, transactional=True)])
    async with shared_bank.lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="is the engine's: SQL of users may change their own tables only"):
            await engine.execute(saga_, id="s")


async def test_others_write_while_a_transaction_is_open(shared_bank: Bank) -> None:
    bank, inside, go = shared_bank, asyncio.Event(), asyncio.Event()

    async def act(ctx: StepContext[Any]) -> None:
        await bank.insert(ctx, "a")
        inside.set()
        await go.wait()

    slow = Saga("slow", [SagaStep("act", act, transactional=True)])
    async with bank.lab.engine(slow, bank.opening) as engine:
        handle = await engine.start(slow)
        await inside.wait()
        await asyncio.gather(*(engine.execute(bank.opening, id=f"o-{n}") for n in range(5)))
        go.set()
        await handle.result()
    assert len(await bank.accounts()) == 6
