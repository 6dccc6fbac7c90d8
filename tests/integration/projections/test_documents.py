"""Document projections: async, inline and live; poison, rebuilds, reading, waiting, status."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.projections.kit import POISON, Added, Dropped, Noise, Sum, book, expected, fold, sums

from event_workflow_engine import DocumentProjection, Saga, SagaStep, WorkflowEngine, current_event
from event_workflow_engine._projections import running
from event_workflow_engine.errors import DefinitionError, EngineStateError, NotRegisteredError, WorkflowError
from event_workflow_engine.history import SagaCompleted, StepSucceeded

if TYPE_CHECKING:
    from event_workflow_engine.projections import Mode
    from event_workflow_engine.storage.port import Storage

MODES = ("async", "inline", "live")


async def put(engine: WorkflowEngine, *events: Any, stream: str | None = None) -> int:
    """Append each event to the stream of its key; the last position."""
    position = 0
    for one in events:
        done = await engine.store.append(stream or f"sum-{getattr(one, 'key', 'none')}", one)
        position = done.positions[-1]
    return position


async def everything(engine: WorkflowEngine, projection: DocumentProjection[Sum]) -> dict[str, Sum]:
    return {one.key: one for one in await engine.projections.find(projection, limit=10_000)}


@pytest.mark.parametrize("mode", MODES)
async def test_documents_are_folds_of_their_keys_events(engine: WorkflowEngine, mode: Mode) -> None:
    projection = sums(mode=mode)
    engine.projections.register(projection)
    events = [Added("a", 1), Added("b", 5), Added("a", 2), Dropped("b"), Added("c", 3), Dropped("c"), Added("c", 4)]
    await engine.projections.wait_for(projection, await put(engine, *events, Noise()))
    assert await everything(engine, projection) == expected(events)
    assert await engine.projections.get(projection, "a") == Sum("a", 3, [1, 2])
    assert await engine.projections.get(projection, "b") is None


async def test_what_was_passed_of_other_types_is_on_disk_soon(
    engine: WorkflowEngine, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks from outside sees no events waiting where none do."""
    monkeypatch.setattr(running, "_LEVEL_S", 0.02)
    projection = sums()
    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("a", 1)))
    last = await put(engine, Noise(), Noise())
    written = asyncio.Event()
    remove = storage.add_bell(written.set)
    async with asyncio.timeout(10):
        while (await storage.query("checkpoints_all"))[0]["position"] < last:
            await written.wait()
            written.clear()
    remove()


async def test_inline_is_there_when_the_append_returns(engine: WorkflowEngine) -> None:
    projection = sums(mode="inline")
    engine.projections.register(projection)
    assert await engine.projections.get(projection, "a") is None
    for n in range(20):
        await engine.store.append("sum-a", [Added("a", n), Added("a", n)])
        document = await engine.projections.get(projection, "a")
        assert document is not None
        assert len(document.events) == 2 * n + 2


async def test_inline_folds_in_commit_order(engine: WorkflowEngine) -> None:
    projection = sums(mode="inline")
    engine.projections.register(projection)
    await asyncio.gather(*(engine.store.append(f"s-{n % 7}", Added("a", n)) for n in range(200)))
    document = await engine.projections.get(projection, "a")
    assert document is not None
    order = [one.data.amount async for one in engine.store.read_all()]
    assert document.events == order


