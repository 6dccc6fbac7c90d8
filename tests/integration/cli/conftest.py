from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.cli.kit import Ewe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def empty(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ewe:
    """`ewe` on a file that is not there yet."""
    monkeypatch.setenv("COLUMNS", "120")
    return Ewe(f"sqlite:///{tmp_path}/store.db", capsys)


@pytest.fixture
def ewe(empty: Ewe) -> Ewe:
    """`ewe` on a store with five sagas."""
    empty.fill()
    return empty
