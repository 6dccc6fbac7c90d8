"""What is large, long, many or slow: memory stays bounded, and what is too much is a typed error."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.limits.kit import (
    MEBIBYTE,
    ONCE,
    Walked,
    append_many,
    check_slow_subscriber,
    in_memory,
    long,
    of_size,
)

from event_workflow_engine import (
    NewEvent,
    Saga,
    SagaFailedError,
    SagaStep,
    StepContext,
    WorkflowEngine,
    saga,
    sleep,
)
from event_workflow_engine.codecs import DEEPEST, LARGEST
from event_workflow_engine.errors import DefinitionError, EncodeError
from event_workflow_engine.history import StepUnknown
from event_workflow_engine.runner.pen import LONG_HISTORY
from event_workflow_engine.runner.run import SagaRun
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage

pytestmark = [
    pytest.mark.proves("limits"),
    pytest.mark.timeout(60),
    pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True),
]


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


async def test_payloads_and_results_of_a_mebibyte_are_kept(storage: Storage) -> None:
    async with WorkflowEngine(storage) as engine:
        events = [NewEvent("limits-large", str(n) * MEBIBYTE) for n in range(4)]
        await engine.store.append("large-1", events)
        assert [one.data async for one in engine.store.read("large-1")] == [one.data for one in events]
        made = of_size(MEBIBYTE)
        engine.register(made)
        handles = await asyncio.gather(*(engine.start(made, id=f"m-{n}") for n in range(4)))
        for handle in handles:
            assert len((await handle.result(timeout=20))["make"]) == MEBIBYTE - 2


async def test_what_is_larger_than_a_payload_may_be_is_refused_before_it_is_written(storage: Storage) -> None:
    """Its step has happened, and its outcome is unknown; it does not run again and again."""
    ran: list[int] = []

    async def make(ctx: StepContext[None]) -> str:
        ran.append(ctx.attempt)
        return "x" * LARGEST

    made = Saga("limits-too-large", [SagaStep("make", make, retry=ONCE)])
    async with WorkflowEngine(storage) as engine:
        engine.register(made)
        with pytest.raises(EncodeError, match=r"limits-large.*67,108,866 bytes of JSON.*67,108,864"):
            await engine.store.append("large-1", NewEvent("limits-large", "x" * LARGEST))
        handle = await engine.start(made, id="m-1")
        with pytest.raises(SagaFailedError, match="67,108,866 bytes of JSON"):
            await handle.result(timeout=20)
        facts = [one.data for one in await handle.history()]
    assert ran == [1]
    assert [type(fact) for fact in facts].count(StepUnknown) == 1
    assert await storage.head("large-1") == 0


@pytest.mark.parametrize("depth", [DEEPEST, DEEPEST + 1, 900, 10_000])
async def test_what_is_too_deep_is_refused_and_what_is_not_is_read_back(storage: Storage, depth: int) -> None:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    async with WorkflowEngine(storage) as engine:
        if depth <= DEEPEST:
            await engine.store.append("deep-1", NewEvent("limits-deep", value))
            (found,) = [str(one.data) async for one in engine.store.read("deep-1")]
            assert found == str(value)
        else:
            with pytest.raises(EncodeError, match="limits-deep"):
                await engine.store.append("deep-1", NewEvent("limits-deep", value))
            assert await storage.head("deep-1") == 0


async def test_names_of_streams_have_400_characters(storage: Storage) -> None:
    async with WorkflowEngine(storage) as engine:
        for letter in ("x", "\U0001f4a1"):
            name = "long-" + letter * 395
            await engine.store.append(name, Walked(1))
            assert await storage.head(name) == 1
            with pytest.raises(DefinitionError, match="1 to 400 characters"):
                await engine.store.append(name + letter, Walked(1))


async def check_long(storage: Storage, caplog: pytest.LogCaptureFixture, steps: int, at_once: int) -> None:
    caplog.set_level(logging.WARNING)
    async with WorkflowEngine(storage) as engine:
        engine.register(long)
        handle = await engine.start(long, (steps, at_once), id="l-1")
        assert await handle.result(timeout=500) == steps
    events = await storage.head("saga-l-1")
    assert events > 2 * steps
    told = [record.getMessage() for record in caplog.records if "each is read whenever" in record.getMessage()]
    assert len(told) == events // LONG_HISTORY
    assert all(message.startswith("saga 'l-1' has ") for message in told)


@pytest.mark.slow
async def test_a_saga_of_5_000_steps_ends_and_the_log_says_that_it_is_long(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    await check_long(storage, caplog, 5_000, at_once=500)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_saga_of_10_000_steps_one_by_one_ends(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    await check_long(storage, caplog, 10_000, at_once=1)


@saga("limits-asleep")
async def asleep() -> None:
    await sleep(timedelta(days=1))


async def test_sagas_asleep_on_a_timer_are_not_in_memory(storage: Storage) -> None:
    sagas = 500
    async with WorkflowEngine(storage) as engine:
        engine.register(asleep)
        before = in_memory(SagaRun)
        await asyncio.gather(*(engine.start(asleep, id=f"a-{n}") for n in range(sagas)))
        bell = asyncio.Event()
        remove = storage.add_bell(bell.set)
        while len(await parked(storage)) < sagas:
            await bell.wait()
            bell.clear()
        remove()
        assert in_memory(SagaRun) <= before


async def parked(storage: Storage) -> list[dict[str, Any]]:
    rows = await storage.query("sagas_page", state=None, saga="limits-asleep", after="", limit=100_000)
    return [row for row in rows if row["owner"] == ""]


@pytest.mark.slow
async def test_a_slow_subscriber_keeps_few_events_in_memory_and_gets_all_of_them(storage: Storage) -> None:
    engine = WorkflowEngine(storage)
    await check_slow_subscriber(engine, lambda: append_many(engine))
