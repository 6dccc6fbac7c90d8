# ruff: noqa: PLR2004 - the numbers are the expectation
"""Group commit: order, withdrawal, and who is told of a commit, and when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.errors import VersionConflictError
from event_workflow_engine.storage.port import Row, Written
from event_workflow_engine.testing.conformance.kit import Cases, events, unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Storage, Unit


class CommitCases(Cases):
    """Units of many callers at once."""

    async def test_the_order_of_one_caller_is_kept(self, storage: Storage) -> None:
        """Units land in the order of their submission."""
        units = [unit(events(f"s-{n % 5}")) for n in range(200)]
        futures = [storage.submit(one) for one in units]
        written = await asyncio.gather(*futures)
        positions = [w.appended[0].position for w in written]
        assert positions == sorted(positions) == list(range(1, 201))

    async def test_each_wins_or_loses_alone(self, storage: Storage) -> None:
        """Conflicts leave their neighbours in the batch in peace; who builds on one that lost loses too."""
        futures = [
            storage.submit(unit(events("a", expected=0))),
            storage.submit(unit(events("a", expected=0))),
            storage.submit(unit(events("a", expected=1))),
            storage.submit(unit(events("b", expected=1))),
            storage.submit(unit(events("b", expected=2))),
            storage.submit(unit(events("c"))),
        ]
        results = await asyncio.gather(*futures, return_exceptions=True)
        won = [isinstance(result, Written) for result in results]
        assert won == [True, False, True, False, False, True]
        assert {type(r) for r, ok in zip(results, won, strict=True) if not ok} == {VersionConflictError}
        assert await storage.last_position() == 3

    async def test_a_queued_unit_is_withdrawn_by_cancelling(self, storage: Storage) -> None:
        """Cancelled before the loop had a turn, it never lands; its neighbours do."""
        before, gone, after = (unit(events("a")) for _ in range(3))
        futures = [storage.submit(one) for one in (before, gone, after)]
        futures[1].cancel()
        await asyncio.gather(futures[0], futures[2])
        assert await storage.outcome(gone.id) is None
        assert [r.id for r in await storage.read_stream("a")] == [before.id, after.id]

    async def test_a_cancelled_writer_learns_later(self, storage: Storage) -> None:
        """Cancelled at any time, the unit landed or did not, as `outcome` says; the batch goes on."""
        rounds, landed = 40, 0
        for turns in range(rounds):
            one, other = unit(events("a")), unit(events("b"))
            task = asyncio.create_task(storage.write(one))
            rest = asyncio.create_task(storage.write(other))
            for _ in range(turns % 8):
                await asyncio.sleep(0)
            task.cancel()
            outcome = await storage.outcome(one.id)
            landed += outcome is not None
            await rest
            assert await storage.outcome(one.id) == outcome
            await asyncio.gather(task, return_exceptions=True)
        assert await storage.head("a") == landed
        assert await storage.head("b") == rounds

    async def test_outcome_waits_for_what_is_on_its_way(self, storage: Storage) -> None:
        """Asked right behind the submission, it answers with the verdict to come."""
        one = unit(events("a"))
        future = storage.submit(one)
        assert await storage.outcome(one.id) == await future

    async def test_hooks_are_told_in_commit_order(self, storage: Storage) -> None:
        """Of what was committed and only of that, once, before those who wait for their verdicts go on."""
        told: list[tuple[Unit, Written]] = []
        remove = storage.add_commit_hook(told.extend)
        units = [unit(events("a", expected=n if n % 4 else 99)) for n in range(20)]
        seen: list[bool] = []

        async def write(one: Unit) -> None:
            try:
                await storage.write(one)
            except VersionConflictError:
                return
            seen.append(any(known.id == one.id for known, _ in told))

        await asyncio.gather(*(write(one) for one in units))
        good = unit(events("b", 3))
        written = await storage.write(good)
        await storage.write(good)
        assert all(seen)
        assert told[-1] == (good, written)
        positions = [w.appended[0].position for _, w in told]
        assert positions == sorted(set(positions))
        assert len(told) == len({u.id for u, _ in told})
        remove()
        remove()
        count = len(told)
        await storage.write(unit(events("b")))
        assert len(told) == count

    async def test_a_raising_hook_breaks_nothing(self, storage: Storage) -> None:
        """The commit stands, its caller is told, and the loop's exception handler hears of it."""
        heard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

        def broken(_: object) -> None:
            raise LookupError("hook")

        def broken_bell() -> None:
            raise LookupError("bell")

        storage.add_commit_hook(broken)
        storage.add_bell(broken_bell)
        rung: list[int] = []
        storage.add_bell(lambda: rung.append(1))
        await storage.write(unit(events("a")))
        assert await storage.head("a") == 1
        assert rung
        assert {str(context["exception"]) for context in heard} == {"hook", "bell"}

    async def test_bells_ring_for_commits(self, storage: Storage) -> None:
        """And stop when they are removed."""
        rung: list[int] = []
        remove = storage.add_bell(lambda: rung.append(1))
        await storage.write(unit(events("a")))
        assert rung
        remove()
        await asyncio.sleep(0)
        count = len(rung)
        await storage.write(unit(events("a")))
        assert len(rung) == count

    async def test_bells_for_others_do_not_ring_for_what_hooks_are_told_of(self, storage: Storage) -> None:
        """But for what was there when the store was opened, maybe later; and where no hook was told, as of a claim."""
        told: list[object] = []
        rung: list[str] = []
        storage.add_commit_hook(told.extend)
        storage.add_bell(lambda: rung.append("any"))
        remove = storage.add_bell(lambda: rung.append("other"), own=False)
        await storage.write(unit(rows=(Row("workers", "insert", ("w",), {"incarnation": 1, "alive": 1}),)))
        for _ in range(20):
            await storage.write(unit(events("a")))
        assert len(told) == 21
        assert rung.count("any") >= 21
        assert rung.count("other") == rung.count("any") - 21
        before = rung.count("other")
        await storage.perform("bury_worker", id="w", incarnation=1, beat=None, now=7)
        assert rung.count("other") > before
        remove()
        before = rung.count("other")
        await storage.perform("bury_worker", id="w", incarnation=1, beat=None, now=7)
        assert rung.count("other") == before

    @pytest.mark.parametrize("writers", [1, 3, 100, 1000])
    async def test_many_writers(self, storage: Storage, writers: int) -> None:
        """However many, nothing is lost, and each stream is in its writer's order."""

        async def write(number: int) -> None:
            for version in range(2):
                await storage.write(unit(events(f"w-{number}", expected=version)))

        await asyncio.gather(*(write(n) for n in range(writers)))
        records = await storage.read_log(limit=3 * writers)
        assert [r.position for r in records] == list(range(1, 2 * writers + 1))
        assert len({r.stream for r in records}) == writers
