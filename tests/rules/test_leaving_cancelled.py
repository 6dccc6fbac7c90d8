"""Who leaves an engine and is cancelled meanwhile keeps nothing from others, and need not wait for ever."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.runner import departure
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import Storage

RAN: Counter[str] = Counter()
FOR_EVER = 600.0
"""Of leases and timeouts that nothing may wait for."""
TURNS = (1, 2, 3, 5, 8, 13, 21, 34)
"""Of the loop, behind which a cancel comes: wherever leaving has got to by then."""


class Thread:
    """A sync action that goes on until the test lets it end, the first time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> str:
        RAN[self.name] += 1
        self.begun.set()
        assert self.may_end.wait(20)
        return self.name

    @property
    def saga(self) -> Saga[Any, Any]:
        return Saga(self.name, [SagaStep("act", self)])


async def hang() -> str:
    RAN["hang"] += 1
    if RAN["hang"] == 1:
        await asyncio.Event().wait()
    return "done"


hangs = Saga("hangs", [SagaStep("hang", hang)])


@pytest.fixture(autouse=True)
def anew() -> None:
    RAN.clear()


@pytest.fixture
def thread() -> Iterator[Thread]:
    made = Thread("thread")
    yield made
    made.may_end.set()


def patient(storage: Storage | str, *sagas: Saga[Any, Any], **config: Any) -> WorkflowEngine:
    """An engine that would take its time, and whose worker lives long wherever heartbeats tell."""
    engine = WorkflowEngine(storage, config=EngineConfig(**{"lease": FOR_EVER, "shutdown_timeout": FOR_EVER, **config}))
    engine.register(*sagas)
    return engine


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def cancelled(leaving: WorkflowEngine, first: int, *further: int) -> None:
    """Leave an engine and be cancelled, behind so many turns of the loop each time."""
    left = asyncio.create_task(leaving.__aexit__(None, None, None))
    for number in (first, *further):
        await turns(number)
        left.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([left])


def locks(folder: Path) -> int:
    return len(list(folder.glob("*-ewe-workers/*.lock")))


@pytest.mark.parametrize("first", TURNS)
@pytest.mark.parametrize("further", [(), (1,), (5,), (5, 5)], ids=["once", "twice", "later", "thrice"])
async def test_what_it_had_goes_on_at_once_elsewhere(lab: Lab, first: int, further: tuple[int, ...]) -> None:
    leaving = patient(lab.storage, hangs)
    async with lab.engine(hangs) as stays:
        await leaving.__aenter__()
        await leaving.start(hangs, id="h-1")
        await lab.until_fact(stays, "h-1", "step-started")
        await cancelled(leaving, first, *further)
        assert (await stays.handle("h-1", hangs).result(timeout=10))["hang"] == "done"
    async with leaving:  # which waits until it was left
        assert (await leaving.execute(hangs, id="h-2"))["hang"] == "done"


async def test_what_it_had_is_handed_over_and_no_interruption(lab: Lab) -> None:
    leaving = patient(lab.storage, hangs)
    async with lab.engine(hangs) as stays:
        await leaving.__aenter__()
        await leaving.start(hangs, id="h-1")
        await cancelled(leaving, 1)
        await stays.handle("h-1", hangs).result(timeout=10)
        facts = [event.data for event in await stays.handle("h-1").history()]
        assert "saga-handed-over" in await lab.facts(stays, "h-1")
        assert {fact.interruptions for fact in facts if hasattr(fact, "interruptions")} == {0}


