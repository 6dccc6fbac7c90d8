"""Lets sagas of queues begin: reads what waits, decides, and takes it in a unit that nobody else's can cross."""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from event_workflow_engine import history as h
from event_workflow_engine.errors import RowConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.journal import inbox_stream
from event_workflow_engine.queues import ADMITTED, EARLY, RETURNED, WAITING, Limits, owner_of
from event_workflow_engine.storage.port import Row, Unit
from event_workflow_engine.storage.tables import QUEUED, QUEUES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.kit import Kit
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.storage.port import Record, Rows, Written

__all__ = ["Admission", "Plan", "planned"]

_TABLES: Final = frozenset({QUEUES.name, QUEUED.name})
_BATCH: Final = 250
_MOST: Final = 2000
"""How many of those that wait are read at once, where partitions are not even more."""
_SLICES: Final = 64
"""Into how many parts a rate's span is cut at most: admissions of one part are kept as one number, at its last."""


class Plan(NamedTuple):
    """Which of those that wait begin now, and when it is worth to look again though nothing happens."""

    heads: Rows
    recent: list[list[int]]
    again_at: int | None


def planned(
    limits: Limits, heads: Sequence[dict[str, Any]], running: Mapping[str, int], total: int, *, room: int,
    recent: Sequence[Sequence[int]], now: int,
) -> Plan:  # fmt: skip
    """Decide who begins.

    Args:
        limits: The queue's.
        heads: Who waits, in order within each partition, and how many were read of `each` at most.
        running: How many of each partition have begun and not ended.
        total: How many of the queue count against its limit.
        room: How many this worker can take.
        recent: How many began from when to when, within the rate's span; times to come, by another clock, are now.
        now: Microseconds since 1970.
    """
    kept = [[min(first, now), min(last, now), n] for first, last, n in recent if last > now - limits.per]
    if limits.limit is not None:
        room = min(room, limits.limit - total)
    if limits.rate is not None:
        room = min(room, limits.rate - sum(n for *_, n in kept))
    of: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for head in heads:
        of[head["partition"]].append(head)
    turns = [(running.get(name, 0), rows[0]["enqueued_at"], name, 0) for name, rows in of.items()]
    heapq.heapify(turns)
    chosen: Rows = []
    while turns and len(chosen) < room:
        begun, at, name, place = heapq.heappop(turns)
        if limits.partition_limit is not None and begun >= limits.partition_limit:
            continue
        rows = of[name]
        if place == len(rows):
            break  # it is the turn of one that was not read: the next round has it
        chosen.append(rows[place])
        if place + 1 < len(rows):
            at = rows[place + 1]["enqueued_at"]
        if place + 1 < len(rows) or place + 1 == rows[place]["each"]:
            heapq.heappush(turns, (begun + 1, at, name, place + 1))
    if limits.rate is None:
        return Plan(chosen, [], None)
    if chosen:
        if kept and kept[-1][0] > now - limits.per // _SLICES:
            kept[-1] = [kept[-1][0], now, kept[-1][2] + len(chosen)]
        else:
            kept.append([now, now, len(chosen)])
    used_up = sum(n for *_, n in kept) >= limits.rate
    return Plan(chosen, kept, kept[0][1] + limits.per if used_up else None)


