"""Aggregates and their repository, on every backend."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.aggregates import Aggregate, Repository, event_names
from event_workflow_engine.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    NotRegisteredError,
    OutsideSagaError,
    VersionConflictError,
)
from event_workflow_engine.event_store import Appended, EventStore
from event_workflow_engine.events import NewEvent, current_event, event
from event_workflow_engine.snapshots import SnapshotManager, every
from event_workflow_engine.storage import Storage, open_storage
from event_workflow_engine.storage.port import Append, NewRecord, Unit


class BankEvent:
    pass


@event("aggregates-opened")
@dataclass(frozen=True)
class Opened(BankEvent):
    account: str


@event("aggregates-deposited")
@dataclass(frozen=True)
class Deposited(BankEvent):
    cents: int


@event("aggregates-note")
class Note(TypedDict):
    text: str


@dataclass
class Account(Aggregate[Opened | Deposited], category="agaccount"):
    cents: int = 0
    log: list[str] = field(default_factory=list)

    def apply(self, event: Opened | Deposited, /) -> None:
        match event:
            case Opened(account=account):
                self.log.append(f"opened {account}")
            case Deposited(cents=cents):
                if cents == 666:
                    raise ValueError("cursed")
                self.cents += cents
                self.log.append(f"{self.id} {self.version} +{cents}")


@dataclass
class Anything(Aggregate[Any], category="aganything"):
    seen: list[Any] = field(default_factory=list)

    def apply(self, event: Any, /) -> None:
        self.seen.append(event)


@pytest.fixture
async def storage(store_url: str) -> AsyncIterator[Storage]:
    async with open_storage(store_url, auto_upgrade=True) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> EventStore:
    return EventStore(storage)


@pytest.fixture
def accounts(store: EventStore) -> Repository[Account]:
    return Repository(store, Account)


# -- definitions -------------------------------------------------------------------------------------------------------


def test_id_and_version_are_no_fields() -> None:
    account = Account(5)
    assert (account.id, account.version) == ("", 0)
    assert account == Account(5)
    assert repr(account) == "Account(cents=5, log=[])"
    with pytest.raises(AttributeError):
        account.id = "x"  # type: ignore[misc]


def test_a_field_may_not_take_their_names() -> None:
    with pytest.raises(DefinitionError, match="id must not be defined"):

        @dataclass
        class WithId(Aggregate[Opened], category="x"):
            id: str = ""  # type: ignore[misc]

    with pytest.raises(DefinitionError, match="version must not be defined"):

        class WithVersion(Aggregate[Opened], category="x"):
            version = 3  # type: ignore[assignment]


@pytest.mark.parametrize("category", ["", "a-b", "a\n", "x" * 101, "saga", "inbox"], ids=repr)
def test_bad_categories_are_refused(category: str) -> None:
    with pytest.raises(DefinitionError, match="category"):

        class Bad(Aggregate[Opened], category=category):
            pass


def test_without_a_category_there_is_no_repository(store: EventStore) -> None:
    @dataclass
    class Homeless(Aggregate[Opened]):
        pass

    with pytest.raises(DefinitionError, match=r'has no category: class Homeless.*category="homeless"'):
        Repository(store, Homeless)
    with pytest.raises(DefinitionError, match="no class derived from Aggregate"):
        Repository(store, dict)  # type: ignore[type-var]


def test_the_category_is_inherited_and_may_be_changed() -> None:
    class Saver(Account):
        pass

    class Other(Account, category="agother"):
        pass

    assert (Saver.category, Other.category, Account.category) == ("agaccount", "agother", "agaccount")


async def test_every_field_needs_a_default(store: EventStore) -> None:
    @dataclass
    class Needy(Aggregate[Opened], category="agneedy"):
        name: str

    with pytest.raises(DefinitionError, match=r"every field needs a default .*name"):
        await Repository(store, Needy).load("1")


def test_the_event_types_are_those_of_the_union() -> None:
    @dataclass
    class One(Aggregate[Opened], category="agone"):
        pass

    @dataclass
    class Base(Aggregate[BankEvent], category="agbase"):
        pass

    @dataclass
    class Plain(Aggregate[dict[str, Any]], category="agplain"):
        pass

    @dataclass
    class Half(Aggregate[Opened | int], category="aghalf"):
        pass

    both = {"aggregates-opened", "aggregates-deposited"}
    assert event_names(Account) == both
    assert event_names(type("Derived", (Account,), {})) == both
    assert event_names(One) == {"aggregates-opened"}
    assert event_names(Base) == both
    assert [event_names(kind) for kind in (Anything, Plain, Half)] == [frozenset()] * 3

    generic = TypeVar("generic")

    class Generically(Aggregate[generic], category="aggeneric"):  # type: ignore[valid-type, misc]
        pass

    assert event_names(Generically) == frozenset()


# -- loading -----------------------------------------------------------------------------------------------------------


async def test_an_aggregate_is_the_fold_of_its_stream(store: EventStore, accounts: Repository[Account]) -> None:
    await store.append("agaccount-a1", [Opened("a1"), Deposited(5), Deposited(7)])
    await store.append("agaccount-a2", Deposited(100))
    account = await accounts.load("a1")
    assert (account.cents, account.id, account.version) == (12, "a1", 3)
    assert account.log == ["opened a1", "a1 1 +5", "a1 2 +7"]
    assert await store.replay(Account, "a1") == account


async def test_one_to_which_nothing_happened_is_new(accounts: Repository[Account]) -> None:
    account = await accounts.load("a1")
    assert (account, account.id, account.version) == (Account(), "a1", 0)


async def test_it_can_be_had_as_of_any_version(store: EventStore, accounts: Repository[Account]) -> None:
    await store.append("agaccount-a1", [Deposited(1) for _ in range(20)])
    for version in range(21):
        account = await accounts.load("a1", version=version)
        assert (account.cents, account.version) == (version, version)
    with pytest.raises(VersionConflictError) as error:
        await accounts.load("a1", version=21)
    assert (error.value.expected, error.value.actual) == (21, 20)


@pytest.mark.parametrize("version", [-1, 1.0, True, "1"], ids=repr)
async def test_bad_versions_are_refused(accounts: Repository[Account], version: Any) -> None:
    with pytest.raises(DefinitionError, match="version"):
        await accounts.load("a1", version=version)


@pytest.mark.parametrize("id", ["", "a\nb", "x" * 400, None, 7], ids=repr)
async def test_bad_ids_are_refused(accounts: Repository[Account], id: Any) -> None:  # noqa: A002
    with pytest.raises(DefinitionError):
        await accounts.load(id)


async def test_a_long_stream_is_folded_in_pages(store: EventStore, accounts: Repository[Account]) -> None:
    await store.append("agaccount-a1", [Deposited(1)] * 9000)
    assert (await accounts.load("a1")).cents == 9000
    assert (await accounts.load("a1", version=4500)).version == 4500


async def test_a_fold_may_ask_for_the_whole_event(store: EventStore) -> None:
    @dataclass
    class Curious(Aggregate[Opened | Deposited], category="agcurious"):
        log: list[tuple[Any, ...]] = field(default_factory=list)

        def apply(self, event: Opened | Deposited, /) -> None:
            whole = current_event()
            assert whole is current_event()
            assert whole.data == event
            self.log.append((whole.type, whole.version, whole.position, whole.metadata.actor))

    await store.append("other-1", Opened("x"))
    await store.append("agcurious-1", [Opened("a"), Deposited(1)], metadata={"actor": "ann"})
    curious = await store.replay(Curious, "1")
    assert curious.log == [("aggregates-opened", 1, 2, "ann"), ("aggregates-deposited", 2, 3, "ann")]
    await Repository(store, Curious).save(curious, Deposited(2))
    assert curious.log[-1] == ("aggregates-deposited", 3, 0, None)  # by then the position is not known
    with pytest.raises(OutsideSagaError):
        current_event()


async def test_an_event_whose_type_is_not_registered_is_not_passed_over(store: EventStore) -> None:
    await store.append("agaccount-a1", [Deposited(1), NewEvent("aggregates-forgotten", {"cents": 5})])
    with pytest.raises(
        NotRegisteredError, match=r"'agaccount-a1' holds events 'aggregates-forgotten'.*import the module"
    ):
        await store.replay(Account, "a1")
    await store.append("aganything-1", NewEvent("aggregates-forgotten", {"cents": 5}))
    assert (await store.replay(Anything, "1")).seen == [{"cents": 5}]


async def test_what_cannot_be_read_or_folded_says_where(store: EventStore) -> None:
    await store.append("agaccount-a1", [Deposited(1), Deposited(666)])
    with pytest.raises(ValueError, match="cursed") as raised:
        await store.replay(Account, "a1")
    assert raised.value.__notes__ == ["while folding 'aggregates-deposited', version 2 of stream 'agaccount-a1'"]
    broken = NewRecord("b", "aggregates-deposited", b"[]")
    await store.storage.write(Unit("b", 1, (Append("agaccount-a2", (broken,)),)))
    with pytest.raises(DecodeError, match="version 1 of stream 'agaccount-a2'"):
        await store.replay(Account, "a2")


async def test_an_aggregate_without_apply_says_so(store: EventStore) -> None:
    @dataclass
    class Mute(Aggregate[Opened], category="agmute"):
        pass

    await store.append("agmute-1", Opened("a"))
    with pytest.raises(DefinitionError, match="Mute has no apply"):
        await store.replay(Mute, "1")


# -- saving ------------------------------------------------------------------------------------------------------------


async def test_what_was_decided_is_appended_and_applied(store: EventStore, accounts: Repository[Account]) -> None:
    account = await accounts.load("a1")
    assert await accounts.save(account, [Opened("a1"), Deposited(5)]) == Appended(2, (1, 2))
    assert (account.cents, account.version) == (5, 2)
    assert await accounts.save(account, Deposited(7), metadata={"actor": "ann"}) == Appended(3, (3,))
    assert account == await accounts.load("a1")
    assert [event.metadata.actor async for event in store.read("agaccount-a1")] == [None, None, "ann"]


async def test_named_events_are_applied_as_they_are_read(accounts: Repository[Account]) -> None:
    account = await accounts.load("a1")
    await accounts.save(account, NewEvent("aggregates-deposited", {"cents": 5}))
    assert account.cents == 5


@given(st.lists(st.lists(st.integers(0, 600), min_size=1, max_size=5), max_size=5))
async def test_after_saving_it_is_what_loading_gives(batches: list[list[int]]) -> None:
    async with open_storage("memory://") as storage:
        accounts = Repository(EventStore(storage), Account)
        account = await accounts.load("a1")
        for batch in batches:
            await accounts.save(account, [Deposited(cents) for cents in batch])
        assert account == await accounts.load("a1")
        assert account.version == sum(map(len, batches))


@pytest.mark.proves("one-winner")
async def test_of_two_that_decided_on_the_same_state_one_wins(accounts: Repository[Account]) -> None:
    first, second = await accounts.load("a1"), await accounts.load("a1")
    await accounts.save(first, Deposited(5))
    with pytest.raises(VersionConflictError):
        await accounts.save(second, Deposited(7))
    assert second.version == -1
    with pytest.raises(DefinitionError, match=r"'a1' cannot be saved.*load it \(again\)"):
        await accounts.save(second, Deposited(7))
    assert (await accounts.load("a1")).cents == 5


async def test_what_cannot_be_applied_is_never_stored(store: EventStore, accounts: Repository[Account]) -> None:
    account = await accounts.load("a1")
    with pytest.raises(ValueError, match="cursed"):
        await accounts.save(account, [Deposited(1), Deposited(666)])
    assert await store.head("agaccount-a1") == 0
    with pytest.raises(DefinitionError, match="cannot be saved"):
        await accounts.save(account, Deposited(1))


async def test_events_that_are_wrong_leave_the_aggregate_as_it_was(accounts: Repository[Account]) -> None:
    account = await accounts.load("a1")
    with pytest.raises(EncodeError):
        await accounts.save(account, Deposited("5"))  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="at least one event"):
        await accounts.save(account, [])
    await accounts.save(account, Deposited(5))
    assert (account.cents, account.version) == (5, 1)


async def test_one_that_was_not_loaded_is_not_saved(accounts: Repository[Account]) -> None:
    with pytest.raises(DefinitionError, match="did not come from a repository's load"):
        await accounts.save(Account(), Deposited(1))


async def test_saves_may_be_under_way_at_once(accounts: Repository[Account]) -> None:
    account = await accounts.load("a1")
    results = await asyncio.gather(*(accounts.save(account, Deposited(1)) for _ in range(10)))
    assert [result.version for result in results] == list(range(1, 11))
    assert (account.cents, account.version) == (10, 10)
    assert account == await accounts.load("a1")


async def test_repeating_a_save_tells_the_same_and_cannot_go_on(accounts: Repository[Account]) -> None:
    decided = NewEvent("aggregates-deposited", {"cents": 5}, id="once")
    first = await accounts.save(await accounts.load("a1"), decided)
    again = await accounts.load("a1")
    assert await accounts.save(again, decided) == first
    assert again.version == -1  # it was applied twice
    assert (await accounts.load("a1")).cents == 5


async def test_a_save_that_is_cancelled_leaves_nothing_half_done(accounts: Repository[Account]) -> None:
    for spins in range(6):
        account = await accounts.load(f"a{spins}")
        task = asyncio.create_task(accounts.save(account, [Opened("x"), Deposited(5)]))
        for _ in range(spins):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        now = await accounts.load(f"a{spins}")
        assert now.version in (0, 2)
        if isinstance(result, Appended):
            assert account.version == now.version == 2


# -- snapshots ---------------------------------------------------------------------------------------------------------


async def test_saving_keeps_snapshots_by_the_policy(store: EventStore) -> None:
    snapshots = SnapshotManager(store)
    snapshots.register(Account, every(10))
    accounts = Repository(store, Account)
    account = await accounts.load("a1")
    for _ in range(9):
        await accounts.save(account, Deposited(1))
    assert await snapshots.load("agaccount-a1", Account) is None
    await accounts.save(account, [Deposited(1)] * 3)
    assert (await snapshots.load("agaccount-a1", Account)).version == 12  # type: ignore[union-attr]
    for _ in range(10):
        await accounts.save(account, Deposited(1))
    snapshot = await snapshots.load("agaccount-a1", Account)
    assert snapshot is not None
    assert (snapshot.version, snapshot.state) == (22, account)
    assert await accounts.load("a1") == account


async def test_a_repository_may_have_snapshots_of_its_own(store: EventStore) -> None:
    mine = SnapshotManager(store)
    mine.register(Account, every(1))
    SnapshotManager(store)  # the store's is another one
    accounts = Repository(store, Account, snapshots=mine)
    await accounts.save(await accounts.load("a1"), Deposited(1))
    assert await mine.load("agaccount-a1", Account) is not None


async def test_a_snapshot_that_fails_does_not_fail_the_save(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass
    class Leaky(Aggregate[Deposited], category="agleaky"):
        def apply(self, event: Deposited, /) -> None:
            self.hidden = event.cents

    snapshots = SnapshotManager(store)
    snapshots.register(Leaky, every(1))
    leaks = Repository(store, Leaky)
    leaky = await leaks.load("1")
    with caplog.at_level(logging.WARNING):
        assert (await leaks.save(leaky, Deposited(1))).version == 1
    assert "no snapshot of stream 'agleaky-1' at version 1" in caplog.text
    assert leaky.version == 1
