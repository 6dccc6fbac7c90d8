"""The heartbeats of one worker, over a store whose writes can be held back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.errors import OwnershipLostError, StorageUnavailableError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.liveness import HeartbeatLiveness
from event_workflow_engine.storage.port import Row, Unit
from event_workflow_engine.workers import Worker

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import RowOp, Storage, WorkerRef

LEASE = 1.0


class SlowStorage:
    """A store whose writes end when the test lets them, or fail."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.flows = asyncio.Event()
        self.flows.set()
        self.asked = asyncio.Event()
        self.fails = False
        self.fails_after: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def write(self, unit: Unit) -> Any:
        self.asked.set()
        await self.flows.wait()
        if self.fails_after is not None:
            self.fails_after -= 1
        if self.fails or (self.fails_after is not None and self.fails_after < 0):
            raise StorageUnavailableError("away")
        return await self._storage.write(unit)


class Owner:
    """Notes what a worker tells, and whether it was sure of itself then."""

    def __init__(self, liveness: HeartbeatLiveness) -> None:
        self._liveness = liveness
        self.told: list[bool] = []
        self.was_told = asyncio.Event()
        self.offers: dict[str, Any] = {"max_running": 7, "runs": "[]"}
        self.came = 0

    def offer(self) -> dict[str, Any]:
        return self.offers

    def worker_came(self) -> None:
        self.came += 1

    def worker_gone(self) -> None:
        raise AssertionError("nobody else is there to be dead")

    def worker_reborn(self, ref: WorkerRef) -> None:
        raise AssertionError(f"nobody took {ref} for dead")

    def worker_sure_again(self) -> None:
        self.told.append(self._liveness.is_sure())
        self.was_told.set()


class Neighbours(HeartbeatLiveness):
    """Tells that those are gone whom the test names."""

    def __init__(self) -> None:
        super().__init__(LEASE)
        self.gone: set[str] = set()

    def is_gone(self, row: dict[str, Any]) -> bool:
        return row["id"] in self.gone


async def test_one_that_dies_and_one_that_signs_off_are_both_told_once() -> None:
    """What they had is free in either case, also where another worker buried the one that died."""
    async with open_storage("memory://") as storage:
        liveness = Neighbours()
        worker = Worker(storage, liveness, lambda: 0, Owner(liveness))
        others = [Worker(storage, HeartbeatLiveness(LEASE), lambda: 0, Owner(liveness)) for _ in range(3)]
        await worker.start()
        assert not await worker.bury_the_dead()
        for other in others:
            await other.start()
        assert not await worker.bury_the_dead(), "nobody has gone"
        liveness.gone = {others[0].ref.id}
        assert await worker.bury_the_dead()
        assert not await worker.bury_the_dead()
        await others[1].stop()
        assert await worker.bury_the_dead()
        await storage.perform("bury_worker", beat=None, id=others[2].ref.id, incarnation=1, now=0)
        assert await worker.bury_the_dead()
        assert not await worker.bury_the_dead()
        await asyncio.gather(*(one.stop() for one in (worker, *others)))


@pytest.mark.parametrize("fails", [False, True], ids=["late", "failed, and tried again"])
async def test_rule_12_doubt_that_arises_while_a_heartbeat_is_under_way_ends_with_it(fails: bool) -> None:
    """It is told, for whoever was in doubt meanwhile waits for that: sagas are claimed no sooner."""
    async with open_storage("memory://") as opened:
        storage, liveness = SlowStorage(opened), HeartbeatLiveness(LEASE)
        owner = Owner(liveness)
        worker = Worker(storage, liveness, lambda: 0, owner)  # type: ignore[arg-type]
        await worker.start()
        storage.asked.clear()
        storage.flows.clear()
        await storage.asked.wait()
        assert liveness.is_sure(), "when the heartbeat was sent"
        while liveness.is_sure():  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(0)
        storage.fails = fails
        storage.flows.set()
        async with asyncio.timeout(5):
            if fails:
                storage.asked.clear()
                await storage.asked.wait()
                storage.fails = False
            await owner.was_told.wait()
        await worker.stop()
    assert owner.told == [True], "once, when it is sure"


