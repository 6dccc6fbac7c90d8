from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance import StorageConformance

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.storage import Storage


class TestPostgres(StorageConformance):
    @pytest.fixture
    def new_storage(self, postgres_url: str) -> Callable[[], Storage]:
        return lambda: open_storage(postgres_url, auto_upgrade=True)