async def test_an_inline_fold_that_raises_parks_its_key_and_nothing_else(engine: WorkflowEngine) -> None:
    async def act() -> int:
        await engine.store.append("sum-a", Added("a", POISON))
        return 1

    saga = Saga("projection-test-poison", [SagaStep("act", act)])
    engine.register(saga)
    projection = sums(mode="inline")
    facts = DocumentProjection("facts", Sum, mode="inline")

    @facts.on(SagaCompleted, key=lambda event: "all")
    def never(document: Sum | None, event: SagaCompleted) -> Sum:
        raise RuntimeError("this fold always raises")

    engine.projections.register(projection, facts)
    await put(engine, Added("a", 1))
    assert (await engine.execute(saga))["act"] == 1
    await put(engine, Added("a", 2), Added("b", 7))
    assert await everything(engine, projection) == {"a": Sum("a", 1, [1]), "b": Sum("b", 7, [7])}
    status = await engine.projections.status(projection)
    assert (status.events, status.parked) == (2, 2)
    assert (await engine.projections.status(facts)).parked == 1


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_a_document_that_cannot_be_stored_is_poison(engine: WorkflowEngine, mode: Mode) -> None:
    projection: DocumentProjection[Any] = DocumentProjection("odd", Sum, mode=mode)
    projection.on(Added, key=lambda event: event.key)(
        lambda document, event: object() if event.amount == POISON else fold(document, event)
    )
    engine.projections.register(projection)
    position = await put(engine, Added("a", 1), Added("a", POISON), Added("a", 3), Added("b", 4))
    await engine.projections.wait_for(projection, position)
    assert await everything(engine, projection) == {"a": Sum("a", 1, [1]), "b": Sum("b", 4, [4])}
    assert (await engine.projections.status(projection)).parked == 2


async def test_strict_fails_the_append(engine: WorkflowEngine) -> None:
    projection = sums(mode="inline")
    engine.projections.register(projection)
    await engine.projections.get(projection, "a")
    with pytest.raises(WorkflowError, match="'sums' cannot fold 'projection-test-added' for key 'a'"):
        await engine.store.append("sum-a", Added("a", POISON), strict=True)
    await engine.store.append("sum-a", Added("a", 1), strict=True)
    assert await everything(engine, projection) == {"a": Sum("a", 1, [1])}
    assert [one.data async for one in engine.store.read_all()] == [Added("a", 1)]


async def test_inline_registered_late_catches_up_and_turns_inline(engine: WorkflowEngine) -> None:
    before = [Added(f"k{n % 10}", n) for n in range(2500)]
    await engine.store.append("sum-all", before)
    projection = sums(mode="inline")
    engine.projections.register(projection)
    more = [Added("k1", 1), Added("new", 2)]
    await put(engine, *more)
    assert await everything(engine, projection) == expected([*before, *more])
    await engine.store.append("sum-all", Added("k1", 9))
    document = await engine.projections.get(projection, "k1")
    assert document is not None
    assert document.events[-2:] == [1, 9]


async def test_inline_sees_what_was_committed_without_it(storage: Storage) -> None:
    projection = sums(mode="inline")
    async with WorkflowEngine(storage) as engine:
        engine.projections.register(projection)
        await engine.projections.get(projection, "a")
        await put(engine, Added("a", 1))
    storage.set_inline_folder(None)
    async with WorkflowEngine(storage) as engine:
        await put(engine, Added("a", 2))
        engine.projections.register(projection)
        await put(engine, Added("a", 3))
        assert await everything(engine, projection) == {"a": Sum("a", 6, [1, 2, 3])}
        await put(engine, Added("a", 4))
        assert await everything(engine, projection) == {"a": Sum("a", 10, [1, 2, 3, 4])}