@pytest.mark.parametrize("further", [(), (5,)], ids=["once", "twice"])
async def test_the_file_is_closed_and_no_lock_is_kept(tmp_path: Path, further: tuple[int, ...]) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    leaving, stays = patient(url, hangs), patient(url, hangs, shutdown_timeout=0)
    async with stays:
        await leaving.__aenter__()
        await leaving.start(hangs, id="h-1")
        await cancelled(leaving, 8, *further)
        await stays.handle("h-1", hangs).result(timeout=10)
        async with asyncio.timeout(10):
            while any(task.get_name() == "ewe-leaving" for task in asyncio.all_tasks()):  # noqa: ASYNC110 - as it says
                await asyncio.sleep(0)
        with pytest.raises(EngineStateError, match="is not open"):
            await leaving.storage.last_position()
        assert locks(tmp_path) == 1


async def test_only_sagas_with_code_in_threads_are_kept_and_only_until_that_has_ended(
    lab: Lab, thread: Thread, caplog: pytest.LogCaptureFixture
) -> None:
    """By heartbeats others do not see that it has ended, and wait for the lease."""
    beats = lab.storage.url.startswith("postgresql")
    one = thread.saga
    leaving = patient(lab.storage, one, hangs, shutdown_timeout=0, **({"lease": 0.7} if beats else {}))
    async with lab.engine(one, hangs) as stays:
        await leaving.__aenter__()
        await leaving.start(one, id="t-1")
        await asyncio.to_thread(thread.begun.wait, 10)
        await leaving.start(hangs, id="h-1")
        await cancelled(leaving, 1)
        await stays.handle("h-1", hangs).result(timeout=10)
        if not beats:
            assert RAN["thread"] == 1
            assert not (await lab.storage.get("sagas", ("t-1",)) or {})["ended_at"]
        thread.may_end.set()
        await stays.handle("t-1", one).result(timeout=10)
    assert RAN["thread"] == 2
    assert "leaving waits for code in threads" not in caplog.text


def join_left_behind() -> None:
    for one in threading.enumerate():
        if one.name == "ewe-left-behind":
            one.join(10)


async def test_code_that_waits_for_a_thread_does_not_begin_any_more(lab: Lab, thread: Thread) -> None:
    second = Thread("second")
    second.may_end.set()
    sagas = thread.saga, second.saga
    leaving = patient(lab.storage, *sagas, threads=1)
    await leaving.__aenter__()
    await leaving.start(sagas[0], id="t-1")
    await asyncio.to_thread(thread.begun.wait, 10)
    await leaving.start(sagas[1], id="s-1")
    await lab.until_fact(leaving, "s-1", "step-started")
    (worker,) = {run.kit.worker.id for run in leaving._keeper._runs.values()}
    await cancelled(leaving, 1)
    thread.may_end.set()
    await asyncio.to_thread(join_left_behind)
    assert RAN == {"thread": 1}
    assert (await lab.storage.get("workers", (worker,)) or {})["alive"] == 1, "nobody was there to see"


async def test_a_thread_that_outlives_the_loop_gives_its_saga_free(tmp_path: Path, thread: Thread) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    one = thread.saga

    async def come_and_go() -> None:
        leaving = patient(url, one)
        await leaving.__aenter__()
        await leaving.start(one, id="t-1")
        await asyncio.to_thread(thread.begun.wait, 10)
        await cancelled(leaving, 1)

    await asyncio.to_thread(asyncio.run, come_and_go())
    async with patient(url, one) as stays:
        assert RAN["thread"] == 1
        thread.may_end.set()
        await stays.handle("t-1", one).result(timeout=10)
    assert RAN["thread"] == 2


@pytest.mark.parametrize("first", TURNS)
@pytest.mark.parametrize("second", [1, 5, 13])
async def test_a_loop_that_ends_before_an_engine_was_left_keeps_nothing(
    tmp_path: Path, first: int, second: int
) -> None:
    """It cancels what is left to do, wherever that has got to."""
    url = f"sqlite:///{tmp_path / 'store.db'}"

    async def come_and_go() -> None:
        leaving = patient(url, hangs)
        await leaving.__aenter__()
        await leaving.start(hangs, id="h-1")
        while not RAN["hang"]:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        await cancelled(leaving, first, second)

    await asyncio.to_thread(asyncio.run, come_and_go())
    assert locks(tmp_path) == 0
    async with patient(url, hangs) as stays:
        assert (await stays.handle("h-1", hangs).result(timeout=10))["hang"] == "done"


