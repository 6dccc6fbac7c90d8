"""A store is copied to another backend, and engines go on there as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.copying.copier import LEASE, staying
from tests.integration.copying.kit import Life, Noted, Notes, sleeper, undone, upgraded, waiter

from event_workflow_engine import SagaFailedError, Task, WorkflowEngine, WorkflowState
from event_workflow_engine.errors import StoreInUseError, StoreNotEmptyError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.copying import copy_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.copying.kit import Stores

    from event_workflow_engine.storage import Storage

ROOT = Path(__file__).parents[3]
AWKWARD = "ü \U0001f6b2 ' \" \\ \n \x01 \u2028 {} %s $1 :name"
WAYS = [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "sqlite"), ("postgres", "postgres")]
IDS = ["s-1", "w-1", "w-2", "u-1"]

pytestmark = [pytest.mark.timeout(90), pytest.mark.slow]


async def fill(storage: Storage) -> None:
    """A month's beginning: a saga that sleeps, two that wait, one that failed; notes, read models and a task."""
    life = Life()
    async with life.engine(storage, days=0) as engine:
        await engine.start(sleeper, AWKWARD, id="s-1")
        await engine.start(waiter, "w", id="w-1")
        await engine.start(waiter, "w", id="w-2")
        with pytest.raises(SagaFailedError):
            await engine.execute(undone, "u", id="u-1")
        for n in range(150):
            await engine.store.append(f"notes-{n % 7}", [Noted(AWKWARD, f"{n}"), Noted("other", f"{n}")])
        await engine.scheduler.schedule(Task.call(life.remind), delay=timedelta(days=25))
        position = await storage.last_position()
        await engine.projections.wait_for(life.notes, position)
        await engine.projections.wait_for(life.lines, position)


async def histories(storage: Storage) -> dict[str, Any]:
    engine = Life().engine(storage, days=0)
    return {one: list(await engine.handle(one).history()) for one in IDS}


@pytest.mark.parametrize(("there", "here"), WAYS)
async def test_all_goes_on_at_the_target(new_url: Stores, there: str, here: str) -> None:
    source, target = await upgraded(new_url(there)), await upgraded(new_url(here))
    async with source:
        await fill(source)
        copied = await copy_store(source, target)
        assert copied.events == sum([r.count for r in await source.read_log(limit=100_000)])
        assert copied.starting_anew == ("copied-lines",)
        assert (copied.rows["sagas"], copied.rows["schedules"], copied.rows["documents"]) == (4, 1, 4)
        async with target:
            assert await target.last_position() == await source.last_position()
            assert await target.read_log(limit=100_000) == await source.read_log(limit=100_000)
            was = await histories(source)
            assert await histories(target) == was
            assert all(len(events) > 2 for events in was.values())

    life = Life()
    async with target, life.engine(target, days=1) as engine:
        assert await engine.projections.get(life.notes, AWKWARD) == Notes([f"{n}" for n in range(150)])
        await engine.handle("w-1").signal("go", "gone")
        assert await engine.handle("w-1", waiter).result(timeout=20) == "gone"
        assert await engine.handle("s-1").status() is WorkflowState.RUNNING
        assert await engine.handle("u-1").status() is WorkflowState.FAILED
        assert not life.reminded.is_set()
        # The document goes on where it was; the tables, which were left behind, are filled from the beginning.
        written = await engine.store.append("notes-0", [Noted(AWKWARD, "new")])
        assert min(written.positions) > copied.position
        await engine.projections.wait_for(life.notes, written.positions[-1])
        await engine.projections.wait_for(life.lines, written.positions[-1])
        inline = await engine.projections.get(life.inline, AWKWARD)
        assert inline == Notes([*(f"{n}" for n in range(150)), "new"])
        # PostgreSQL may judge a batch again, with what it lacked.
        assert life.folded == ["new"]
        assert set(life.folded_inline) == {"new"}
        (count,) = await engine.projections.fetch(life.lines, "SELECT count(*) AS n FROM {lines}")
        assert count["n"] == 301

    async with target, life.engine(target, days=31) as engine:
        assert await engine.handle("s-1", sleeper).result(timeout=20) == f"{AWKWARD}, awake"
        with pytest.raises(SagaFailedError) as timed_out:
            await engine.handle("w-2", waiter).result(timeout=20)
        assert timed_out.value.status is WorkflowState.COMPENSATED
        async with asyncio.timeout(20):
            await life.reminded.wait()
        assert life.folded == ["new"]


@pytest.mark.parametrize(("there", "here"), WAYS[:2])
async def test_a_copy_back_is_the_same_store(new_url: Stores, there: str, here: str) -> None:
    source, target, back = [await upgraded(new_url(backend)) for backend in (there, here, there)]
    async with source, target, back:
        await fill(source)
        copied = await copy_store(source, target)
        again = await copy_store(target, back)
        assert again.checksum == copied.checksum
        assert again == type(copied)(
            **{name: getattr(copied, name) for name in copied.__struct_fields__} | {"starting_anew": ()}
        )
        # And so is another copy of the source, which was left as it was.
        assert await copy_store(source, await upgraded(new_url(here))) == copied


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.integration.copying.copier", *arguments]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.proves("copied", kills=1)
@pytest.mark.parametrize("when", ["first", "rows", "compared", "kept"])
@pytest.mark.parametrize(("there", "here"), WAYS[:2])
async def test_a_copy_that_is_killed_is_nothing_or_all(new_url: Stores, there: str, here: str, when: str) -> None:
    urls = new_url(there), new_url(here)
    source, target = [await upgraded(url) for url in urls]
    async with source:
        await fill(source)
    with process(*urls, when) as child:
        _, said = await asyncio.to_thread(child.communicate)
        assert child.returncode == -signal.SIGKILL, said
    if when == "kept":
        with pytest.raises(StoreNotEmptyError, match="earlier copy"):
            await copy_store(source, target)
        async with source, target:
            assert await histories(target) == await histories(source)
            assert await target.last_position() == await source.last_position()
        return
    async with target:
        assert await target.read_log() == []
        assert await target.query("sagas_page", state=None, saga=None, after="", limit=9) == []
    copied = await copy_store(source, target)
    assert copied.rows["sagas"] == 4


@pytest.mark.parametrize("there", ["sqlite", "postgres"])
async def test_workers_must_have_ended_and_one_that_was_killed_has(new_url: Stores, tmp_path: Path, there: str) -> None:
    file = tmp_path / "target.db"
    url, target = new_url(there), f"sqlite:///{file}"
    with process(url, EWE_TEST_STAY="1") as child:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == "in\n"
        with pytest.raises(StoreInUseError, match=rf"pid {child.pid} on .*: stop them") as refused:
            await copy_store(open_storage(url), open_storage(target), lease=LEASE)
        assert len(refused.value.workers) == 1
        assert not os.path.exists(file)  # noqa: ASYNC240, PTH110 - nobody waits for it
        child.kill()
        await asyncio.to_thread(child.wait)
        # Its row says to this day that it lives, and that it owns a saga.
        async with open_storage(url) as source:
            assert len(await source.query("live_workers")) == 1
            await copy_store(source, open_storage(target), lease=LEASE)
            (row,) = await source.query("sagas_by_ids", ids='["s-1"]')
            assert row["owner"] == refused.value.workers[0]
    async with WorkflowEngine(target) as engine:
        engine.register(staying)
        assert await engine.handle("s-1", staying).result(timeout=20) == {"arrive": os.getpid()}
