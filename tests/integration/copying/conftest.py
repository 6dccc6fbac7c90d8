from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.copying.kit import Stores


@pytest.fixture
def new_url(tmp_path: Path, request: pytest.FixtureRequest) -> Stores:
    """The URL of a new store on a backend, whose schema is to be made."""

    def made(backend: str) -> str:
        name = uuid4().hex[:12]
        if backend == "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        return f"{request.getfixturevalue('postgres')}?schema=t_{name}"

    return made
