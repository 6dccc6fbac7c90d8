"""The command bus, on every backend: deciding, retrying, and executing once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from event_workflow_engine.aggregates import Aggregate
from event_workflow_engine.commands import CONFLICT_RETRY, CommandBus
from event_workflow_engine.errors import (
    DefinitionError,
    EncodeError,
    EventIdConflictError,
    NotRegisteredError,
    VersionConflictError,
)
from event_workflow_engine.event_store import Appended, EventStore
from event_workflow_engine.events import NewEvent, event
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.snapshots import SnapshotManager, every
from event_workflow_engine.storage import Storage, open_storage


@event("commands-deposited")
@dataclass(frozen=True)
class Deposited:
    cents: int


@event("commands-withdrawn")
@dataclass(frozen=True)
class Withdrawn:
    cents: int


@dataclass
class Account(Aggregate[Deposited | Withdrawn], category="cmaccount"):
    cents: int = 0

    def apply(self, event: Deposited | Withdrawn, /) -> None:
        self.cents += event.cents if isinstance(event, Deposited) else -event.cents


@dataclass(frozen=True)
class Deposit:
    account: str
    cents: int


@dataclass(frozen=True)
class Withdraw:
    account: str
    cents: int


def deposit(account: Account, command: Deposit) -> list[Deposited]:
    return [Deposited(command.cents)]


def withdraw(account: Account, command: Withdraw) -> Withdrawn | None:
    if not command.cents:
        return None
    if account.cents < command.cents:
        raise ValueError("overdrawn")
    return Withdrawn(command.cents)


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> EventStore:
    return EventStore(storage)


def bus_on(store: EventStore, handler: Any = deposit, **options: Any) -> CommandBus:
    bus = CommandBus(store)
    bus.register(Deposit, handler, aggregate=Account, key=lambda command: command.account, **options)
    bus.register(Withdraw, withdraw, aggregate=Account, key=lambda command: command.account)
    return bus


@pytest.fixture
def bus(store: EventStore) -> CommandBus:
    return bus_on(store)


async def balance(store: EventStore, account: str = "a") -> int:
    return (await store.replay(Account, account)).cents


# -- deciding ----------------------------------------------------------------------------------------------------------


async def test_what_the_handler_decides_is_appended(store: EventStore, bus: CommandBus) -> None:
    assert await bus.execute(Deposit("a", 500)) == Appended(1, (1,))
    assert await bus.execute(Withdraw("a", 200)) == Appended(2, (2,))
    assert await bus.execute(Deposit("b", 1)) == Appended(1, (3,))
    assert await balance(store) == 300


async def decide_async(account: Account, command: Deposit) -> list[Deposited]:
    await asyncio.sleep(0)
    return [Deposited(command.cents)]


def decide_lazily(account: Account, command: Deposit) -> Iterator[Deposited]:
    yield Deposited(command.cents)


DECISIONS = {
    "list": deposit,
    "tuple": lambda account, command: (Deposited(command.cents),),
    "one": lambda account, command: Deposited(command.cents),
    "generator": decide_lazily,
    "named": lambda account, command: NewEvent("commands-deposited", {"cents": command.cents}),
    "async": decide_async,
    "future": lambda account, command: asyncio.ensure_future(decide_async(account, command)),
}


@pytest.mark.parametrize("shape", DECISIONS)
async def test_a_handler_may_answer_in_any_shape(store: EventStore, shape: str) -> None:
    assert await bus_on(store, DECISIONS[shape]).execute(Deposit("a", 5)) == Appended(1, (1,))
    assert await balance(store) == 5


@pytest.mark.parametrize("nothing", [None, [], ()], ids=repr)
async def test_a_handler_may_decide_nothing(store: EventStore, nothing: Any) -> None:
    bus = bus_on(store, lambda account, command: nothing)
    assert await bus.execute(Deposit("a", 5)) == Appended(0, ())
    assert await store.head("cmaccount-a") == 0


async def test_what_a_handler_raises_is_raised_and_nothing_is_stored(store: EventStore, bus: CommandBus) -> None:
    with pytest.raises(ValueError, match="overdrawn"):
        await bus.execute(Withdraw("a", 1), id="cmd-1")
    assert await store.head("cmaccount-a") == 0
    await bus.execute(Deposit("a", 5))
    assert (await bus.execute(Withdraw("a", 1), id="cmd-1")).version == 2  # it was not executed the first time


@pytest.mark.parametrize(
    ("decided", "error"),
    [
        ([{"a": 1}], NotRegisteredError),
        ({"a": 1}, NotRegisteredError),
        ("text", NotRegisteredError),
        (7, NotRegisteredError),
        ([Deposited("x")], EncodeError),  # type: ignore[arg-type]
    ],
    ids=["dict in list", "dict", "text", "number", "wrong type"],
)
async def test_a_bad_decision_stores_nothing(store: EventStore, decided: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await bus_on(store, lambda account, command: decided).execute(Deposit("a", 5), id="cmd-1")
    assert await store.head("cmaccount-a") == 0
    assert await store.storage.get("commands", ("cmd-1",)) is None


async def test_the_command_is_the_cause_of_its_events(store: EventStore, bus: CommandBus) -> None:
    await bus.execute(Deposit("a", 5), id="cmd-1")
    await bus.execute(Deposit("a", 5))
    events = [event async for event in store.read("cmaccount-a")]
    assert [event.metadata.causation_id for event in events] == ["cmd-1", None]


async def test_snapshots_are_kept_and_used(store: EventStore) -> None:
    snapshots = SnapshotManager(store)
    snapshots.register(Account, every(3))
    bus = bus_on(store)
    for _ in range(4):
        await bus.execute(Deposit("a", 1))
    snapshot = await snapshots.load("cmaccount-a", Account)
    assert snapshot is not None
    assert (snapshot.version, snapshot.state.cents) == (3, 3)


# -- registration ------------------------------------------------------------------------------------------------------


async def test_what_nothing_handles_is_refused(store: EventStore) -> None:
    with pytest.raises(NotRegisteredError, match=r"no handler for commands .*Deposit: register"):
        await CommandBus(store).execute(Deposit("a", 5))


def test_a_type_has_one_handler(bus: CommandBus) -> None:
    bus.register(Deposit, deposit, aggregate=Account, key=lambda command: command.account)
    with pytest.raises(DefinitionError, match=r"Deposit are handled by .*deposit, so not by .*decide_async"):
        bus.register(Deposit, decide_async, aggregate=Account, key=lambda command: command.account)


def test_the_aggregate_needs_a_category(store: EventStore) -> None:
    @dataclass
    class Homeless(Aggregate[Deposited]):
        pass

    with pytest.raises(DefinitionError, match="has no category"):
        CommandBus(store).register(Deposit, lambda a, c: None, aggregate=Homeless, key=lambda c: c.account)


@pytest.mark.parametrize("key", ["", None, 7, "a\nb", "x" * 400], ids=repr)
async def test_a_bad_key_is_refused(bus: CommandBus, key: Any) -> None:
    with pytest.raises(DefinitionError):
        await bus.execute(Deposit(key, 5))


@pytest.mark.parametrize("id", ["", 7, "x" * 401, "a\0"], ids=repr)
async def test_a_bad_id_is_refused(bus: CommandBus, id: Any) -> None:  # noqa: A002
    with pytest.raises(DefinitionError, match="a command's id"):
        await bus.execute(Deposit("a", 5), id=id)


# -- conflicts ---------------------------------------------------------------------------------------------------------


class Intruder:
    """A handler before whose first decisions somebody else appends to the stream."""

    def __init__(self, store: EventStore, times: int) -> None:
        self.store = store
        self.left = times
        self.seen: list[int] = []

    async def __call__(self, account: Account, command: Deposit) -> list[Deposited]:
        self.seen.append(account.cents)
        if self.left:
            self.left -= 1
            await self.store.append("cmaccount-a", Deposited(1000))
        return [Deposited(command.cents)]


QUICK = RetryPolicy(attempts=5, delay=0.001, jitter=0)


async def test_a_conflict_is_decided_anew_on_the_new_state(store: EventStore) -> None:
    intruder = Intruder(store, 3)
    done = await bus_on(store, intruder, retry=QUICK).execute(Deposit("a", 5), id="cmd-1")
    assert intruder.seen == [0, 1000, 2000, 3000]
    assert done.version == 4
    assert await balance(store) == 3005


async def test_a_policy_that_is_used_up_raises_the_conflict(store: EventStore) -> None:
    intruder = Intruder(store, 99)
    with pytest.raises(VersionConflictError):
        await bus_on(store, intruder, retry=QUICK).execute(Deposit("a", 5), id="cmd-1")
    assert len(intruder.seen) == 5
    assert await store.storage.get("commands", ("cmd-1",)) is None


def test_the_default_is_five_attempts(bus: CommandBus) -> None:
    assert CONFLICT_RETRY.attempts == 5


async def test_the_wait_between_attempts_is_real(store: EventStore) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    policy = RetryPolicy(attempts=3, delay=0.02, factor=2, jitter=0)
    await bus_on(store, Intruder(store, 2), retry=policy).execute(Deposit("a", 5))
    assert loop.time() - began >= 0.02 + 0.04


async def test_deciding_nothing_on_a_state_that_has_passed_is_decided_anew(store: EventStore) -> None:
    intruder = Intruder(store, 1)

    async def decide(account: Account, command: Deposit) -> list[Deposited]:
        return (await intruder(account, command)) if account.cents else (await intruder(account, command))[:0]

    assert (await bus_on(store, decide, retry=QUICK).execute(Deposit("a", 5), id="cmd-1")).version == 2
    assert intruder.seen == [0, 1000]


async def test_a_conflict_on_another_stream_is_the_handlers_own(store: EventStore) -> None:
    async def decide(account: Account, command: Deposit) -> list[Deposited]:
        await store.append("elsewhere-1", Deposited(1), expected_version=7)
        return []

    with pytest.raises(VersionConflictError, match="elsewhere-1"):
        await bus_on(store, decide).execute(Deposit("a", 5))


async def test_a_hundred_commands_on_one_aggregate_all_succeed(store: EventStore, bus: CommandBus) -> None:
    done = await asyncio.gather(*(bus.execute(Deposit("a", 1), id=f"cmd-{n}") for n in range(100)))
    assert sorted(each.version for each in done) == list(range(1, 101))
    assert await balance(store) == 100
    assert bus._turns == {}


async def test_no_money_is_withdrawn_twice(store: EventStore, bus: CommandBus) -> None:
    await bus.execute(Deposit("a", 10))
    results = await asyncio.gather(*(bus.execute(Withdraw("a", 3)) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, Appended) for result in results) == 3
    assert await balance(store) == 1


async def test_a_handler_may_execute_a_command_on_its_own_aggregate(store: EventStore) -> None:
    nested = False

    async def decide(account: Account, command: Deposit) -> list[Deposited]:
        nonlocal nested
        if not nested:
            nested = True
            await bus.execute(Deposit("a", 100))
        return [Deposited(command.cents)]

    bus = bus_on(store, decide, retry=QUICK)
    async with asyncio.timeout(20):
        await bus.execute(Deposit("a", 1))
    assert await balance(store) == 101


async def test_a_caller_that_is_cancelled_holds_nobody_up(store: EventStore) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    async def decide(account: Account, command: Deposit) -> list[Deposited]:
        entered.set()
        await go.wait()
        return [Deposited(command.cents)]

    bus = bus_on(store, decide)
    first = asyncio.create_task(bus.execute(Deposit("a", 1)))
    await entered.wait()
    second = asyncio.create_task(bus.execute(Deposit("a", 2)))
    third = asyncio.create_task(bus.execute(Deposit("a", 4)))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    go.set()
    await third
    assert await balance(store) == 4
    assert bus._turns == {}


# -- once --------------------------------------------------------------------------------------------------------------


async def test_an_id_is_executed_once(store: EventStore) -> None:
    asked: list[int] = []

    def decide(account: Account, command: Deposit) -> list[Deposited]:
        asked.append(account.version)
        return [Deposited(command.cents), Deposited(command.cents)]

    bus = bus_on(store, decide)
    await bus.execute(Deposit("b", 1))
    first = await bus.execute(Deposit("a", 5), id="cmd-1")
    await bus.execute(Deposit("a", 7), id="cmd-2")
    assert await bus.execute(Deposit("a", 5), id="cmd-1") == first == Appended(2, (3, 4))
    assert asked == [0, 0, 2]
    assert await balance(store) == 24


async def test_an_id_is_executed_once_even_where_it_could_not_be_again(store: EventStore, bus: CommandBus) -> None:
    await bus.execute(Deposit("a", 5))
    first = await bus.execute(Withdraw("a", 5), id="cmd-1")
    assert await bus.execute(Withdraw("a", 5), id="cmd-1") == first


async def test_an_id_that_decided_nothing_is_executed_once_too(store: EventStore, bus: CommandBus) -> None:
    await bus.execute(Deposit("a", 5))
    assert await bus.execute(Withdraw("a", 0), id="cmd-1") == Appended(1, ())
    await bus.execute(Deposit("a", 5))
    assert await bus.execute(Withdraw("a", 0), id="cmd-1") == Appended(1, ())
    with pytest.raises(EventIdConflictError, match="'cmd-1' was used for another command"):
        await bus.execute(Withdraw("a", 1), id="cmd-1")


@pytest.mark.parametrize("other", [Deposit("a", 6), Deposit("b", 5), Withdraw("a", 5)], ids=repr)
async def test_an_id_with_another_command_is_a_conflict(store: EventStore, bus: CommandBus, other: Any) -> None:
    await bus.execute(Deposit("a", 5), id="cmd-1")
    with pytest.raises(EventIdConflictError, match="'cmd-1' was used for another command, on stream 'cmaccount-a'"):
        await bus.execute(other, id="cmd-1")
    assert await store.storage.last_position() == 1


@pytest.mark.proves("one-winner")
async def test_the_same_id_at_the_same_time_is_executed_once(store: EventStore, bus: CommandBus) -> None:
    done = await asyncio.gather(*(bus.execute(Deposit("a", 5), id="cmd-1") for _ in range(20)))
    assert set(done) == {Appended(1, (1,))}
    assert await balance(store) == 5


@pytest.mark.parametrize("named", [False, True], ids=["conflict of versions", "conflict of event ids"])
async def test_losing_against_the_same_command_is_no_loss(store: EventStore, named: bool) -> None:
    """Another process executes it while this one decides, and this one may not even try again."""
    elsewhere = bus_on(store, lambda account, command: NewEvent("commands-deposited", {"cents": 1}, id="own"))

    async def decide(account: Account, command: Deposit) -> NewEvent:
        await elsewhere.execute(command, id="cmd-1")
        return NewEvent("commands-deposited", {"cents": 2}, id="own" if named else None)

    bus = bus_on(store, decide, retry=RetryPolicy(attempts=1))
    assert await bus.execute(Deposit("a", 5), id="cmd-1") == Appended(1, (1,))
    assert await balance(store) == 1


async def test_a_command_that_is_no_json_cannot_have_an_id(store: EventStore) -> None:
    class Opaque:
        pass

    bus = CommandBus(store)
    bus.register(Opaque, lambda account, command: [Deposited(1)], aggregate=Account, key=lambda _: "a")
    with pytest.raises(EncodeError, match=r"command .*Opaque 'cmd-1'"):
        await bus.execute(Opaque(), id="cmd-1")
    assert (await bus.execute(Opaque())).version == 1


async def over_processes(path: Path, stack: AsyncExitStack, count: int) -> list[tuple[EventStore, CommandBus]]:
    """Command buses whose storages share nothing but a file, as those of several processes would."""
    url = f"sqlite:///{path}/log.db"
    stores = [EventStore(await stack.enter_async_context(open_storage(url))) for _ in range(count)]
    return [(store, bus_on(store, retry=RetryPolicy(attempts=None, delay=0.001))) for store in stores]


async def test_processes_execute_an_id_once_between_them(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        several = await over_processes(tmp_path, stack, 3)
        for n in range(10):
            done = await asyncio.gather(*(bus.execute(Deposit("a", 5), id=f"cmd-{n}") for _, bus in several))
            assert len(set(done)) == 1
            assert done[0].version == n + 1
        assert [await balance(store) for store, _ in several] == [50, 50, 50]


async def test_processes_that_decide_at_once_lose_nothing(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        several = await over_processes(tmp_path, stack, 3)

        async def many(bus: CommandBus, who: int) -> None:
            for n in range(15):
                await bus.execute(Deposit("a", 1), id=f"{who}-{n}")

        await asyncio.gather(*(many(bus, who) for who, (_, bus) in enumerate(several)))
        assert await balance(several[0][0]) == 45


async def test_an_id_is_known_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        async with AsyncExitStack() as stack:
            ((store, bus),) = await over_processes(tmp_path, stack, 1)
            assert await bus.execute(Deposit("a", 5), id="cmd-1") == Appended(1, (1,))
            assert await balance(store) == 5
