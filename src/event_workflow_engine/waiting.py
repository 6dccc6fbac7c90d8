"""What a saga waits for, as the store tells it: its row, its queue, and which code living workers have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from event_workflow_engine.clock import from_micros
from event_workflow_engine.errors import DecodeError, IllegalTransitionError
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.journal import CHILD, Journal, child_id, saga_stream
from event_workflow_engine.queues import EARLY, WAITING, queue_of
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.tables import GIVEN
from event_workflow_engine.waits import Wait, read_waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from event_workflow_engine.storage.port import Rows, Storage

__all__ = ["PATIENCE_US", "Unclaimed", "code_of", "living", "short_journal", "unclaimed", "waits_of"]

PATIENCE_US: Final = 60_000_000
"""So long a saga that could go on is left alone before anybody says that no worker has its code: in a deployment one
may be about to come, and a worker that was given more code tells the others only now and then."""
_MOST: Final = 10_000
_SHORT: Final = 500


class Unclaimed(NamedTuple):
    """Sagas that wait for code which no living worker has.

    Attributes:
        saga: The definition's name.
        version: Its version.
        number: How many were counted.
        since: When the first of them could have gone on, in microseconds since 1970.
        more: Whether there may be more than were counted.
    """

    saga: str
    version: int
    number: int
    since: int
    more: bool


async def living(storage: Storage) -> Rows:
    """The rows of the workers that live: where the platform tells who does, without those of processes that are gone.

    Where heartbeats tell, a worker that has just died is among them until another one has declared it dead.
    """
    liveness = storage.liveness(1.0)
    rows = await storage.query("live_workers")
    return rows if liveness.beat_every is not None else [row for row in rows if not liveness.is_gone(row)]


def code_of(workers: Rows) -> set[tuple[str, int]] | None:
    """All that living workers can run, by name and version; ``None`` where that is not known, or there are none."""
    known: set[tuple[str, int]] = set()
    for worker in workers:
        if worker["runs"] is None:
            return None
        known.update(msgspec.json.decode(worker["runs"], type=list[tuple[str, int]]))
    return known if workers else None


async def unclaimed(storage: Storage, now: int, workers: Rows) -> list[Unclaimed]:
    """Sagas that could have gone on for a while, and whose code no living worker has.

    It costs the same however many sagas there are: no more than so many are looked at, those first that wait longest.

    Args:
        storage: The store.
        now: Microseconds since 1970.
        workers: The rows of those that live.
    """
    known = code_of(workers)
    if known is None:
        return []
    rows = await storage.query("sagas_unclaimed", before=now - PATIENCE_US, limit=_MOST)
    full = sum(row["n"] for row in rows) >= _MOST
    return [
        Unclaimed(row["saga"], row["saga_version"], row["n"], row["since"], full)
        for row in rows
        if (row["saga"], row["saga_version"]) not in known
    ]


async def short_journal(storage: Storage, row: Mapping[str, Any]) -> list[Any] | None:
    """The facts of a saga that a worker has, where they are few enough, and readable, to be looked at beside others'.

    Args:
        storage: The store.
        row: The saga's.
    """
    owner = row["owner"]
    if not owner or owner.startswith(GIVEN) or queue_of(owner) is not None:
        return None
    events = EventStore(storage).read(saga_stream(row["id"]), limit=_SHORT + 1)
    try:
        facts = [event.data async for event in events]
    except DecodeError:
        return None
    return facts if len(facts) <= _SHORT else None


def _folded(facts: Iterable[Any], saga_id: str) -> Journal | None:
    """A saga's journal; ``None`` where its facts do not follow one another."""
    journal = Journal(saga_id)
    try:
        for fact in facts:
            journal.apply(fact)
    except (KeyError, IllegalTransitionError):
        return None
    return journal


async def _children(storage: Storage, journal: Journal) -> dict[str, Wait]:
    """The children that a saga waits for, by its steps; without those that the store does not know yet."""
    ids = {
        step: state.child or child_id(journal.saga_id, step)
        for step, state in journal.steps.items()
        if state.status == "started" and CHILD in step
    }
    if not ids:
        return {}
    found = await storage.query("sagas_by_ids", ids=msgspec.json.encode(sorted(ids.values())).decode())
    told = {
        row["id"]: Wait("child", row["id"], row["saga_version"], saga=row["saga"], state=row["state"]) for row in found
    }
    return {step: told[child] for step, child in ids.items() if child in told}


def _doing(journal: Journal, children: Mapping[str, Wait]) -> list[Wait]:
    """What runs of a saga: actions and compensations, children, and the waits between attempts."""
    if journal.ended:
        return []
    if journal.failing:
        states = journal.compensations.items()
        found = [Wait("compensation", step, state.attempt) for step, state in states if state.status == "started"]
        attempts = {step: state.attempt for step, state in states}
    else:
        steps = journal.steps.items()
        running = ((step, state.attempt) for step, state in steps if state.status == "started")
        found = [children.get(step) or Wait("step", step, attempt) for step, attempt in running]
        attempts = {step: state.attempt for step, state in steps}
    kind: Any = "undo" if journal.failing else "attempt"
    return found + [Wait(kind, step, attempts[step] + 1, from_micros(due)) for step, due in journal.retries.items()]


async def waits_of(
    storage: Storage, row: Mapping[str, Any], now: int, workers: Rows, *, facts: Iterable[Any] | None = None
) -> list[Wait]:
    """What a saga waits for, or does.

    Args:
        storage: The store.
        row: The saga's.
        now: Microseconds since 1970.
        workers: The rows of those that live.
        facts: Its journal's; ``None``: of one that a worker has, and of a place in a queue, nothing is told.
    """
    if row["ended_at"] is not None:
        return []
    if row["state"] == WorkflowState.NEEDS_INTERVENTION.value:
        return [Wait("decision")]
    if row["state"] == WorkflowState.PAUSED.value:
        return [Wait("resume")]
    known = code_of(workers)
    codeless = known is not None and (row["saga"], row["saga_version"]) not in known
    code = [Wait("code", row["saga"], row["saga_version"])]
    queue = queue_of(row["owner"])
    if queue is not None:
        place = await storage.get("queued", (row["id"],)) if facts is not None else None
        late = row["started_at"] is not None and row["started_at"] <= now - PATIENCE_US
        return [await _in_queue(storage, queue, place), *(code if codeless and late else ())]
    if row["owner"].startswith(GIVEN):
        return [Wait("worker")]
    if row["owner"]:
        journal = None if facts is None else _folded(facts, row["id"])
        return [] if journal is None else _doing(journal, await _children(storage, journal))
    due = row["wake_at"]
    if due is None or due > now:
        return read_waits(row)
    return code if codeless and due <= now - PATIENCE_US else [Wait("worker", at=from_micros(due))]


async def _in_queue(storage: Storage, queue: str, place: dict[str, Any] | None) -> Wait:
    if place is None or place["state"] not in (EARLY, WAITING):
        return Wait("queue", queue)
    if place["state"] == EARLY:
        return Wait("not-before", queue, at=from_micros(place["not_before"]))
    asked = {column: place[column] for column in ("queue", "partition", "priority", "enqueued_at", "saga")}
    (before,) = await storage.query("queue_place", **asked)
    return Wait("queue", queue, before["n"] + 1)
