"""Stores and engines for the bus's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import WorkflowEngine
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from event_workflow_engine.storage.port import Storage


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
async def engine(storage: Storage) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(storage) as entered:
        yield entered
