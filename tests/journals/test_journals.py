"""What an older version wrote, this one reads: its sagas go on from wherever they were, and end as they would have."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.journals.program import CASES, DONE, GO, Account, Balance, Deposited, Opened, balances, named

from event_workflow_engine import SagaFailedError, WorkflowEngine, WorkflowState, history

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JOURNALS = sorted(Path(__file__).parent.glob("*.sql"))
ENDS = {
    "shipping": {"a": "a", "b": "b", "c": "c"},
    "side-by-side": {"a": "a", "b": "b", "c": "c"},
    "in-transaction": {"a": "a", "b": "b", "c": "c"},
    "trip": ["flight lamp", "hotel lamp", "taxi"],
    "refused": WorkflowState.COMPENSATED,
    "broken-trip": WorkflowState.COMPENSATED,
}


def restore(journal: Path, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(journal.read_text(encoding="utf-8"))


@pytest.fixture(params=JOURNALS, ids=lambda journal: journal.stem)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    """An engine on what was recorded, which knows the users' types, and no sagas yet."""
    restore(request.param, tmp_path / "store.db")
    engine = WorkflowEngine(f"sqlite:///{tmp_path}/store.db")
    engine.projections.register(balances)
    async with engine:
        yield engine


async def recorded(engine: WorkflowEngine) -> list[str]:
    rows = await engine.storage.query("sagas_page", state=None, saga=None, after="", limit=1000)
    return [row["id"] for row in rows]


async def facts(engine: WorkflowEngine, saga_id: str) -> list[Any]:
    return [event.data for event in await engine.handle(saga_id).history()]


async def end(engine: WorkflowEngine, saga_id: str) -> Any:
    """How a saga ends; one that waits for the signal is told to go on, which changes nothing where it was told before."""
    handle = engine.handle(saga_id, named(saga_id))
    if saga_id.startswith("trip") and await handle.status() is WorkflowState.RUNNING:
        await handle.signal(GO, "taxi", id="go")
    try:
        result = await handle.result()
    except SagaFailedError as error:
        return error.status
    return dict(result) if saga_id.partition("@")[0] not in ("trip", "broken-trip") else result


@pytest.mark.timeout(60)
@pytest.mark.proves("old-history", store="sqlite")
async def test_every_saga_goes_on_and_ends_as_it_would_have(engine: WorkflowEngine) -> None:
    ids = await recorded(engine)
    assert Counter(one.partition("@")[0] for one in ids).keys() == CASES.keys()
    before = {one: await facts(engine, one) for one in ids}
    under_way = [one for one in ids if not isinstance(before[one][-1], ENDED)]
    assert len(under_way) > len(ids) / 2
    DONE.clear()
    engine.register(*map(named, ids))
    ends = await asyncio.gather(*(end(engine, one) for one in ids))
    assert dict(zip(ids, ends, strict=True)) == {one: ENDS[one.partition("@")[0]] for one in ids}
    for one in ids:
        after = await facts(engine, one)
        assert after[: len(before[one])] == before[one], "what was recorded stays"
        succeeded = {f"{one}:1:{fact.step}" for fact in before[one] if isinstance(fact, history.StepSucceeded)}
        assert not succeeded & set(DONE), "what had succeeded is not done again"


ENDED = (history.SagaCompleted, history.SagaCompensated)


@pytest.mark.proves("old-history", store="sqlite")
async def test_events_of_users_and_what_they_were_folded_to_are_there(engine: WorkflowEngine) -> None:
    happened = [event.data async for event in engine.store.read("account-ann")]
    assert happened == [Opened("ann"), *(Deposited("ann", cents) for cents in (500, 20, 1))]
    account = await engine.repository(Account).load("ann")
    assert (account.cents, account.version) == (521, 4)
    assert await engine.projections.get(balances, "bob") == Balance(521)
    await engine.repository(Account).save(account, [Deposited("ann", 9)])
    assert await engine.projections.get(balances, "ann") == Balance(530)
