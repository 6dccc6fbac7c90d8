"""The pytest plugin: fixtures for sagas, there as soon as the library is installed beside pytest-asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # without pytest-asyncio there are no async fixtures to offer
    async_fixture = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.engine import WorkflowEngine
    from event_workflow_engine.testing.clock import VirtualClock
    from event_workflow_engine.testing.fakes import StepFaker


# Imports are in the fixtures: pytest loads this module in every project that has the library installed, and coverage
# would miss what is imported before it starts.
@pytest.fixture
def clock() -> VirtualClock:
    """A `VirtualClock`, which is the ``engine`` fixture's too."""
    from event_workflow_engine.testing.clock import VirtualClock  # noqa: PLC0415

    return VirtualClock()


@pytest.fixture
def fake_step() -> StepFaker:
    """Fakes a function that sagas name as action or compensation: ``fake_step(charge, returns("payment-1"))``."""
    from event_workflow_engine.testing.fakes import StepFaker  # noqa: PLC0415

    return StepFaker()


if async_fixture is not None:

    @async_fixture
    async def engine(clock: VirtualClock, fake_step: StepFaker) -> AsyncIterator[WorkflowEngine]:
        """An entered `WorkflowEngine` on ``memory://``, with the virtual clock and the fakes."""
        from event_workflow_engine.engine import WorkflowEngine  # noqa: PLC0415

        made = WorkflowEngine("memory://", clock=clock)
        made.intercept(fake_step.find)

        async def settle() -> None:
            # Steps that need no thread are done in a few turns of the loop; one that runs is waited for as long as it
            # has not come to wait for the clock itself.
            for _ in range(20):
                for _ in range(20):
                    await asyncio.sleep(0)
                if made.is_idle:
                    return

        clock.settle = settle
        async with made:
            yield made
