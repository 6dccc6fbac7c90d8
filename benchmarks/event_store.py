"""The event store at its smaller jobs: commands, followers, loading from a snapshot.

Run one by hand: ``python -m benchmarks.child event_store:commands FOLDER``. Appending and loading without a snapshot,
which have a bar to reach, are in `benchmarks.store`.
"""

from __future__ import annotations

import asyncio
import statistics
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.store import Account, Deposited
from event_workflow_engine import CommandBus, EventStore, Repository, SnapshotManager
from event_workflow_engine.snapshots import every
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Deposit:
    """A command."""

    account: str
    cents: int


def deposit(_: Account, command: Deposit) -> Deposited:
    """Decide it."""
    return Deposited(command.account, command.cents)


def _url(folder: Path) -> str:
    return f"sqlite:///{folder.resolve() / 'bench.db'}"


def commands(folder: Path, *, count: int = 6000, callers: int = 100) -> dict[str, float]:
    """Commands with an id, each caller on an aggregate of its own; and all on one aggregate."""

    async def main() -> dict[str, float]:
        async with open_storage(_url(folder)) as storage:
            bus = CommandBus(EventStore(storage))
            bus.register(Deposit, deposit, aggregate=Account, key=lambda command: command.account)

            async def caller(label: str, account: str, each: int) -> None:
                for n in range(each):
                    await bus.execute(Deposit(account, 1), id=f"{label}-{n}")

            async def rate(label: str, each: int, *, shared: bool) -> float:
                begun = perf_counter()
                names = [f"{label}{n}" for n in range(callers)]
                await asyncio.gather(*(caller(name, label if shared else name, each) for name in names))
                return callers * each / (perf_counter() - begun)

            await rate("warm", 2, shared=False)
            return {
                "commands_per_s": await rate("own", count // callers, shared=False),
                "one_aggregate_per_s": await rate("one", max(1, count // callers // 10), shared=True),
            }

    return asyncio.run(main())


def follow(folder: Path, *, events: int = 20_000, writers: int = 100) -> dict[str, float]:
    """A follower beside writers: events a second until it has seen the last, and of a log that is there already."""

    async def main() -> dict[str, float]:
        async with open_storage(_url(folder)) as storage:
            store = EventStore(storage)

            async def follower() -> None:
                seen = 0
                async with aclosing(store.follow(after=0)) as log:
                    async for event in log:
                        seen += 1
                        if event.position != seen:
                            raise AssertionError(f"position {event.position} where {seen} comes next")
                        if seen == events:
                            return

            async def writer(n: int) -> None:
                for _ in range(events // writers):
                    await store.append(f"account-{n}", Deposited("o", 5))

            begun = perf_counter()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(follower())
                for n in range(writers):
                    tasks.create_task(writer(n))
            beside = events / (perf_counter() - begun)
            begun = perf_counter()
            await follower()
            return {"beside_writers_per_s": beside, "caught_up_per_s": events / (perf_counter() - begun)}

    return asyncio.run(main())


def snapshot(folder: Path, *, events: int = 10_000, rounds: int = 20) -> dict[str, float]:
    """Loading an aggregate of many events with a snapshot of all but the last few."""

    async def main() -> float:
        async with open_storage(_url(folder)) as storage:
            store = EventStore(storage)
            snapshots = SnapshotManager(store)
            snapshots.register(Account, every(1000))
            accounts = Repository(store, Account)
            account = await accounts.load("0")
            await accounts.save(account, [Deposited("o", 1)] * events)
            await accounts.save(account, [Deposited("o", 1)] * 10)
            taken = []
            for _ in range(rounds):
                begun = perf_counter()
                loaded = await accounts.load("0")
                taken.append((perf_counter() - begun) * 1000)
                if loaded != account or loaded.version != events + 10:
                    raise AssertionError(f"{loaded} at version {loaded.version}")
        return statistics.median(taken)

    return {"load_ms": asyncio.run(main())}
