"""What ends together is written in units that a store can take, and what no store takes is told with the remedy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import (
    CompensationContext,
    NewEvent,
    RetryPolicy,
    Saga,
    SagaFailedError,
    SagaStep,
    Signal,
    StepContext,
    WorkflowState,
    saga,
    wait_for_signal,
)
from event_workflow_engine.errors import EncodeError
from event_workflow_engine.journal import saga_stream
from event_workflow_engine.runner import forward
from event_workflow_engine.storage import unit_checks
from event_workflow_engine.storage.port import Written
from event_workflow_engine.testing.conformance.kit import append, events, record, unit

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

    from event_workflow_engine.storage.port import SqlSession, Unit

STEPS = 20
SIZE = 600
MOST = 8_000
LEASE = 15.0  # what has ended and is not on record is known to the worker alone: none is to lose its lease here
ONCE = RetryPolicy(attempts=1, max_interruptions=0)
PART = Signal("part", str)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """All results together are too much for a unit, and each by itself is far from it."""
    monkeypatch.setattr(unit_checks, "UNIT_BYTES", MOST)
    monkeypatch.setattr(forward, "ENOUGH", 1_000)


class Together:
    """Actions that end in the same turn of the loop."""

    def __init__(self, number: int) -> None:
        self.ran: list[str] = []
        self.all = asyncio.Event()
        self._number = number

    async def make(self, ctx: StepContext[Any]) -> str:
        self.ran.append(ctx.step)
        if len(self.ran) == self._number:
            self.all.set()
        await self.all.wait()
        return "x" * SIZE

    def steps(self, **options: Any) -> list[SagaStep[Any]]:
        return [SagaStep(f"make-{n}", self.make, retry=ONCE, **options) for n in range(self._number)]


async def sizes(lab: Lab, saga_id: str) -> list[int]:
    return [len(one.data) for one in await lab.storage.read_stream(saga_stream(saga_id))]


async def test_results_that_are_too_much_for_one_unit_go_to_disk_in_several(lab: Lab) -> None:
    together = Together(STEPS)
    made = Saga("made", together.steps())
    async with lab.engine(made, lease=LEASE) as engine:
        results = await engine.execute(made, id="m")
    assert [len(results[f"make-{n}"]) for n in range(STEPS)] == [SIZE] * STEPS
    assert len(together.ran) == STEPS, "each ran once"
    assert max(await sizes(lab, "m")) < MOST


async def test_so_they_do_while_a_transaction_is_open_in_their_saga(lab: Lab) -> None:
    """What ends beside it waits for it to be recorded, however much that is."""
    together, inside = Together(STEPS), asyncio.Event()

    async def slow(ctx: StepContext[Any]) -> None:
        inside.set()
        await together.all.wait()
        for _ in range(20):  # until the others have ended
            await asyncio.sleep(0)

    made = Saga("made", [SagaStep("slow", slow, transactional=True), *together.steps()])
    async with lab.engine(made, lease=LEASE) as engine:
        assert len(await engine.execute(made, id="m")) == STEPS + 1
    assert len(together.ran) == STEPS
    assert max(await sizes(lab, "m")) < MOST


async def test_a_transaction_that_fails_keeps_nothing_from_disk(lab: Lab) -> None:
    """What has waited for it goes to disk then, before its failure is recorded."""
    together = Together(STEPS)

    async def fail() -> None:
        await together.all.wait()
        for _ in range(20):  # until the others have ended
            await asyncio.sleep(0)
        raise ValueError("no")

    made = Saga("made", [SagaStep("fail", fail, transactional=True, retry=ONCE), *together.steps()])
    async with lab.engine(made, lease=LEASE) as engine:
        with pytest.raises(SagaFailedError):
            await asyncio.wait_for(engine.execute(made, id="m"), 10)
    assert len(together.ran) == STEPS
    assert max(await sizes(lab, "m")) < MOST


async def test_a_failure_beside_them_undoes_each(lab: Lab) -> None:
    """What waits to be recorded has succeeded, and is on record before the failure that came behind it."""
    together, undone = Together(STEPS), list[str]()

    async def undo(ctx: CompensationContext[Any, str]) -> None:
        if ctx.result == "x" * SIZE:
            undone.append(ctx.step)

    async def fail() -> None:
        await together.all.wait()
        for _ in range(3):  # until the others have ended
            await asyncio.sleep(0)
        raise ValueError("no")

    made = Saga("made", [SagaStep("fail", fail, retry=ONCE), *together.steps(compensation=undo)], on_failure="cancel")
    async with lab.engine(made, lease=LEASE) as engine:
        with pytest.raises(SagaFailedError):
            await engine.execute(made, id="m")
        assert await engine.handle("m").status() is WorkflowState.COMPENSATED
    assert sorted(undone) == sorted(together.ran)


async def test_what_cannot_be_parted_makes_its_saga_stand_and_says_why(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals that came while it slept are read together. It does not try again and again to write them."""

    @saga("collecting")
    async def collecting() -> int:
        return sum([len(await wait_for_signal(PART)) for _ in range(STEPS)])

    async with lab.engine(collecting, lease=LEASE) as engine:
        await engine.start(collecting, id="c")
        await lab.until_row("c", owner="")
    async with lab.engine(worker=False, lease=LEASE) as engine:
        for _ in range(STEPS):
            await engine.handle("c").signal(PART, "x" * SIZE)
    async with lab.engine(collecting, lease=LEASE) as engine:
        handle = engine.handle("c", collecting)
        with pytest.raises(
            SagaFailedError, match=r"saga-c.* bytes of JSON in one unit, which may have 8,000"
        ) as failure:
            await handle.result()
        assert isinstance(failure.value.__cause__, EncodeError)
        assert failure.value.status is WorkflowState.NEEDS_INTERVENTION
        monkeypatch.setattr(unit_checks, "UNIT_BYTES", 10 * MOST)
        await handle.resume()
        await lab.until_fact(engine, "c", "intervention-made")
        assert await handle.result() == STEPS * SIZE


async def test_so_does_what_a_transaction_and_its_record_are_together(lab: Lab) -> None:
    async def act(ctx: StepContext[Any]) -> None:
        await ctx.transaction.append("a", [NewEvent("large", "x" * SIZE) for _ in range(14)])

    made = Saga("made", [SagaStep("act", act, transactional=True)])
    async with lab.engine(made, lease=LEASE) as engine:
        with pytest.raises(SagaFailedError, match="bytes of JSON in one unit, which may have 8,000"):
            await engine.execute(made, id="m")
        assert await engine.handle("m").status() is WorkflowState.NEEDS_INTERVENTION
    assert await lab.storage.head("a") == 0


async def test_a_unit_that_is_too_large_is_refused_alone(lab: Lab) -> None:
    def large() -> Unit:
        return unit(append("a", *(record(data=b"x" * SIZE) for _ in range(14))))

    async def work(_: SqlSession) -> Unit:
        return large()

    futures = [lab.storage.submit(one) for one in (unit(events("b")), large(), unit(events("c")))]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(one) for one in results] == [Written, EncodeError, Written]
    with pytest.raises(
        EncodeError, match=r"stream 'a': 8,400 bytes of JSON in one unit, which may have 8,000: write it"
    ):
        await lab.storage.transact(work)
    assert await lab.storage.head("a") == 0
    async with lab.engine(lease=LEASE) as engine:
        with pytest.raises(EncodeError, match="stream 'd'"):
            await engine.store.append("d", [NewEvent("large", "x" * SIZE) for _ in range(14)])
