"""Rule 5 where a saga could not be written: its code still acts, and nobody runs it beside that."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import Storage, Told, Unit

RAN: Counter[str] = Counter()
BEGUN, MAY_END = threading.Event(), threading.Event()
GATES: dict[str, asyncio.Event] = {}


def in_thread() -> None:
    RAN["thread"] += 1
    BEGUN.set()
    MAY_END.wait(20)


async def gated() -> None:
    RAN["gated"] += 1
    await GATES["gated"].wait()


acts = Saga("acts", [SagaStep("thread", in_thread), SagaStep("gated", gated)])
quiet = Saga("quiet", [SagaStep("gated", gated)])


class Refusing:
    """A store as one worker sees it, which does not take what sagas have to write while the test says so."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.refuses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def post(self, unit: Unit, told: Told) -> None:
        if self.refuses:
            asyncio.get_running_loop().call_soon(told, StorageUnavailableError("refused"))
        else:
            self._storage.post(unit, told)

    async def perform(self, name: str, **params: Any) -> Any:
        if self.refuses and name == "claim_sagas":  # what was lost goes on elsewhere
            return []
        return await self._storage.perform(name, **params)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    RAN.clear()
    BEGUN.clear()
    MAY_END.clear()
    GATES["gated"] = asyncio.Event()
    yield
    MAY_END.set()


async def test_rule_05_a_saga_that_could_not_be_written_is_nobody_elses_while_its_thread_acts(lab: Lab) -> None:
    """Another one, which was lost behind it and of which nothing acts, has gone on elsewhere by then."""
    refusing = Refusing(lab.storage)
    first = WorkflowEngine(refusing, config=EngineConfig())  # type: ignore[arg-type]
    first.register(acts, quiet)
    async with first:
        await first.start(acts, id="a-1")
        await first.start(quiet, id="q-1")
        await asyncio.to_thread(BEGUN.wait, 10)
        async with lab.engine(acts, quiet) as second:
            refusing.refuses = True
            GATES["gated"].set()
            await second.handle("q-1", quiet).result(timeout=10)
            assert RAN["thread"] == 1
            MAY_END.set()
            await second.handle("a-1", acts).result(timeout=10)
    assert RAN["thread"] == 2  # its end could not be recorded


async def test_rule_05_leaving_waits_for_the_thread_of_a_saga_that_could_not_be_written(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(lab.storage)
    leaving = WorkflowEngine(refusing, config=EngineConfig())  # type: ignore[arg-type]
    leaving.register(acts)
    await leaving.__aenter__()
    await leaving.start(acts, id="a-1")
    await asyncio.to_thread(BEGUN.wait, 10)
    refusing.refuses = True
    GATES["gated"].set()
    async with asyncio.timeout(10):
        while "could not be written" not in caplog.text:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    left = asyncio.create_task(leaving.__aexit__(None, None, None))
    async with asyncio.timeout(10):
        while not left.done() and "leaving waits" not in caplog.text:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    assert not left.done()
    row = await lab.storage.get("sagas", ("a-1",))
    assert row is not None
    assert row["owner"] == leaving._keeper.kit.worker.id
    MAY_END.set()
    await left
    async with lab.engine(acts) as second:
        await second.handle("a-1", acts).result(timeout=10)


async def test_rule_05_an_engine_that_did_not_wait_for_a_thread_and_is_entered_again_can_go_on_with_its_saga(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the worker that it was counts as dead."""
    GATES["gated"].set()
    engine = WorkflowEngine(lab.storage, config=EngineConfig(shutdown_timeout=0))
    engine.register(acts)
    await engine.__aenter__()
    await engine.start(acts, id="a-1")
    await asyncio.to_thread(BEGUN.wait, 10)
    worker = engine._keeper.kit.worker
    left = asyncio.create_task(engine.__aexit__(None, None, None))
    async with asyncio.timeout(10):
        while "leaving waits" not in caplog.text:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    MAY_END.set()
    async with engine:
        await lab.storage.perform(
            "bury_worker", beat=None, id=worker.id, incarnation=worker.incarnation, now=engine.now()
        )
        await engine.handle("a-1", acts).result(timeout=10)
