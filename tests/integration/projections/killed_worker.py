"""A worker that appends events and projects them, and kills itself at the durable operation that it was told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from tests.crash.killing import KillingStorage, serve
from tests.integration.projections.kit import POISON, Added, Dropped, Noise, book, sums

from event_workflow_engine import EngineConfig, NewEvent, WorkflowEngine
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from tests.integration.projections.kit import Sum

    from event_workflow_engine import DocumentProjection, SqlProjection
    from event_workflow_engine.projections import Projection
    from event_workflow_engine.storage.port import Storage

    Projections = tuple[DocumentProjection[Sum], DocumentProjection[Sum], SqlProjection]

NAMES = {Added: "projection-test-added", Dropped: "projection-test-dropped", Noise: "projection-test-noise"}
LEASE = 0.5  # where no file lock tells that the last one is dead
DOCUMENTS, INLINE, LINES = "killed-documents", "killed-inline", "killed-lines"

# Powers of two, so that no loss is made up for by a repetition. Each batch is of one key, whose stream it goes to.
BATCHES: dict[str, list[list[Added | Dropped | Noise]]] = {
    "catching up": [[Added("a", 1), Added("a", 2)], [Added("b", 4), Noise(), Added("b", 8)]],
    "keeping up": [
        [Added("c", 16), Added("c", POISON), Added("c", 32)],
        [Added("a", 64), Noise(), Added("a", 128)],
        [Dropped("b"), Added("b", 256)],
    ],
}
REST = [Added("a", 512), Added("b", 1024), Added("d", 2048)]
LAST = [Added("a", 4096), Dropped("d"), Added("d", 8192)]


def named(prefix: str, events: Sequence[Added | Dropped | Noise]) -> list[NewEvent]:
    """Events with ids of their own, so that what had landed before a kill is not appended again."""
    return [NewEvent(NAMES[type(one)], one, id=f"{prefix} {n}") for n, one in enumerate(events)]


async def append(engine: WorkflowEngine, part: str) -> AsyncIterator[int]:
    """Append a part's batches.

    Yields:
        Each batch's last position.
    """
    for number, batch in enumerate(BATCHES[part]):
        appended = await engine.store.append(f"sum-{batch[0].key}", named(f"{part} {number}", batch))
        yield appended.positions[-1]


async def state_of(engine: WorkflowEngine, projections: Projections) -> dict[str, Any]:
    """What the projections hold, and what they know of themselves, by their names."""
    *documents, lines = projections
    held: dict[str, Any] = {}
    for projection in documents:
        held[projection.name] = {one.key: asdict(one) for one in await engine.projections.find(projection)}
    # Amounts grow from event to event; only SQLite has an order of its own that says in which lines were written.
    order = "rowid" if engine.storage.url.startswith("sqlite") else "amount"
    held[lines.name] = await engine.projections.fetch(lines, f"SELECT key, amount FROM {{lines}} ORDER BY {order}")
    status = {}
    for one in projections:
        known = await engine.projections.status(one)
        status[one.name] = {"events": known.events, "position": known.position, "last": known.last_event_id}
        status[one.name] |= {"parked": known.parked, "lag": known.lag_events}
    return {"held": held, "status": status}


async def checkpoints_of(storage: Storage) -> dict[str, dict[str, Any]]:
    """The checkpoints on disk, by the names of the projections."""
    found = {}
    for row in await storage.query("checkpoints_all"):
        name = row["name"].removeprefix("projection:").removesuffix("@1")
        found[name] = {"position": row["position"], "events": row["events"], "last": row["last_event_id"]}
    return found


async def follow_to(engine: WorkflowEngine, event_id: str) -> int:
    """Wait for an event; its position."""
    async with aclosing(engine.store.follow(after=0)) as followed:
        async for one in followed:
            if one.id == event_id:
                return one.position
    raise AssertionError("a log has no end")


async def wait_for_all(engine: WorkflowEngine, projections: Iterable[Projection], position: int) -> None:
    for one in projections:
        await engine.projections.wait_for(one, position, timeout=10)


async def alone(engine: WorkflowEngine, projections: Projections) -> None:
    """Do the same each time: what had landed before a kill is found, and the rest is done."""
    there = [position async for position in append(engine, "catching up")][-1]
    engine.projections.register(*projections)
    await wait_for_all(engine, projections, there)
    async for position in append(engine, "keeping up"):
        await wait_for_all(engine, projections, position)


async def owner(engine: WorkflowEngine, projections: Projections, killing: KillingStorage) -> NoReturn:
    """Feed the projections until another worker stands by, then die with events that are not projected yet."""
    engine.projections.register(*projections)
    async for position in append(engine, "catching up"):
        await wait_for_all(engine, projections, position)
    await engine.store.append("signs", NewEvent(NAMES[Noise], Noise(), id="owned"))
    await follow_to(engine, "standing by")
    killing.arm_within()
    await engine.store.append("sum-rest", named("rest", REST))
    await asyncio.Event().wait()
    raise AssertionError("still alive")


async def heir(engine: WorkflowEngine, projections: Projections) -> dict[str, Any]:
    """Stand by, take over what the killed owner left, and go on; who fed the projections before and at the end."""
    owned = await follow_to(engine, "owned")
    engine.projections.register(*projections)
    await wait_for_all(engine, projections, owned)
    before = await owners_of(engine.storage)
    await engine.store.append("signs", NewEvent(NAMES[Noise], Noise(), id="standing by"))
    # From here on nothing is appended until the projections are level: the death alone must wake this worker.
    await wait_for_all(engine, projections, await follow_to(engine, f"rest {len(REST) - 1}"))
    # What the owner had projected to the end is taken over, too, but not waited for until there is more of it.
    done = await engine.store.append("sum-last", named("last", LAST))
    await wait_for_all(engine, projections, done.positions[-1])
    after = await owners_of(engine.storage)
    living = [row["id"] for row in await engine.storage.query("live_workers")]
    return {"owners": {"before": before, "after": after}, "living": living}


async def owners_of(storage: Storage) -> dict[str, str]:
    """Which worker feeds each async projection."""
    rows = {row["name"]: row["owner"] for row in await storage.query("checkpoints_all")}
    return {name: rows[f"projection:{name}@1"] for name in (DOCUMENTS, LINES)}


async def work(job: dict[str, Any]) -> dict[str, Any]:
    async with open_storage(job["url"], auto_upgrade=True) as storage:
        killing = KillingStorage(storage, job["when"], job["at"])
        projections = sums(DOCUMENTS), sums(INLINE, "inline"), book(LINES)
        more: dict[str, Any] = {}
        async with WorkflowEngine(killing, config=EngineConfig(lease=LEASE)) as engine:  # type: ignore[arg-type]
            if job["role"] == "alone":
                await alone(engine, projections)
            elif job["role"] == "owner":
                await owner(engine, projections, killing)
            else:
                more = await heir(engine, projections)
            ended = await state_of(engine, projections)
        ended |= {"checkpoints": await checkpoints_of(storage), "end": await storage.last_position()}
    return {**ended, **more, "counts": killing.counts}


if __name__ == "__main__":
    serve(work)
