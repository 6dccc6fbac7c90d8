"""Rule 5 where a worker leaves: what cannot be cut off is waited for, and what has not begun begins elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import Storage, Told, Unit

RAN: Counter[str] = Counter()


class Thread:
    """A sync action that goes on until the test lets it end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> str:
        RAN["thread"] += 1
        self.begun.set()
        self.may_end.wait(20)
        return "charged"


async def behind(ctx: StepContext[Any]) -> Any:
    RAN["behind"] += 1
    return ctx.results.get("thread")


async def hang() -> str:
    RAN["hang"] += 1
    if RAN["hang"] == 1:
        await asyncio.Event().wait()
    return "done"


@pytest.fixture(autouse=True)
def anew() -> None:
    RAN.clear()


def in_thread(thread: Thread) -> Saga[Any, Any]:
    steps = [SagaStep("thread", thread, idempotent=False), SagaStep("behind", behind, idempotent=False)]
    return Saga("in-thread", steps, sequential=True)


hangs = Saga("hangs", [SagaStep("hang", hang)])


async def test_rule_05_leaving_waits_for_a_thread_and_holds_up_no_other_saga(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """Its saga is nobody else's until then; its outcome is kept, and what comes behind it begins elsewhere."""
    thread = Thread()
    one = in_thread(thread)
    leaving = WorkflowEngine(lab.storage, config=EngineConfig(shutdown_timeout=0))
    leaving.register(one, hangs)
    async with lab.engine(one, hangs) as stays:
        await leaving.__aenter__()
        await leaving.start(one, id="t-1")
        await leaving.start(hangs, id="h-1")
        await asyncio.to_thread(thread.begun.wait, 10)
        left = asyncio.create_task(leaving.__aexit__(None, None, None))
        assert (await stays.handle("h-1", hangs).result(timeout=10))["hang"] == "done"
        row = await lab.storage.get("sagas", ("t-1",))
        assert row is not None
        assert (row["owner"], row["ended_at"]) == (leaving._keeper.kit.worker.id, None)
        assert not left.done()
        assert "leaving waits for code in threads" in caplog.text
        assert "thread of saga t-1" in caplog.text
        thread.may_end.set()
        await asyncio.wait_for(left, 10)
        assert (await stays.handle("t-1", one).result(timeout=10))["behind"] == "charged"
    assert (RAN["thread"], RAN["behind"]) == (1, 1)


async def test_rule_05_who_does_not_wait_for_a_thread_leaves_its_saga_as_it_is(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not sign off, so others take it once this process is gone, or its lease is over."""
    thread = Thread()
    one = in_thread(thread)
    leaving = WorkflowEngine(lab.storage, config=EngineConfig(shutdown_timeout=0))
    leaving.register(one)
    await leaving.__aenter__()
    await leaving.start(one, id="t-1")
    await asyncio.to_thread(thread.begun.wait, 10)
    worker = leaving._keeper.kit.worker.id
    left = asyncio.create_task(leaving.__aexit__(None, None, None))
    while "leaving waits" not in caplog.text:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    saga, row = await lab.storage.get("sagas", ("t-1",)), await lab.storage.get("workers", (worker,))
    assert saga is not None
    assert row is not None
    assert (saga["owner"], row["alive"]) == (worker, 1)
    thread.may_end.set()


class Slow:
    """A store as one engine sees it, on which units are held back while the test says so."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.holds = False
        self.held: list[tuple[Unit, Told]] = []
        self.has_some = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def post(self, unit: Unit, told: Told) -> None:
        if self.holds:
            self.held.append((unit, told))
            self.has_some.set()
        else:
            self._storage.post(unit, told)

    def let_go(self) -> None:
        self.holds = False
        for unit, told in self.held:
            self._storage.post(unit, told)


async def begins_nothing(engine: WorkflowEngine) -> None:
    """Wait until an engine that is being left lets nothing begin."""
    async with asyncio.timeout(10):
        while not all(run.draining for run in engine._keeper._runs.values()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


def gated(gate: asyncio.Event, name: str) -> Callable[[], Any]:
    async def action() -> None:
        RAN[name] += 1
        await gate.wait()

    return action


@pytest.mark.parametrize(("idempotent", "worker"), [(False, 1), (True, 2)])
async def test_rule_04_what_may_not_run_twice_begins_where_its_start_is_written(
    lab: Lab, *, idempotent: bool, worker: int
) -> None:
    """Its start is on its way to disk when the engine is left: who has the saga next would take it for unknown.

    What may run twice is left to the next, whatever becomes of this one while it ends.
    """
    gate = asyncio.Event()
    fences: list[int] = []

    async def last(ctx: StepContext[Any]) -> None:
        fences.append(ctx.fence)

    steps = [SagaStep("first", gated(gate, "first")), SagaStep("last", last, idempotent=idempotent)]
    one = Saga("once", steps, sequential=True)
    slow = Slow(lab.storage)
    leaving = WorkflowEngine(slow, config=EngineConfig())  # type: ignore[arg-type]
    leaving.register(one)
    async with lab.engine(one) as stays:
        await leaving.__aenter__()
        await leaving.start(one, id="o-1")
        slow.holds = True
        gate.set()
        await slow.has_some.wait()
        left = asyncio.create_task(leaving.__aexit__(None, None, None))
        await begins_nothing(leaving)
        slow.let_go()
        await left
        await stays.handle("o-1", one).result(timeout=10)
    assert (RAN, fences) == ({"first": 1}, [worker])


async def test_rule_05_all_threads_that_are_waited_for_are_on_record(lab: Lab) -> None:
    """Also those that end while the end of another is on its way to disk."""
    threads = [Thread(), Thread(), Thread()]
    one = Saga("three", [SagaStep(f"thread-{n}", thread, idempotent=False) for n, thread in enumerate(threads)])
    slow = Slow(lab.storage)
    leaving = WorkflowEngine(slow, config=EngineConfig(shutdown_timeout=0))  # type: ignore[arg-type]
    leaving.register(one)
    async with lab.engine(one) as stays:
        await leaving.__aenter__()
        await leaving.start(one, id="t-1")
        for thread in threads:
            await asyncio.to_thread(thread.begun.wait, 10)
        left = asyncio.create_task(leaving.__aexit__(None, None, None))
        await begins_nothing(leaving)
        slow.holds = True
        threads[0].may_end.set()
        await slow.has_some.wait()
        for thread in threads:
            thread.may_end.set()
        (run,) = leaving._keeper._runs.values()
        while run.running:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        slow.let_go()
        await left
        assert len(await stays.handle("t-1", one).result(timeout=10)) == len(threads)
    assert RAN["thread"] == len(threads)


async def test_rule_04_what_comes_up_while_an_engine_is_left_begins_elsewhere(lab: Lab) -> None:
    """Also where other steps of the saga still run by then."""
    gates = {name: asyncio.Event() for name in ("first", "second")}
    steps = [SagaStep(name, gated(gate, name)) for name, gate in gates.items()]
    one = Saga("side-by-side", [*steps, SagaStep("behind", behind, after=["first"], idempotent=False)])
    leaving = WorkflowEngine(lab.storage, config=EngineConfig())
    leaving.register(one)
    async with lab.engine(one) as stays:
        await leaving.__aenter__()
        await leaving.start(one, id="o-1")
        await lab.until_fact(stays, "o-1", "step-started", 2)
        left = asyncio.create_task(leaving.__aexit__(None, None, None))
        await begins_nothing(leaving)
        gates["first"].set()
        await lab.until_fact(stays, "o-1", "step-succeeded")
        assert RAN["behind"] == 0
        gates["second"].set()
        await left
        await stays.handle("o-1", one).result(timeout=10)
    assert RAN == {"first": 1, "second": 1, "behind": 1}


@pytest.mark.parametrize("lands", [True, False])
async def test_rule_10_who_starts_a_saga_is_told_though_the_engine_is_left_meanwhile(lab: Lab, *, lands: bool) -> None:
    """The first unit is on its way when the saga leaves memory, for the engine waits no longer."""
    slow = Slow(lab.storage)
    leaving = WorkflowEngine(slow, config=EngineConfig(shutdown_timeout=0))  # type: ignore[arg-type]
    leaving.register(hangs)
    async with lab.engine(hangs) as stays:
        await leaving.__aenter__()
        slow.holds = True
        start = asyncio.create_task(leaving.start(hangs, id="h-1"))
        await slow.has_some.wait()
        (run,) = leaving._keeper._runs.values()
        left = asyncio.create_task(leaving.__aexit__(None, None, None))
        async with asyncio.timeout(10):
            while not run.closed:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
        if lands:
            slow.let_go()
            assert (await asyncio.wait_for(start, 10)).id == "h-1"
            RAN["hang"] = 1  # it does not hang again
            await left
            assert (await stays.handle("h-1", hangs).result(timeout=10))["hang"] == "done"
        else:
            ((_, told),) = slow.held
            told(StorageUnavailableError("lost"))
            with pytest.raises(StorageUnavailableError, match="lost"):
                await asyncio.wait_for(start, 10)
            await left
            assert await lab.storage.get("sagas", ("h-1",)) is None