async def test_a_worker_that_comes_is_told_once() -> None:
    async with open_storage("memory://") as storage:
        liveness = Neighbours()
        owner = Owner(liveness)
        worker = Worker(storage, liveness, lambda: 0, owner)
        await worker.start()
        assert owner.came == 0, "it is not told of itself"
        other = Worker(storage, HeartbeatLiveness(LEASE), lambda: 0, Owner(liveness))
        await other.start()
        await worker.bury_the_dead()
        await worker.bury_the_dead()
        assert owner.came == 1
        await asyncio.gather(worker.stop(), other.stop())


async def test_its_row_says_what_it_offers_now() -> None:
    """Sagas may be registered after the engine was entered."""
    async with open_storage("memory://") as storage:
        liveness = HeartbeatLiveness(LEASE)
        owner = Owner(liveness)
        worker = Worker(storage, liveness, lambda: 0, owner)
        await worker.start()

        async def told(runs: str) -> bool:
            row = await storage.get("workers", (worker.ref.id,))
            return row is not None and (row["max_running"], row["runs"]) == (7, runs)

        assert await told("[]")
        owner.offers = {"max_running": 7, "runs": '[["trip",1]]'}
        async with asyncio.timeout(5):
            while not await told('[["trip",1]]'):  # noqa: ASYNC110 - it looks now and then
                await asyncio.sleep(0)
        await worker.stop()


async def test_rule_12_the_long_dead_are_forgotten_and_may_come_back_as_another_life() -> None:
    """A worker whose row is gone is refused like any that is dead, and registers anew."""
    now = 0
    async with open_storage("memory://") as storage:
        liveness = Neighbours()
        zombie = Worker(storage, HeartbeatLiveness(LEASE), lambda: now, Reborn(liveness))
        await zombie.start()
        liveness.gone = {zombie.ref.id}
        worker = Worker(storage, liveness, lambda: now, Owner(liveness))
        await worker.start()
        former = zombie.ref

        async def forgotten() -> bool:
            return await storage.get("workers", (former.id,)) is None

        worker._prune_at = 0.0
        await worker._prune()
        assert not await forgotten(), "it died just now"
        now = 25 * 3600 * 1_000_000
        await worker._prune()
        assert not await forgotten(), "not so soon again"
        worker._prune_at = 0.0
        await worker._prune()
        assert await forgotten()
        await zombie.beat()
        assert (zombie.ref.incarnation, await forgotten()) == (2, False)
        with pytest.raises(OwnershipLostError):
            await storage.write(Unit(uuid7(), now, rows=(), worker=former))
        await asyncio.gather(worker.stop(), zombie.stop())


class Reborn(Owner):
    """Notes its lives."""

    def __init__(self, liveness: HeartbeatLiveness) -> None:
        super().__init__(liveness)
        self.lives: list[int] = []

    def worker_reborn(self, ref: WorkerRef) -> None:
        self.lives.append(ref.incarnation)


@pytest.mark.parametrize("landed", ["never", "late", "row lost"])
async def test_rule_12_a_life_that_began_without_an_answer_is_no_end(landed: str) -> None:
    """Whether the store has that life, not, or, after a failover, nothing of the worker: the next goes on from there."""
    async with open_storage("memory://") as opened:
        storage, liveness = SlowStorage(opened), HeartbeatLiveness(LEASE)
        owner = Reborn(liveness)
        worker = Worker(storage, liveness, lambda: 0, owner)  # type: ignore[arg-type]
        await worker.start()
        await opened.perform("bury_worker", beat=None, id=worker.ref.id, incarnation=1, now=0)
        storage.fails_after = 1  # the heartbeat is refused; what begins the next life has no answer
        with pytest.raises(StorageUnavailableError):
            await worker.beat()
        if landed == "late":
            await opened.write(
                unit_of(worker, "update", {"incarnation": 2, "alive": 1}, {"incarnation": 1, "alive": 0})
            )
        elif landed == "row lost":
            await opened.write(unit_of(worker, "delete", {}, {}))
        storage.fails_after = None
        await worker.beat()
        await worker.beat()
        row = await opened.get("workers", (worker.ref.id,))
        assert row is not None
        assert (row["alive"], row["incarnation"]) == (1, worker.ref.incarnation)
        await worker.stop()
    assert owner.lives == ([2] if landed == "late" else [2, 3])


def unit_of(worker: Worker, op: RowOp, values: dict[str, Any], where: dict[str, Any]) -> Unit:
    return Unit(uuid7(), 0, rows=(Row("workers", op, (worker.ref.id,), values, where),))
