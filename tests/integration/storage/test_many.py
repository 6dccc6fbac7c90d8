"""Reads whose way depends on how much there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.storage.memory import MemoryStorage
from event_workflow_engine.storage.port import Row, Storage, Unit
from event_workflow_engine.storage.sqlite import SqliteStorage

if TYPE_CHECKING:
    from pathlib import Path

COMMON = 5_100


def kind(number: int) -> dict[str, Any]:
    """Mostly completed trips, a few of everything else."""
    state = "COMPLETED" if number % 700 else "RUNNING"
    return {"state": state, "saga": "trip" if number % 900 else "order", "saga_version": 1}


@pytest.mark.parametrize("state", [None, "COMPLETED", "RUNNING", "FAILED"])
@pytest.mark.parametrize("saga", [None, "trip", "order", "none"])
async def test_pages_of_sagas_common_and_rare(
    many: tuple[Storage, Storage], state: str | None, saga: str | None
) -> None:
    for after in ("", "s-00699", "s-03000", "s-99999"):
        pages = [
            await store.query("sagas_page", state=state, saga=saga, after=after, limit=limit)
            for store in many
            for limit in (3, COMMON + 1)
        ]
        assert pages[:2] == pages[2:]
        assert pages[0] == pages[1][:3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def memory() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
async def many(folder: Path, memory: MemoryStorage) -> Any:
    """Both backends with the same sagas, filled once."""
    async with memory, SqliteStorage(folder / "a.db") as sqlite:
        for store in (memory, sqlite):
            if await store.get("sagas", ("s-00000",)) is None:
                rows = tuple(Row("sagas", "insert", (f"s-{n:05}",), kind(n)) for n in range(COMMON))
                await store.write(Unit("seed", 1, rows=rows))
        yield memory, sqlite
