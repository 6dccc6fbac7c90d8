"""Stores and engines for the bus's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine import WorkflowEngine
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Storage]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/bus.db"
    async with open_storage(url) as opened:
        yield opened


@pytest.fixture
async def engine(storage: Storage) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(storage) as entered:
        yield entered
