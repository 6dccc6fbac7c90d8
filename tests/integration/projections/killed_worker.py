"""A worker that appends events and projects them, and kills itself at the durable operation that it was told."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tests.crash.killing import KillingStorage, serve
from tests.integration.projections.kit import POISON, Added, Dropped, Noise, book, sums

from event_workflow_engine import NewEvent, WorkflowEngine
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.projections.kit import Sum

    from event_workflow_engine import DocumentProjection, SqlProjection
    from event_workflow_engine.storage.port import Storage

NAMES = {Added: "projection-test-added", Dropped: "projection-test-dropped", Noise: "projection-test-noise"}
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
EVENTS = [one for batches in BATCHES.values() for batch in batches for one in batch]


async def append(engine: WorkflowEngine, part: str) -> AsyncIterator[int]:
    """Append a part's batches under ids of their own, so that what had landed before a kill is not appended again.

    Yields:
        Each batch's last position.
    """
    for number, batch in enumerate(BATCHES[part]):
        named = [NewEvent(NAMES[type(one)], one, id=f"{part} {number}.{n}") for n, one in enumerate(batch)]
        appended = await engine.store.append(f"sum-{batch[0].key}", named)  # type: ignore[union-attr]
        yield appended.positions[-1]


async def state_of(
    engine: WorkflowEngine, documents: tuple[DocumentProjection[Sum], ...], lines: SqlProjection
) -> dict[str, Any]:
    """What the projections hold, and what they know of themselves, by their names."""
    held: dict[str, Any] = {}
    for projection in documents:
        held[projection.name] = {one.key: asdict(one) for one in await engine.projections.find(projection)}
    held[lines.name] = await engine.projections.fetch(lines, "SELECT key, amount FROM {lines} ORDER BY rowid")
    status = {}
    for one in (*documents, lines):
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


async def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do the same each time: what had landed before a kill is found, and the rest is done."""
    async with open_storage(job["url"]) as storage:
        killing = KillingStorage(storage, job["when"], job["at"])
        documents = sums(DOCUMENTS), sums(INLINE, "inline")
        lines = book(LINES)
        async with WorkflowEngine(killing) as engine:  # type: ignore[arg-type]
            there = [position async for position in append(engine, "catching up")][-1]
            engine.projections.register(*documents, lines)
            for one in (*documents, lines):
                await engine.projections.wait_for(one, there)
            async for position in append(engine, "keeping up"):
                for one in (*documents, lines):
                    await engine.projections.wait_for(one, position)
            ended = await state_of(engine, documents, lines)
        ended |= {"checkpoints": await checkpoints_of(storage), "end": await storage.last_position()}
    return {**ended, "counts": killing.counts}


if __name__ == "__main__":
    serve(work)