async def test_inline_keeps_on_over_a_restart(storage: Storage) -> None:
    events = [Added("a", n) for n in range(5)]
    for one in events:
        projection = sums(mode="inline")
        engine = WorkflowEngine(storage)
        engine.projections.register(projection)
        async with engine:
            await put(engine, one)
            document = await engine.projections.get(projection, "a")
            assert document is not None
            assert document.events[-1] == one.amount
    assert document.events == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_retry_parked_folds_in_order_when_the_fold_is_mended(engine: WorkflowEngine, mode: Mode) -> None:
    broken = True
    projection = DocumentProjection("mended", Sum, mode=mode)

    @projection.on(Added, key=lambda event: event.key)
    def add(document: Sum | None, event: Added) -> Sum:
        if broken and event.amount == POISON:
            raise ValueError("poison")
        before = document or Sum(event.key)
        return Sum(event.key, before.total + event.amount, [*before.events, event.amount])

    engine.projections.register(projection)
    events = [Added("a", 1), Added("a", POISON), Added("a", 2), Added("b", POISON)]
    await engine.projections.wait_for(projection, await put(engine, *events))
    assert (await engine.projections.status(projection)).parked == 3
    with pytest.raises(ValueError, match="poison"):
        await engine.projections.retry_parked(projection, "a")
    assert (await engine.projections.status(projection)).parked == 3
    broken = False
    assert await engine.projections.retry_parked(projection, "nothing") == 0
    assert await engine.projections.retry_parked(projection, "a") == 2
    assert (await engine.projections.status(projection)).parked == 1
    assert await engine.projections.retry_parked(projection) == 1
    await engine.projections.wait_for(projection, await put(engine, Added("a", 3)))
    assert await everything(engine, projection) == {
        "a": Sum("a", 6 + POISON, [1, POISON, 2, 3]),
        "b": Sum("b", POISON, [POISON]),
    }
    status = await engine.projections.status(projection)
    assert (status.events, status.parked) == (5, 0)


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_an_event_whose_key_raises_is_retried_under_the_key_it_has_then(
    engine: WorkflowEngine, mode: Mode
) -> None:
    broken = True
    projection = DocumentProjection("keyed", Sum, mode=mode)

    def key(event: Added) -> str:
        if broken and event.amount == POISON:
            raise KeyError(event.key)
        return event.key

    projection.on(Added, key=key)(lambda document, event: Sum(event.key, (document or Sum("")).total + event.amount))
    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("a", 1), Added("a", POISON)))
    assert await everything(engine, projection) == {"a": Sum("a", 1)}
    broken = False
    assert await engine.projections.retry_parked(projection) == 1
    assert await everything(engine, projection) == {"a": Sum("a", 1 + POISON)}


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_an_event_changes_a_document_as_a_whole_or_not(engine: WorkflowEngine, mode: Mode) -> None:
    broken = True
    projection = DocumentProjection("twice", Sum, mode=mode)
    projection.on(Added, key=lambda event: event.key)(fold)

    @projection.on(Added, key=lambda event: event.key)
    def second(document: Sum | None, event: Added) -> Sum | None:
        if broken and event.amount == 2:
            raise ValueError("poison")
        return document

    @projection.on(Added, key=lambda event: "other")
    def other(document: Sum | None, event: Added) -> Sum:
        return fold(document, Added("other", event.amount))

    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("a", 1), Added("a", 2)))
    assert await everything(engine, projection) == {"a": Sum("a", 1, [1]), "other": Sum("other", 3, [1, 2])}
    broken = False
    await engine.projections.retry_parked(projection)
    assert await everything(engine, projection) == {"a": Sum("a", 3, [1, 2]), "other": Sum("other", 3, [1, 2])}


