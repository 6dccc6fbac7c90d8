"""Rule 12: a worker that cannot be sure that others take it for alive begins no action."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import EngineConfig, Saga, SagaStep, WorkflowEngine
from event_workflow_engine.storage.liveness import HeartbeatLiveness

if TYPE_CHECKING:
    from typing import Any


@pytest.mark.timeout(60)
@pytest.mark.proves("frozen", store="postgres", faults=1)
async def test_rule_12_no_action_begins_without_a_confirmed_heartbeat(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets go of its sagas, and takes them up again when a heartbeat is confirmed before anybody else did."""
    begun: list[str] = []
    first_began, go_on = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        begun.append("first")
        first_began.set()
        await go_on.wait()

    async def second() -> None:
        begun.append("second")

    sure = HeartbeatLiveness.is_sure
    doubts: list[bool] = []
    asked = asyncio.Event()

    def doubtful(self: HeartbeatLiveness) -> bool:
        if doubts:
            asked.set()
            return False
        return sure(self)

    monkeypatch.setattr(HeartbeatLiveness, "is_sure", doubtful)
    saga: Saga[Any, Any] = Saga("two", [SagaStep("first", first), SagaStep("second", second)], sequential=True)
    engine = WorkflowEngine(postgres_url, config=EngineConfig(auto_upgrade=True, lease=1.0))
    engine.register(saga)
    async with engine:
        handle = await engine.start(saga, id="s-1")
        await first_began.wait()
        doubts.append(True)
        go_on.set()
        for _ in range(3):  # the end of the first step, and heartbeats that find it in doubt
            asked.clear()
            await asked.wait()
        assert begun == ["first"]
        doubts.clear()
        await handle.result(timeout=30)
    assert begun == ["first", "second"], "what was done is done once"
