"""Rule 2: a rollback compensates succeeded and unknown steps, and tells the compensation which it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import CompensationContext, Outcome, Saga, SagaFailedError, SagaStep, StepContext

if TYPE_CHECKING:
    from tests.rules.conftest import Lab

pytestmark = pytest.mark.proves("compensation")


@dataclass(frozen=True)
class Payment:
    id: str


@dataclass(frozen=True)
class Order:
    sku: str


async def test_rule_02_compensations_get_what_they_need(lab: Lab) -> None:
    told: list[tuple[Any, ...]] = []
    keys: dict[str, str] = {}

    async def pay(ctx: StepContext[Order]) -> Payment:
        keys["pay"] = ctx.idempotency_key
        return Payment(ctx.input.sku)

    async def refund(ctx: CompensationContext[Order, Payment]) -> None:
        told.append((ctx.result, ctx.outcome, ctx.input, ctx.idempotency_key == keys["pay"]))

    async def ship() -> None:
        raise ConnectionResetError

    async def recall(ctx: CompensationContext[Order, None]) -> None:
        told.append((ctx.result, ctx.outcome, ctx.input, ctx.results["pay"]))

    saga = Saga("o", [SagaStep("pay", pay, refund), SagaStep("ship", ship, recall)], sequential=True, input_type=Order)
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError) as failure:
            await engine.execute(saga, Order("lamp"))
    order = Order("lamp")
    assert told == [
        (None, Outcome.UNKNOWN, order, Payment("lamp")),
        (Payment("lamp"), Outcome.SUCCEEDED, order, True),
    ]
    assert failure.value.report.compensated == ("ship", "pay")


async def test_rule_02_failed_steps_only_where_asked(lab: Lab) -> None:
    told: list[tuple[str, Outcome]] = []

    async def refuse() -> None:
        raise ValueError("no")

    def undo(name: str) -> Any:
        async def undo_it(ctx: CompensationContext[None, None]) -> None:
            told.append((name, ctx.outcome))

        return undo_it

    for asked in (False, True):
        saga = Saga(f"s-{asked}", [SagaStep("a", refuse, undo("a"), compensate_failed=asked)])
        async with lab.engine(saga) as engine:
            with pytest.raises(SagaFailedError):
                await engine.execute(saga)
    assert told == [("a", Outcome.FAILED)]


async def test_rule_02_a_step_without_compensation_is_reported_as_skipped(lab: Lab) -> None:
    async def log_it() -> None: ...

    async def refuse() -> None:
        raise ValueError("no")

    saga = Saga("s", [SagaStep("log", log_it), SagaStep("refuse", refuse, after="log")])
    async with lab.engine(saga) as engine:
        with pytest.raises(SagaFailedError) as failure:
            await engine.execute(saga)
    assert failure.value.report.skipped == ("log",)
    assert failure.value.failed_step == "refuse"


async def test_rule_02_the_log_tells_in_one_line_why_a_saga_was_not_done(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse() -> None:
        raise ValueError("no room\nat all " + "x" * 600)

    refused = Saga("refused", [SagaStep("ask", refuse)])
    with caplog.at_level("INFO", "event_workflow_engine.runner"):
        async with lab.engine(refused) as engine:
            with pytest.raises(SagaFailedError):
                await engine.execute(refused, id="r-1")
    (line,) = [record.getMessage() for record in caplog.records if "ended as" in record.getMessage()]
    assert line.startswith("saga 'r-1' ended as FAILED in step 'ask': ValueError: no room at all xxx")
    assert line.endswith("x…")