class Admission:
    """The queues, as one worker serves them.

    Args:
        kit: The engine's parts.
        definitions: The sagas that may run here.
        room: How many more sagas have room in memory.
        held: How many sagas of a queue are in memory.
        begin: Brings sagas that were taken into memory.
    """

    def __init__(
        self,
        kit: Kit,
        definitions: Definitions,
        room: Callable[[], int],
        held: Callable[[str], int],
        begin: Callable[[Rows], Awaitable[None]],
    ) -> None:
        self._kit = kit
        self._definitions = definitions
        self._room = room
        self._held = held
        self._begin = begin
        self._work: Rows = []
        self._limits: dict[str, Limits] = {}
        self._next: int | None = None

    async def look(self) -> None:
        """Read what there is to do."""
        self._work = await self._kit.storage.query("queue_work")
        self._limits = {row["name"]: msgspec.json.decode(row["config"], type=Limits) for row in self._work}

    async def serve(self) -> int | None:
        """Take what may begin here; when to look again though nothing happens."""
        self._next = None
        again = True
        while again:
            again = False
            for work in self._work:
                try:
                    again = await self._serve(work) or again
                except RowConflictError:
                    again = True  # another worker was quicker, or an operator changed the queue
            if again:
                await self.look()
        return self._next

    def moved_by(self, batch: Sequence[tuple[Unit, Written]]) -> bool:
        """Whether units of others among these change what is in queues, or who may leave them."""
        if not self._work:
            return False
        me = self._kit.worker.id
        others = (unit for unit, _ in batch if unit.worker is None or unit.worker.id != me)
        return any(row.table in _TABLES for unit in others for row in unit.rows)

    def keeps(self, run: SagaRun) -> bool:
        """Whether a saga stays with this worker, since its queue limits what each has: elsewhere may be no place."""
        place = run.journal.queue
        limits = None if place is None else self._limits.get(place.queue)
        return place is not None and (limits is None or limits.worker_limit is not None)

    def is_full(self, queue: h.InQueue | None) -> bool:
        """Whether this worker has as many sagas of a queue as it may."""
        limits = None if queue is None else self._limits.get(queue.queue)
        most = None if limits is None else limits.worker_limit
        return queue is not None and most is not None and self._held(queue.queue) >= most

    async def give_back(self, saga: Mapping[str, Any], queue: h.InQueue) -> None:
        """Leave a saga that is this worker's to one that has room for it."""
        kit = self._kit
        owned = {"owner": kit.worker.id, "fence": saga["fence"]}
        rows = (
            Row("sagas", "update", (saga["id"],), {"owner": owner_of(queue.queue), "wake_at": None}, owned),
            Row("queued", "update", (saga["id"],), {"state": RETURNED}, {"state": ADMITTED}),
        )
        await kit.storage.write(Unit(uuid7(), kit.now(), rows=rows, worker=kit.worker))

    def place_of(self, journal: Sequence[Record]) -> h.InQueue | None:
        """The queue of a saga that is not in memory yet, where some queue limits workers."""
        if not journal or all(limits.worker_limit is None for limits in self._limits.values()):
            return None
        started = h.decode_facts(journal[0].data)[0]
        return started.queue if isinstance(started, h.SagaStarted) else None

    # -- one queue ---------------------------------------------------------------------------------------------------

    async def _serve(self, work: dict[str, Any]) -> bool:
        """Do one round for a queue; whether there may be more to do."""
        name = work["name"]
        again = False
        if work["woken"]:
            await self._serve_woken(name)
        if work["early"] is not None:
            again = await self._promote(name, work["early"])
        if work["paused"]:
            return again
        room = self._room_for(name)
        if room > 0 and work["returned"]:
            rows = await self._query("queue_returned", queue=name, limit=room)
            await self._take(name, rows, RETURNED)
            room -= len(rows)
        if room > 0 and (work["waiting"] or again):
            again = await self._admit(work, room) or again
        return again

    def _room_for(self, name: str) -> int:
        most = self._limits[name].worker_limit
        room = self._room() if most is None else min(self._room(), most - self._held(name))
        return min(room, _BATCH)

    async def _promote(self, name: str, early: int) -> bool:
        """Have those wait whose time has come; whether there were any."""
        kit = self._kit
        now = kit.now()
        if early > now:
            self._look_by(early)
            return False
        due = await kit.storage.query("queue_early", queue=name, now=now, limit=_BATCH)
        rows = tuple(Row("queued", "update", (row["saga"],), {"state": WAITING}, {"state": EARLY}) for row in due)
        if rows:
            await kit.storage.write(Unit(uuid7(), now, rows=rows, worker=kit.worker))
        return True

    async def _admit(self, work: dict[str, Any], room: int) -> bool:
        name, limits, now = work["name"], self._limits[work["name"]], self._kit.now()
        # What runs is read first: the queue's row tells what has begun since, and nobody who came since is passed over.
        running, total = await self._running(name) if _is_counted(limits) else ({}, 0)
        if limits.limit is not None and total >= limits.limit:
            return False
        heads = await self._query("queue_heads", queue=name, each=room, most=_MOST)
        if not _is_counted(limits) and len({row["partition"] for row in heads}) > 1:
            running, total = await self._running(name)
        recent = msgspec.json.decode(work["recent"])
        plan = planned(limits, heads, running, total, room=room, recent=recent, now=now)
        if plan.again_at is not None:
            self._look_by(plan.again_at)
        stepped = any(last > now for _, last, _ in recent)  # by a clock that was ahead: else it would hold the rate up
        if not plan.heads and not stepped:
            return False
        values = {"rev": work["rev"] + 1, "recent": msgspec.json.encode(plan.recent).decode()}
        await self._take(name, plan.heads, WAITING, Row("queues", "update", (name,), values, {"rev": work["rev"]}))
        return bool(plan.heads)

    async def _running(self, name: str) -> tuple[dict[str, int], int]:
        """How many of each partition run, and how many take a place of the queue's."""
        rows = await self._kit.storage.query("queue_running", queue=name)
        return {row["partition"]: row["running"] for row in rows}, sum(row["running"] - row["standing"] for row in rows)

    async def _take(self, name: str, heads: Rows, state: int, *others: Row) -> None:
        """Make sagas of a queue this worker's, and let them begin or go on."""
        kit = self._kit
        rows = list(others)
        for head in heads:
            taken = {"owner": kit.worker.id, "fence": head["fence"] + 1, "wake_at": None}
            waits = {"owner": owner_of(name), "fence": head["fence"]}
            rows.append(Row("sagas", "update", (head["saga"],), taken, waits))
            rows.append(Row("queued", "update", (head["saga"],), {"state": ADMITTED}, {"state": state}))
        if not rows:
            return
        await kit.storage.write(Unit(uuid7(), kit.now(), rows=tuple(rows), worker=kit.worker))
        ids = msgspec.json.encode([head["saga"] for head in heads]).decode()
        if heads:
            await self._begin([
                row for row in await kit.storage.query("sagas_by_ids", ids=ids) if row["owner"] == kit.worker.id
            ])  # fmt: skip

    async def _serve_woken(self, name: str) -> None:
        """Somebody spoke to sagas that wait: a cancel is heard at once, the rest when they begin."""
        kit = self._kit
        for saga in await kit.storage.query("woken_sagas", worker=owner_of(name)):
            if self._definitions.find(saga["saga"], saga["saga_version"]) is None:
                continue
            place = await kit.storage.get("queued", (saga["id"],))
            inbox = await kit.storage.read_streams([inbox_stream(saga["id"])])
            cancelled = any(isinstance(one, h.CancelSent) for record in inbox for one in h.decode_facts(record.data))
            if cancelled and place is not None:
                await self._take(name, [{"saga": saga["id"], "fence": saga["fence"]}], place["state"])
            else:
                heard = Row("sagas", "update", (saga["id"],), {"wake_at": None},
                            {"owner": owner_of(name), "wake_at": saga["wake_at"]})  # fmt: skip
                await kit.storage.write(Unit(uuid7(), kit.now(), rows=(heard,), worker=kit.worker))

    async def _query(self, read: str, **params: Any) -> Rows:
        return await self._kit.storage.query(read, sagas=self._definitions.names_json, **params)

    def _look_by(self, when: int) -> None:
        self._next = when if self._next is None else min(self._next, when)


def _is_counted(limits: Limits) -> bool:
    return limits.limit is not None or limits.partition_limit is not None
