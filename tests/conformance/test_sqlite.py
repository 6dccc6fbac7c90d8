from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance import StorageConformance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from event_workflow_engine.storage import Storage


class TestSqlite(StorageConformance):
    @pytest.fixture
    def new_storage(self, tmp_path: Path) -> Callable[[], Storage]:
        return lambda: open_storage(f"sqlite:///{tmp_path / 'store.db'}")
