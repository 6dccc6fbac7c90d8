"""Queues are copied with their sagas: who waits goes on waiting, who was a dead worker's is free."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.copying.kit import START, upgraded

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.errors import DuplicateSagaError
from event_workflow_engine.queues import Queue, RateLimit
from event_workflow_engine.storage.copying import copy_store
from event_workflow_engine.storage.port import Row
from event_workflow_engine.testing import VirtualClock
from event_workflow_engine.testing.conformance.kit import row_unit, saga

if TYPE_CHECKING:
    from tests.integration.copying.kit import Stores

    from event_workflow_engine.storage import Storage
    from event_workflow_engine.storage.port import HeldStore

pytestmark = pytest.mark.timeout(60)

TABLES = ("queues", "queued", "queue_keys")


class Paying:
    def __init__(self) -> None:
        self.paid: list[str] = []
        self.saga = Saga("copied-payment", [SagaStep("pay", self._pay)], input_type=str)

    async def _pay(self, ctx: StepContext[str]) -> str:
        self.paid.append(ctx.input)
        return f"paid {ctx.input}"

    def engine(self, storage: Storage, *, days: int = 0) -> WorkflowEngine:
        engine = WorkflowEngine(storage, clock=VirtualClock(START + timedelta(days=days)))
        engine.register(self.saga)
        engine.queues.register(Queue("payments", limit=1, rate=RateLimit(100, per=60)))
        return engine


async def fill(storage: Storage) -> None:
    """A queue that is paused: one saga waits in it, one has a key, one is too early; and one has run before."""
    paying = Paying()
    async with paying.engine(storage) as engine:
        await engine.execute(paying.saga, "first", id="p-0", queue="payments")
        await engine.queues.pause("payments")
        await engine.start(paying.saga, "a", id="p-1", queue="payments")
        await engine.start(paying.saga, "b", id="p-2", queue="payments", priority=-5, dedup_key="k", partition="t")
        late = START + timedelta(days=10)
        await engine.start(paying.saga, "c", id="p-3", queue="payments", not_before=late)
    assert paying.paid == ["first"]


async def resume(url: str) -> None:
    """As an operator does, beside the workers."""
    async with WorkflowEngine(url, config=EngineConfig(worker=False)) as desk:
        await desk.queues.resume("payments")


async def rows(held: HeldStore) -> dict[str, list[tuple[Any, ...]]]:
    return {table: await held.rows(table).next(100) for table in (*TABLES, "sagas")}


@pytest.mark.parametrize(("there", "here"), [("sqlite", "postgres"), ("postgres", "sqlite")])
async def test_a_saga_in_a_paused_queue_runs_where_the_queue_is_resumed(new_url: Stores, there: str, here: str) -> None:
    urls = new_url(there), new_url(here)
    source, target = [await upgraded(url) for url in urls]
    async with source:
        await fill(source)
        copied = await copy_store(source, target)
        was = await source.hold(rows)
    assert [copied.rows[table] for table in TABLES] == [1, 3, 1]
    paying = Paying()
    async with target:
        assert await target.hold(rows) == was
        async with paying.engine(target) as engine:
            (status,) = await engine.queues.list()
            assert (status.paused, status.waiting, status.early, status.running) == (True, 2, 1, 0)
            with pytest.raises(DuplicateSagaError):
                await engine.start(paying.saga, "again", id="p-4", queue="payments", dedup_key="k")
            assert paying.paid == []
            await resume(urls[1])
            assert await engine.handle("p-1", paying.saga).result(timeout=20) == {"pay": "paid a"}
            assert await engine.handle("p-2", paying.saga).result(timeout=20) == {"pay": "paid b"}
            assert sorted(paying.paid) == ["a", "b"]
        async with paying.engine(target, days=11) as engine:
            assert await engine.handle("p-3", paying.saga).result(timeout=20) == {"pay": "paid c"}
            (status,) = await engine.queues.list()
            assert (status.paused, status.waiting, status.early, status.running) == (False, 0, 0, 0)


@pytest.mark.parametrize("here", ["sqlite", "postgres"])
async def test_what_a_queue_has_stays_its_own_and_what_a_dead_worker_had_is_due(new_url: Stores, here: str) -> None:
    source, target = await upgraded(new_url("sqlite")), await upgraded(new_url(here))
    place = {"queue": "q", "partition": "", "priority": 0, "enqueued_at": 7}
    async with source:
        await source.write(
            row_unit(
                saga("waits", owner="queue:q", wake_at=None),
                saga("woken", owner="queue:q", wake_at=9),
                saga("began", owner="w", wake_at=None, started_at=7),
                Row("queued", "insert", ("waits",), {**place, "state": 1}),
                Row("queued", "insert", ("began",), {**place, "state": 2}),
            )
        )
        await copy_store(source, target)
        was = await source.hold(rows)
    async with target:
        arrived = await target.hold(rows)
        assert {table: arrived[table] for table in TABLES} == {table: was[table] for table in TABLES}
        found = {row["id"]: (row["owner"], row["wake_at"]) for row in await target.query(
            "sagas_by_ids", ids='["waits", "woken", "began"]')}  # fmt: skip
        assert found == {"waits": ("queue:q", None), "woken": ("queue:q", 9), "began": ("", 7)}