@pytest.mark.parametrize("mode", ["async", "inline"])
@pytest.mark.parametrize("key", ["nul\0", "\ud800", "k" * 2001, "ß" * 1001, "schlüssel" * 300], ids=ascii)
async def test_a_key_that_cannot_be_stored_is_parked_and_others_go_on(
    engine: WorkflowEngine, mode: Mode, key: str
) -> None:
    """What no store can look up stops nothing but itself, and is there once the key function was mended."""
    made: list[str] = []
    projection = DocumentProjection("sums", Sum, mode=mode)
    projection.on(Added, key=lambda event: key if event.key == "odd" and not made else event.key)(fold)
    engine.projections.register(projection)
    await engine.store.append("sum-a", [Added("odd", 1), Added("even", 2)])
    landed = await engine.store.append("sum-a", [Added("odd", 3)])
    await engine.projections.wait_for(projection, landed.positions[-1])
    assert await engine.projections.get(projection, "even") == Sum("even", 2, [2])
    assert (await engine.projections.status(projection)).parked == 2
    made.append("mended")
    await engine.projections.retry_parked(projection)
    assert await engine.projections.get(projection, "odd") == Sum("odd", 4, [1, 3])
    assert (await engine.projections.status(projection)).parked == 0


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_an_error_whose_text_cannot_be_stored_parks_like_another(engine: WorkflowEngine, mode: Mode) -> None:
    """The message is a user's or a driver's: nobody says that a store can hold it."""

    def refuse(document: Sum | None, event: Added) -> Sum:
        raise ValueError("nul \0")

    projection = DocumentProjection("sums", Sum, mode=mode)
    projection.on(Added, key=lambda event: event.key)(refuse)
    engine.projections.register(projection)
    landed = await engine.store.append("sum-a", [Added("k", 1)])
    await engine.projections.wait_for(projection, landed.positions[-1])
    assert (await engine.projections.status(projection)).parked == 1


async def test_a_fold_that_changes_what_it_is_given_and_raises_leaves_no_trace(engine: WorkflowEngine) -> None:
    projection = DocumentProjection("rude", Sum)

    @projection.on(Added, key=lambda event: event.key)
    def rude(document: Sum | None, event: Added) -> Sum:
        document = document or Sum(event.key)
        document.total += event.amount
        if event.amount == POISON:
            raise ValueError("poison")
        return document

    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, Added("a", 1), Added("a", POISON)))
    assert await everything(engine, projection) == {"a": Sum("a", 1)}


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_rebuild_while_appends_go_on(engine: WorkflowEngine, mode: Mode) -> None:
    factor = 1
    projection = DocumentProjection("rebuilt", Sum, mode=mode)

    @projection.on(Added, key=lambda event: event.key)
    def add(document: Sum | None, event: Added) -> Sum:
        return Sum(event.key, (document or Sum("")).total + factor * event.amount)

    engine.projections.register(projection)
    await engine.store.append("sum-a", [Added("a", 1) for _ in range(3000)])
    await engine.projections.get(projection, "a")
    factor, count, going = 10, 3000, True

    async def keep_appending(stream: str) -> None:
        nonlocal count
        while going:
            await engine.store.append(stream, Added("a", 1))
            count += 1

    writers = [asyncio.create_task(keep_appending(f"sum-{n}")) for n in range(5)]
    async with asyncio.timeout(20):
        await engine.projections.rebuild(projection)
    going = False
    await asyncio.gather(*writers)
    await engine.projections.wait_for(projection, await engine.storage.last_position())
    assert await everything(engine, projection) == {"a": Sum("a", 10 * count)}
    assert (await engine.projections.status(projection)).events == count


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_a_higher_version_is_rebuilt_and_a_lower_one_leaves_it(storage: Storage, mode: Mode) -> None:
    async with WorkflowEngine(storage) as engine:
        engine.projections.register(old := sums(mode=mode))
        await engine.projections.wait_for(old, await put(engine, Added("a", 1), Added("a", POISON)))

    new = DocumentProjection("sums", Sum, mode=mode, version=2)
    new.on(Added, key=lambda event: event.key)(lambda document, event: Sum(event.key, 1000))
    async with WorkflowEngine(storage) as engine:
        engine.projections.register(new)
        await engine.projections.wait_for(new, await engine.storage.last_position())
        assert await everything(engine, new) == {"a": Sum("a", 1000)}
        assert (await engine.projections.status(new)).parked == 0
    async with WorkflowEngine(storage) as engine:
        engine.projections.register(old)
        with pytest.raises(TimeoutError):
            await engine.projections.wait_for(old, await put(engine, Added("b", 1)), timeout=0.01)
        assert await everything(engine, old) == {"a": Sum("a", 1000)}


