"""What is done over and over: events and sagas that carry little and do nothing, so that the engine is what counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from event_workflow_engine.events import event
from event_workflow_engine.saga import Saga, SagaStep

__all__ = ["Measured", "declared", "work"]


@event("ewe-bench-measured")
@dataclass(frozen=True)
class Measured:
    """A small event."""

    order: str
    cents: int
    note: str = "x" * 64


async def work() -> int:
    """The step that does nothing."""
    return 1


def declared(steps: int) -> Saga[Any, Any]:
    """So many steps one after another."""
    return Saga(f"declared-{steps}", [SagaStep(f"s{n}", work) for n in range(steps)], sequential=True)