@pytest.mark.parametrize("behind", TURNS)
async def test_what_ends_with_its_loop_has_not_failed(tmp_path: Path, behind: int) -> None:
    """A program that exits on a signal, by `sys.exit`, has its loop cancel all that runs: actions, and who leaves."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    undone: list[str] = []
    beside = Saga("beside", [SagaStep("a", hang, compensation=lambda: undone.append("a")), SagaStep("b", hang)])

    async def work() -> None:
        async with patient(url, beside) as leaving:
            await leaving.start(beside, id="b-1")
            while RAN["hang"] < len(beside.steps):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
            await turns(behind)
            asyncio.get_running_loop().call_soon(sys.exit)
            await asyncio.Event().wait()

    def program() -> None:
        with pytest.raises(SystemExit):
            asyncio.run(work())

    await asyncio.to_thread(program)
    assert locks(tmp_path) == 0
    async with patient(url, beside) as stays:
        assert (await stays.handle("b-1", beside).result(timeout=10))["a"] == "done"
    assert undone == []


async def test_handlers_get_no_more_time(lab: Lab) -> None:
    begun = asyncio.Event()

    async def handle(_: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    leaving = patient(lab.storage)
    leaving.bus.subscribe(str, handle)
    await leaving.__aenter__()
    await leaving.bus.publish("hello")
    await begun.wait()
    await cancelled(leaving, 100)
    async with leaving:
        (letter,) = await leaving.bus.dead_letters()
    assert letter.event.data == "hello"


class Silent:
    """A store that does not answer claims while the test says so."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.answers = asyncio.Event()
        self.answers.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def perform(self, name: str, **params: Any) -> Any:
        await self.answers.wait()
        return await self._storage.perform(name, **params)


@pytest.mark.parametrize("further", [(), (5,)], ids=["once", "twice"])
async def test_nobody_waits_for_a_store_that_does_not_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, further: tuple[int, ...]
) -> None:
    """Who is cancelled twice not even a while. What is left to do is done when the store answers."""
    monkeypatch.setattr(departure, "_HASTE_S", FOR_EVER if further else 0.05)
    silent = Silent(lab.storage)
    leaving = patient(silent, hangs)  # type: ignore[arg-type]
    async with lab.engine(hangs) as stays:
        await leaving.__aenter__()
        await leaving.start(hangs, id="h-1")
        worker = leaving._keeper.kit.worker.id
        silent.answers.clear()
        await cancelled(leaving, 1, *further)
        assert ("leaving the engine was cancelled, and goes on" in caplog.text) is (not further)
        assert (await lab.storage.get("workers", (worker,)) or {})["alive"] == 1
        silent.answers.set()
        await stays.handle("h-1", hangs).result(timeout=10)
        async with leaving:
            assert (await lab.storage.get("workers", (worker,)) or {})["alive"] == 0


async def test_a_loop_that_ends_while_the_store_does_not_answer_gives_free_what_it_had(tmp_path: Path) -> None:
    """The worker could not sign off; others see that it shows no sign of life."""
    url = f"sqlite:///{tmp_path / 'store.db'}"

    async def come_and_go() -> None:
        async with open_storage(url, auto_upgrade=True) as storage:
            silent = Silent(storage)
            leaving = patient(silent, hangs)  # type: ignore[arg-type]
            await leaving.__aenter__()
            await leaving.start(hangs, id="h-1")
            silent.answers.clear()
            await cancelled(leaving, 1, 5)

    await asyncio.to_thread(asyncio.run, come_and_go())
    assert locks(tmp_path) == 0
    RAN["hang"] = 1  # it does not hang again
    async with patient(url, hangs) as stays:
        await stays.handle("h-1", hangs).result(timeout=10)
