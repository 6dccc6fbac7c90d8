from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.postgres.kit import Server, server_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def server(postgres: str) -> AsyncIterator[Server]:
    async with server_at(postgres) as server:
        yield server