@pytest.mark.parametrize("mode", MODES)
async def test_find(engine: WorkflowEngine, mode: Mode) -> None:
    projection: DocumentProjection[dict[str, Any]] = DocumentProjection("found", dict[str, Any], mode=mode)  # type: ignore[arg-type]
    projection.on(Noise, key=lambda event: event.text)(lambda document, event: documents[event.text])
    documents: dict[str, dict[str, Any]] = {
        "a": {"id": "a", "n": 1, "flag": True, "tag": None},
        "b": {"id": "b", "n": 1.0, "flag": 1, "tag": "x"},
        "c": {"id": "c", "n": 3, "flag": False},
        "d": {"id": "d", "n": "text", "flag": None, "tag": "x"},
        "e": {"id": "e", "flag": 0},
    }
    engine.projections.register(projection)
    await engine.projections.wait_for(projection, await put(engine, *map(Noise, documents)))

    async def ids(where: dict[str, Any] | None = None, **options: Any) -> str:
        return "".join(one["id"] for one in await engine.projections.find(projection, where, **options))

    assert await ids() == "abcde"
    assert await ids({"n": 1}) == "ab"
    assert await ids({"flag": True}) == "a"
    assert await ids({"flag": 1}) == "b"
    assert await ids({"tag": None}) == "a"
    assert await ids({"tag": "x", "n": "text"}) == "d"
    assert await ids({"none": 1}) == ""
    assert await ids(order_by="n") == "eabcd"
    assert await ids(order_by="-n") == "dcabe"
    assert await ids(order_by="-n", limit=2, offset=1) == "ca"
    assert await ids(limit=2) == "ab"
    assert await ids(offset=3) == "de"
    assert await ids(limit=0) == ""
    with pytest.raises(DefinitionError, match="limit=-1"):
        await ids(limit=-1)


async def test_wait_for_and_status(engine: WorkflowEngine) -> None:
    projection = sums()
    engine.projections.register(projection)
    position = await put(engine, Added("a", 1), Noise(), Noise())
    await engine.projections.wait_for(projection, position)
    status = await engine.projections.status(projection)
    events = [one async for one in engine.store.read_all()]
    assert (status.events, status.last_event_id, status.position) == (1, events[0].id, position)
    assert (status.lag_events, status.lag, status.parked, status.saga_id) == (0, timedelta(), 0, None)
    with pytest.raises(TimeoutError, match=f"'sums' has not reached position {position + 1} within 0.01 s"):
        await engine.projections.wait_for(projection, position + 1, timeout=timedelta(milliseconds=10))
    await asyncio.gather(
        *(engine.projections.wait_for(projection, position + 1) for _ in range(5)), put(engine, Noise())
    )


async def test_facts_of_sagas_in_packed_records(engine: WorkflowEngine) -> None:
    async def act() -> str:
        return "done"

    saga = Saga("projection-test-facts", [SagaStep("act", act)])
    engine.register(saga)
    projections = [DocumentProjection(f"facts-{mode}", Sum, mode=mode) for mode in MODES]  # type: ignore[arg-type]
    for projection in projections:

        @projection.on(StepSucceeded, key=lambda event: "steps")
        @projection.on(SagaCompleted, key=lambda event: "sagas")
        def count(document: Sum | None, event: StepSucceeded | SagaCompleted) -> Sum:
            return Sum(type(event).__name__, (document or Sum("")).total + 1)

    engine.projections.register(*projections)
    for number in range(5):
        await engine.execute(saga, id=f"saga-{number}")
    for projection in projections:
        await engine.projections.wait_for(projection, await engine.storage.last_position())
        assert await everything(engine, projection) == {
            "SagaCompleted": Sum("SagaCompleted", 5),
            "StepSucceeded": Sum("StepSucceeded", 5),
        }
        if projection.mode != "live":
            status = await engine.projections.status(projection)
            assert (status.events, status.saga_id, status.lag) == (10, "saga-4", timedelta())


