"""Async projections fold each event once, whenever their worker dies; all modes come to the same."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration.projections.kit import POISON, Added, Cable, Dropped, Noise, Sum, book, expected, sums

from event_workflow_engine import WorkflowEngine
from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from event_workflow_engine import DocumentProjection
    from event_workflow_engine.storage.port import Storage

LOG = [Added(f"k{n % 5}", n) for n in range(40)]
WORKER = Path(__file__).with_name("worker.py")


async def everything(engine: WorkflowEngine, projection: DocumentProjection[Sum]) -> dict[str, Sum]:
    return {one.key: one for one in await engine.projections.find(projection, limit=10_000)}


@pytest.mark.parametrize("lands", [False, True])
@pytest.mark.parametrize("after", range(6))
async def test_a_worker_that_dies_at_any_write_leaves_each_event_folded_once(
    storage: Storage, after: int, lands: bool
) -> None:
    cable = Cable(storage, after=None, lands=lands)
    for one in LOG[:20]:
        await storage_append(storage, one)
    doomed = WorkflowEngine(cable)  # type: ignore[arg-type]
    async with doomed:
        cable._left = after
        doomed.projections.register(sums(), book())
        async with asyncio.timeout(10):
            for one in LOG[20:]:
                if cable.is_cut.is_set():
                    break
                await storage_append(storage, one)
            await cable.is_cut.wait()
    async with WorkflowEngine(storage) as engine:
        documents, rows = sums(), book()
        engine.projections.register(documents, rows)
        end = await engine.storage.last_position()
        await engine.projections.wait_for(documents, end)
        await engine.projections.wait_for(rows, end)
        log = [one.data async for one in engine.store.read_all()]
        assert await everything(engine, documents) == expected(log)
        assert (await engine.projections.status(documents)).events == len(log)
        booked = await engine.projections.fetch(rows, "SELECT amount FROM {lines} ORDER BY rowid")
        assert [row["amount"] for row in booked] == [one.amount for one in log]


async def storage_append(storage: Storage, event: Any) -> None:
    async with WorkflowEngine(storage) as engine:
        await engine.store.append(f"sum-{event.key}", event)


async def test_a_killed_process_leaves_each_event_folded_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/killed.db"
    async with open_storage(url) as storage, WorkflowEngine(storage) as engine:
        for round_ in range(4):
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(WORKER), url, stdout=asyncio.subprocess.PIPE, env={**os.environ}
            )
            assert process.stdout is not None
            async with asyncio.timeout(30):
                await process.stdout.readline()  # it is up, and folds what it appends
                for _ in range(round_ * 3 + 1):
                    await process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            await process.wait()
        projections = sums("killed"), sums("killed-inline", "inline"), sums("killed-live", "live")
        rows = book("killed-book")
        engine.projections.register(*projections, rows)
        end = await storage.last_position()
        log = [one.data async for one in engine.store.read_all(types=[Added, Dropped])]
        for one in (*projections, rows):
            await engine.projections.wait_for(one, end, timeout=60)
        for projection in projections:
            assert await everything(engine, projection) == expected(log), projection.name
        booked = await engine.projections.fetch(rows, "SELECT count(*) AS n, sum(amount) AS total FROM {lines}")
        added = [one.amount for one in log if isinstance(one, Added)]
        assert booked == [{"n": len(added), "total": sum(added)}]


async def test_two_engines_on_one_file_have_one_owner_and_the_other_takes_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/two.db"
    async with WorkflowEngine(url) as other:
        theirs = sums()
        async with WorkflowEngine(url) as owner:
            mine = sums()
            owner.projections.register(mine)
            await owner.projections.wait_for(mine, (await owner.store.append("s-1", LOG[:10])).positions[-1])
            other.projections.register(theirs)
            position = (await other.store.append("s-1", LOG[10:20])).positions[-1]
            await other.projections.wait_for(theirs, position)
            with pytest.raises(EngineStateError, match="fed by another worker"):
                await other.projections.rebuild(theirs)
            assert await everything(other, theirs) == expected(LOG[:20])
            # What other types it has passed, the owner knows in memory alone.
            noise = (await owner.store.append("s-2", Noise())).positions[-1]
            await other.projections.wait_for(theirs, noise)
        position = (await other.store.append("s-1", LOG[20:])).positions[-1]
        await other.projections.wait_for(theirs, position)
        assert await everything(other, theirs) == expected(LOG)
        assert (await other.projections.status(theirs)).events == len(LOG)
        await other.projections.rebuild(theirs)
        assert await everything(other, theirs) == expected(LOG)


amounts = st.integers(0, 9) | st.just(POISON)
events = st.one_of(
    st.builds(Added, st.sampled_from("abc"), amounts),
    st.builds(Added, st.sampled_from("abc"), st.integers(0, 9)),
    st.builds(Dropped, st.sampled_from("abc")),
)


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
@settings(max_examples=25)
@given(st.lists(st.lists(events, min_size=1, max_size=4), max_size=10), st.integers(0, 10))
def test_all_modes_come_to_the_same(scheme: str, batches: list[list[Added | Dropped]], late: int) -> None:
    async def run(url: str) -> None:
        async with WorkflowEngine(url) as engine:
            projections = [sums("one"), sums("two", "inline"), sums("three", "live")]
            for number, batch in enumerate(batches):
                if number == late:
                    engine.projections.register(*projections)
                await engine.store.append(f"s-{number % 2}", batch)
            engine.projections.register(*projections)
            end = await engine.storage.last_position()
            wanted = expected([one for batch in batches for one in batch])
            for projection in projections:
                await engine.projections.wait_for(projection, end)
                assert await everything(engine, projection) == wanted, projection.mode
                for key in "abc":
                    assert await engine.projections.get(projection, key) == wanted.get(key)
            one, two = [await engine.projections.status(projection) for projection in projections[:2]]
            assert (one.events, one.parked) == (two.events, two.parked)

    with TemporaryDirectory() as folder:
        asyncio.run(run("memory://" if scheme == "memory" else f"sqlite:///{folder}/modes.db"))
