"""What is handed over by mistake is refused at once, by name, with the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import EventBus, RetryPolicy, Saga, SagaStep, StepContext, WorkflowEngine, event
from event_workflow_engine.errors import DefinitionError, EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Order:
    item: str


async def ship(ctx: StepContext[Order]) -> str:
    return ctx.input.item


SHIPPING: Saga[Order, Any] = Saga("shipping", [SagaStep("ship", ship)])


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: WorkflowEngine(None), r"None.*a URL such as"),  # type: ignore[arg-type]
        (lambda: WorkflowEngine(Path("orders.db")), r"orders\.db.*a URL such as"),  # type: ignore[arg-type]
        (lambda: WorkflowEngine(config={"threads": 1}), r"config=.*EngineConfig"),  # type: ignore[arg-type]
        (lambda: WorkflowEngine().register(ship), r"ship.*no saga: decorate it with @saga"),  # type: ignore[arg-type]
        (lambda: WorkflowEngine().register([SHIPPING]), r"no saga"),  # type: ignore[arg-type]
        (lambda: WorkflowEngine().projections.register("totals"), r"'totals'.*DocumentProjection"),  # type: ignore[arg-type]
        (lambda: EventBus().subscribe(Order, "print"), r"'print'.*callable"),  # type: ignore[call-overload]
        (lambda: event(Order), r"@event on Order needs the name"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(attempts="3"), r"attempts='3'.*a number"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_kind_is_refused(mistake: Callable[[], object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        mistake()


@pytest.mark.parametrize(("given", "said"), [((), "none was given"), (("five",), "object"), (({"item": 5},), r"item")])
async def test_an_input_that_does_not_fit_starts_nothing(given: tuple[Any, ...], said: str) -> None:
    async with WorkflowEngine() as engine:
        engine.register(SHIPPING)
        with pytest.raises(EncodeError, match=rf"'shipping' 's-1' needs an input of type Order: .*{said}.*nothing"):
            await engine.start(SHIPPING, *given, id="s-1")
        assert await engine.storage.get("sagas", ("s-1",)) is None


@pytest.mark.parametrize("wrong", [5, "", "a\nb", "x" * 201])
async def test_a_saga_id_that_is_none_starts_nothing(wrong: Any) -> None:
    async with WorkflowEngine() as engine:
        engine.register(SHIPPING)
        with pytest.raises(DefinitionError, match="saga id"):
            await engine.start(SHIPPING, Order("lamp"), id=wrong)
        assert await engine.storage.last_position() == 0


async def test_a_cron_line_that_is_no_text_is_refused() -> None:
    async with WorkflowEngine() as engine:
        with pytest.raises(DefinitionError, match="cron 5: a line of"):
            await engine.scheduler.cron(5, print)  # type: ignore[arg-type]
