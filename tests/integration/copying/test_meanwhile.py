"""Who comes while a store is copied: the copy is refused, for what they write would be at the source alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.copying.kit import Between, upgraded

from event_workflow_engine.errors import StoreInUseError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.copying import copy_store
from event_workflow_engine.testing.conformance.holding import fill
from event_workflow_engine.testing.conformance.kit import events, unit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.copying.kit import Stores

    from event_workflow_engine.storage.port import HeldStore

pytestmark = pytest.mark.timeout(60)
BACKENDS = ["sqlite", "postgres"]


class Visited(Between):
    """A source to which somebody comes: with a connection and a lock of their own, as another process does."""

    held: HeldStore
    visit: asyncio.Task[None]

    def __init__(self, storage: Any, url: str) -> None:
        super().__init__(storage)
        self._url = url

    async def hold(self, work: Any) -> Any:
        async def between(held: HeldStore) -> Any:
            self.held = held
            return await work(held)

        return await self._storage.hold(between)

    async def come(self) -> None:
        """Begin to write, and wait for the source's lock."""
        self.visit = asyncio.create_task(self._write())
        while not await self.held.awaited():
            assert not self.visit.done()

    async def _write(self) -> None:
        async with open_storage(self._url) as storage:
            await storage.write(unit(events("late")))


class Late(Between):
    """A target that has been compared when somebody comes to the source."""

    source: Visited

    async def at_end(self) -> None:
        await self.source.come()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_writer_that_comes_while_the_store_is_read_ends_the_copy(new_url: Stores, backend: str) -> None:
    target = await upgraded(new_url("sqlite"))
    url = new_url(backend)
    async with await upgraded(url) as source, target:
        await fill(source)
        visited = Visited(source, url)
        told: list[str] = []

        def tell(what: str, number: int, of: int) -> None:
            told.append(what)
            assert what == "position"
            assert 0 < number <= of

        class Early(Between):
            async def hold(self, work: Any) -> Any:
                await visited.come()
                return await self._storage.hold(work)

        with pytest.raises(StoreInUseError, match=r"another process came meanwhile .* nothing was copied"):
            await copy_store(visited, Early(target), tell=tell)
        assert told == ["position"]
        await visited.visit
        assert await source.head("late") == 1
        assert await target.read_log() == []
        # It has gone, and what it wrote goes along.
        await copy_store(source, target)
        assert await target.head("late") == 1


async def test_a_writer_is_noticed_by_whichever_name_it_has_the_file(new_url: Stores, tmp_path: Path) -> None:
    url = new_url("sqlite")
    async with await upgraded(url) as source:
        (tmp_path / "alias.db").symlink_to(url.removeprefix("sqlite:///"))
        visited = Visited(source, f"sqlite:///{tmp_path}/alias.db")

        async def work(_: HeldStore) -> None:
            await visited.come()

        await visited.hold(work)
        await visited.visit
        assert await source.head("late") == 1


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_writer_that_comes_last_is_noticed_before_anything_is_kept(new_url: Stores, backend: str) -> None:
    target = await upgraded(new_url("sqlite"))
    url = new_url(backend)
    async with await upgraded(url) as source, target:
        await fill(source)
        late = Late(target)
        late.source = Visited(source, url)
        with pytest.raises(StoreInUseError, match="another process came meanwhile"):
            await copy_store(late.source, late)
        await late.source.visit
        assert await target.read_log() == []


async def test_a_writer_of_this_process_that_would_tend_the_file_rests(new_url: Stores) -> None:
    """Its log is long enough to be moved into the file as soon as nobody wants anything."""
    async with await upgraded(new_url("sqlite")) as source:
        for part in range(2):
            await asyncio.gather(*(source.write(unit(events(f"s-{part}-{n}"))) for n in range(256)))

        async def work(held: HeldStore) -> bool:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asyncio.Event().wait()
            return await held.awaited()

        assert not await source.hold(work)
        await source.write(unit(events("a")))


async def test_how_far_it_is_is_told(new_url: Stores) -> None:
    target = await upgraded(new_url("postgres"))
    told: list[tuple[str, int, int]] = []
    async with open_storage("memory://") as source:
        for _ in range(3):
            await source.write(unit(events("a", 1000)))
        await source.write(unit(events("b")))
        copied = await copy_store(source, target, tell=lambda *how: told.append(how))
    assert copied.events == copied.position == 3001
    assert told == [
        ("position", 2000, 3001),
        ("position", 3001, 3001),
        ("event", 3000, 3001),
        ("event", 3001, 3001),
    ]