async def test_what_is_not_registered_or_not_running(engine: WorkflowEngine) -> None:
    projection = sums()
    for call in (engine.projections.get(projection, "a"), engine.projections.find(projection)):
        with pytest.raises(NotRegisteredError, match="'sums' is not registered"):
            await call
    engine.projections.register(projection)
    engine.projections.register(projection)
    with pytest.raises(DefinitionError, match="'sums' is registered already"):
        engine.projections.register(sums())
    idle = WorkflowEngine("memory://")
    idle.projections.register(projection)
    with pytest.raises(EngineStateError, match="enter the engine first"):
        await idle.projections.wait_for(projection, 1)


@pytest.mark.parametrize("registered", ["before", "inside"])
async def test_strict_holds_from_the_first_append_on(storage: Storage, registered: str) -> None:
    for life in range(2):
        projection, engine = sums("strict", "inline"), WorkflowEngine(storage)
        if registered == "before":
            engine.projections.register(projection)
        async with engine:
            if registered == "inside":
                engine.projections.register(projection)
            with pytest.raises(WorkflowError, match="cannot fold"):
                await engine.store.append(f"sum-{life}", Added("a", POISON), strict=True)
            assert await engine.store.head(f"sum-{life}") == 0
            await engine.store.append(f"sum-{life}", Added("b", 1), strict=True)


@pytest.mark.parametrize("mode", ["async", "inline"])
async def test_a_parked_key_is_told_in_the_log(
    engine: WorkflowEngine, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    projection = sums("told", mode)
    engine.projections.register(projection)
    await engine.store.append("sum-a", Added("a", 1))
    landed = await engine.store.append("sum-a", [Added("a", POISON), Added("a", 2)])
    await engine.projections.wait_for(projection, landed.positions[-1])
    (record,) = [record for record in caplog.records if record.name == "event_workflow_engine.projections"]
    assert "projection told parks key 'a'" in record.getMessage()
    assert "ValueError: poison" in record.getMessage()


def test_a_fold_must_be_sync_and_a_sql_handler_async() -> None:
    with pytest.raises(DefinitionError, match="'sums': the fold slow is async"):

        @sums().on(Added, key=lambda event: event.key)
        async def slow(document: Sum | None, event: Added) -> Sum | None:  # type: ignore[arg-type]
            return document

    with pytest.raises(DefinitionError, match="'book': the handler plain is not async"):

        @book().on(Added)
        def plain(transaction: Any, event: Added) -> None:  # type: ignore[arg-type]
            return None


async def test_a_projection_is_asked_for_by_itself_not_by_its_name(engine: WorkflowEngine) -> None:
    with pytest.raises(DefinitionError, match="'sums' is no projection"):
        await engine.projections.get("sums", "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
async def test_the_whole_event_is_at_hand_in_keys_and_folds(engine: WorkflowEngine, mode: Mode) -> None:
    projection = DocumentProjection("whole", Sum, mode=mode)

    @projection.on(Added, key=lambda event: current_event().stream)
    def at(document: Sum | None, event: Added) -> Sum:
        return Sum(
            current_event().stream, event.amount, [*(document.events if document else []), current_event().version]
        )

    engine.projections.register(projection)
    landed = await engine.store.append("sum-a", [Added("x", 1), Added("y", 2)])
    await engine.projections.wait_for(projection, landed.positions[-1])
    assert await engine.projections.get(projection, "sum-a") == Sum("sum-a", 2, [1, 2])


def test_registering_on_an_entered_engine_needs_its_loop() -> None:
    """Refused before anything is half registered."""
    engine = WorkflowEngine("memory://")
    late = sums(mode="inline")

    async def entered() -> None:
        async with engine:
            with pytest.raises(DefinitionError, match="register it where its loop runs"):
                await asyncio.to_thread(engine.projections.register, late)
            assert engine.projections.registered == ()
            engine.projections.register(late)
            assert engine.projections.registered == (late,)

    asyncio.run(entered())
