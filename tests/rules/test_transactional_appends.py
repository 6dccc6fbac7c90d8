"""Events that a transactional step appends: they are in the log exactly when its record is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    DocumentProjection,
    NewEvent,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    StepContext,
    WorkflowEngine,
    context,
    event,
    saga,
    step,
)
from event_workflow_engine.errors import DefinitionError

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

    from event_workflow_engine import EventStore
    from event_workflow_engine.context import StepTransaction


@event("parcel-packed")
@dataclass(frozen=True)
class Packed:
    items: int


@dataclass(frozen=True)
class Shelf:
    items: int


def declared(act: Any, **options: Any) -> Saga[Any, Any]:
    return Saga("packing", [SagaStep("act", act, transactional=True, **options)])


async def packed(store: EventStore, stream: str = "parcel-1") -> list[int]:
    return [found.data.items async for found in store.read(stream)]


async def test_they_are_there_with_the_record_and_say_where_they_come_from(lab: Lab) -> None:
    seen: list[list[int]] = []

    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.append("parcel-1", [Packed(1), Packed(2)])
        await ctx.transaction.append("parcel-2", Packed(3), metadata={"actor": "ann"})

    saga_ = declared(act)
    async with lab.engine(saga_) as engine:

        async def follow() -> None:
            async for found in engine.store.follow(categories=["parcel"]):
                seen.append([found.version, found.data.items])
                if found.stream == "parcel-2":
                    return

        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            await engine.execute(saga_, id="s")
        assert seen == [[1, 1], [2, 2], [1, 3]]
        assert await packed(engine.store) == [1, 2]
        (last,) = [found async for found in engine.store.read("parcel-2")]
        assert (last.metadata.saga_id, last.metadata.actor) == ("s", "ann")
        facts = [found.type async for found in engine.store.read("saga-s")]
        assert facts == ["saga-started", "step-started", "step-succeeded", "saga-completed"]


async def test_an_attempt_that_raises_has_appended_nothing(lab: Lab) -> None:
    attempts = 0

    async def act(transaction: StepTransaction, stream: str) -> None:
        nonlocal attempts
        attempts += 1
        await transaction.append(stream, Packed(attempts))
        if attempts < 3:
            raise ConnectionResetError

    @saga("packing")
    async def packing() -> None:
        await step.in_transaction(act, "parcel-1", retry=RetryPolicy(attempts=3, delay=0))

    async with lab.engine(packing) as engine:
        await engine.execute(packing)
        assert await packed(engine.store) == [3]


@pytest.mark.proves("transactional")
async def test_a_worker_lost_before_the_commit_has_appended_nothing_and_the_next_one_appends_once(lab: Lab) -> None:
    begun, hangs = asyncio.Event(), True

    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.append("parcel-1", Packed(ctx.attempt))
        begun.set()
        if hangs:
            await asyncio.Event().wait()

    saga_ = declared(act)
    async with lab.doomed(saga_) as engine:
        await engine.start(saga_, id="s")
        await begun.wait()
    hangs = False
    async with lab.engine(saga_) as engine:
        await engine.handle("s", saga_).result()
        assert await packed(engine.store) == [1]
        positions = [found.position async for found in engine.store.read_all()]
        assert positions == sorted(set(positions))


async def test_an_inline_projection_sees_them_in_the_same_commit(lab: Lab) -> None:
    shelf = DocumentProjection("shelf", Shelf, mode="inline")

    @shelf.on(Packed, key=lambda _: "all")
    def fold(document: Shelf | None, event: Packed) -> Shelf:
        return Shelf(event.items + (document.items if document else 0))

    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.append("parcel-1", [Packed(1), Packed(2)])

    async def look() -> int:
        found = await engine.projections.get(shelf, "all")
        return 0 if found is None else found.items

    saga_ = Saga("packing", [SagaStep("act", act, transactional=True), SagaStep("look", look)], sequential=True)
    engine = WorkflowEngine(lab.storage)
    engine.register(saga_)
    engine.projections.register(shelf)
    async with engine:
        assert (await engine.execute(saga_))["look"] == 3


@pytest.mark.parametrize(
    ("stream", "events", "why"),
    [
        ("saga-1", Packed(1), "the category 'saga' is the engine's"),
        ("inbox-1", Packed(1), "the category 'inbox' is the engine's"),
        ("", Packed(1), "stream"),
        ("parcel-1", [], "at least one event"),
        ("parcel-1", NewEvent("parcel-packed", Packed(1), id="mine"), "leave the id out"),
    ],
)
async def test_what_could_not_be_written_is_refused_at_once(lab: Lab, stream: str, events: Any, why: str) -> None:
    """Later the whole unit would be refused, and the step with it, again and again."""

    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.append("parcel-1", Packed(7))
        await ctx.transaction.append(stream, events)

    saga_ = declared(act)
    async with lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match=why) as failure:
            await engine.execute(saga_)
        assert isinstance(failure.value.__cause__, DefinitionError)
        assert await packed(engine.store) == []


@pytest.mark.parametrize("raises", [False, True])
async def test_a_transaction_that_has_ended_takes_no_more(lab: Lab, raises: bool) -> None:
    kept: list[StepTransaction] = []

    async def act(ctx: StepContext[Any]) -> None:
        kept.append(ctx.transaction)
        if raises:
            raise ValueError("no")

    saga_ = declared(act)
    async with lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError) if raises else nullcontext():
            await engine.execute(saga_)
        with pytest.raises(DefinitionError, match="'parcel-1': the step's transaction has ended"):
            await kept[0].append("parcel-1", Packed(1))


async def test_more_than_a_store_takes_at_once_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "LARGEST", 100)

    async def act(ctx: StepContext[Any]) -> None:
        for n in range(20):
            await ctx.transaction.append(f"parcel-{n}", Packed(n))

    saga_ = declared(act)
    async with lab.engine(saga_) as engine:
        with pytest.raises(SagaFailedError, match="bytes of JSON in one transaction, which takes 100"):
            await engine.execute(saga_)
        assert await packed(engine.store, "parcel-0") == []


async def test_what_a_thread_has_ready_when_the_action_has_ended_is_refused(lab: Lab) -> None:
    """Nobody is told that it was appended where it was not."""
    held, ended = threading.Event(), threading.Event()
    told: list[Any] = []

    class Slow(Mapping[str, Any]):
        """Is read while the action ends."""

        def __iter__(self) -> Iterator[str]:
            held.set()
            ended.wait(30)
            return iter({"actor": "ann"})

        def __len__(self) -> int:
            return 1

        def __getitem__(self, _: str) -> str:
            return "ann"

    async def act(ctx: StepContext[Any]) -> None:
        transaction = ctx.transaction

        def late() -> None:
            try:
                asyncio.run(transaction.append("parcel-1", Packed(1), metadata=Slow()))
            except DefinitionError as error:
                told.append(error)

        threads.append(threading.Thread(target=late))
        threads[0].start()
        await asyncio.to_thread(held.wait, 30)

    threads: list[threading.Thread] = []
    saga_ = declared(act)
    async with lab.engine(saga_) as engine:
        await engine.execute(saga_)
        ended.set()
        await asyncio.to_thread(threads[0].join)
        assert await packed(engine.store) == []
    assert len(told) == 1
