# ruff: noqa: PLR2004 - the numbers are the expectation
"""The life of a store: entering, leaving, entering again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine.errors import EngineStateError
from event_workflow_engine.testing.conformance.kit import Cases, events, row_unit, saga, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from event_workflow_engine.storage.port import Storage


class LifecycleCases(Cases):
    """Entering and leaving."""

    async def test_used_before_it_is_entered(self, new_storage: Callable[[], Storage]) -> None:
        """Everything says so; `submit` says it through its future."""
        storage = new_storage()
        with pytest.raises(EngineStateError):
            await storage.write(unit(events("a")))
        with pytest.raises(EngineStateError):
            await storage.submit(unit(events("a")))
        with pytest.raises(EngineStateError):
            await storage.read_log()
        with pytest.raises(EngineStateError):
            await storage.perform("claim_saga", worker="w", id="s")

    async def test_entered_again_it_has_everything(self, new_storage: Callable[[], Storage]) -> None:
        """The same object, after it was left; and it goes on where it was."""
        storage = new_storage()
        for turn in range(3):
            async with storage:
                await storage.write(unit(events("a", 2, expected=2 * turn), rows=[saga(f"s{turn}")]))
            with pytest.raises(EngineStateError):
                await storage.head("a")
        async with storage:
            assert [r.position for r in await storage.read_stream("a")] == [1, 2, 3, 4, 5, 6]
            assert len(await storage.query("sagas_by_ids", ids='["s0","s1","s2"]')) == 3

    async def test_entered_several_times(self, new_storage: Callable[[], Storage]) -> None:
        """It closes with the last to leave, whichever that is."""
        storage = new_storage()
        await asyncio.gather(*(storage.__aenter__() for _ in range(3)))
        for left in (2, 1, 0):
            await storage.write(unit(events("a")))
            await storage.__aexit__(None, None, None)
            if left:
                assert await storage.head("a") == 3 - left
        with pytest.raises(EngineStateError):
            await storage.head("a")

    async def test_leaving_waits_for_what_was_accepted(self, new_storage: Callable[[], Storage]) -> None:
        """Every unit submitted before has its verdict, and is there."""
        storage = new_storage()
        async with storage:
            futures = [storage.submit(unit(events(f"s-{n % 9}"))) for n in range(500)]
            tasks = [asyncio.create_task(storage.write(unit(events("t")))) for _ in range(20)]
            await asyncio.sleep(0)
        assert all(future.done() for future in futures)
        assert [f.result().appended[0].position for f in futures] == list(range(1, 501))
        await asyncio.gather(*tasks)
        async with storage:
            assert await storage.last_position() == 520

    async def test_listeners_stay(self, new_storage: Callable[[], Storage]) -> None:
        """Hooks and bells may come before entering, and stay over leaving."""
        storage, told, rung = new_storage(), list[object](), list[int]()
        storage.add_commit_hook(told.extend)
        storage.add_bell(lambda: rung.append(1))
        for turn in (1, 2):
            async with storage:
                await storage.write(row_unit(saga(f"s{turn}")))
            assert len(told) == turn
            assert len(rung) >= turn

    async def test_another_loop_is_refused_and_disturbs_nobody(self, storage: Storage) -> None:
        """It belongs to the loop that opened it: from a thread with a loop of its own it is refused, as a whole."""

        async def calls() -> None:
            for call in (
                storage.__aenter__,
                lambda: storage.write(unit(events("a"))),
                lambda: storage.submit(unit(events("a"))),
                storage.read_log,
                storage.last_position,
                lambda: storage.perform("claim_saga", worker="w", id="s"),
            ):
                with pytest.raises(EngineStateError, match="belongs to the event loop"):
                    await call()

        await asyncio.to_thread(asyncio.run, calls())
        await storage.write(unit(events("a")))
        assert await storage.last_position() == 1

    async def test_status(self, storage: Storage) -> None:
        """It tells people what the store is and holds."""
        await storage.write(unit(events("a", 2), events("b"), rows=[saga("s1")]))
        status = await storage.status()
        wanted = {"last_position": 3, "url": storage.url}
        assert {name: status[name] for name in wanted} == wanted
        assert {"backend", "schema_version"} <= set(status)
        assert status["estimates"]["events"] == 3
        assert "sagas" in status["estimates"]
