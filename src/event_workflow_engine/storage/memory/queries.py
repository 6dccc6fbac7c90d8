"""The named reads and claims of the port, as plain Python: the specification of the SQL files of other backends."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.row_images import SHAPES
from event_workflow_engine.storage.tables import GIVEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from event_workflow_engine.storage.memory.state import MemoryState
    from event_workflow_engine.storage.port import Rows

__all__ = ["CLAIM_FUNCTIONS", "READ_FUNCTIONS"]

_EARLY, _WAITING, _ADMITTED, _RETURNED = range(4)  # states of queued


def _first(rows: Iterable[dict[str, Any]], limit: int) -> Rows:
    return list(rows)[:limit]


# -- sagas ---------------------------------------------------------------------------------------------------------


def sagas_page(store: MemoryState, *, state: str | None, saga: str | None, after: str, limit: int) -> Rows:
    """Sagas behind id `after`, of a state and a definition if given."""
    return _first(
        (
            row
            for row in store.rows("sagas")
            if row["id"] > after and state in (None, row["state"]) and saga in (None, row["saga"])
        ),
        limit,
    )


def sagas_by_ids(store: MemoryState, *, ids: str) -> Rows:
    """The sagas of those ids that there are."""
    wanted = set(msgspec.json.decode(ids))
    return [row for row in store.rows("sagas") if row["id"] in wanted]


def next_wake(store: MemoryState, *, sagas: str) -> Rows:
    """When the next saga of a registered definition that nobody runs is due, or no longer for one worker alone."""
    registered = {(name, version) for name, version in msgspec.json.decode(sagas)}
    due = [
        row["wake_at"]
        for row in store.rows("sagas")
        if (_unowned(row) or _given(row))
        and row["wake_at"] is not None
        and (row["saga"], row["saga_version"]) in registered
    ]
    return [{"wake_at": min(due)}] if due else []


def woken_sagas(store: MemoryState, *, worker: str) -> Rows:
    """Sagas in a worker's hands to whose inbox somebody wrote."""
    return [
        row
        for row in sorted(store.rows("sagas"), key=lambda row: str(row["id"]))
        if row["owner"] == worker and row["ended_at"] is None and row["wake_at"] is not None
    ]


def owned_sagas(store: MemoryState, *, worker: str) -> Rows:
    """The sagas in a worker's hands, each by its id, with its fence."""
    rows = [row for row in store.rows("sagas") if row["owner"] == worker and row["ended_at"] is None]
    return [{"id": row["id"], "fence": row["fence"]} for row in rows]


def log_end(store: MemoryState) -> Rows:
    """Where the log ends."""
    return [{"position": record.position, "id": record.id} for record in store.log[-1:]]


def sagas_count(store: MemoryState) -> Rows:
    """How many sagas there are in each state."""
    counts = Counter(row["state"] for row in store.rows("sagas"))
    return [{"state": state, "n": n} for state, n in sorted(counts.items(), key=lambda item: item[0] or "")]


def sagas_count_to(store: MemoryState, *, states: str, limit: int) -> Rows:
    """How many sagas there are in each of some states; so many at most."""
    counts = Counter(row["state"] for row in store.rows("sagas"))
    return [{"state": state, "n": min(counts[state], limit)} for state in msgspec.json.decode(states)]


def sagas_unclaimed(store: MemoryState, *, before: int, limit: int) -> Rows:
    """Sagas that nobody has though they could go on, by definition."""
    sagas = {row["id"]: row for row in store.rows("sagas")}
    due = [(row["wake_at"], row) for row in sagas.values() if _unowned(row) and row["wake_at"] is not None]
    queued = [
        (row["enqueued_at"], sagas[row["saga"]])
        for row in store.rows("queued")
        if row["state"] == _WAITING and row["saga"] in sagas
    ]
    found: dict[tuple[str, int], list[int]] = {}
    for some in (due, queued):
        late = sorted(((since, row) for since, row in some if since < before), key=lambda item: item[0])
        for since, row in late[:limit]:
            found.setdefault((row["saga"], row["saga_version"]), []).append(since)
    return [
        {"saga": saga, "saga_version": version, "n": len(times), "since": min(times)}
        for (saga, version), times in sorted(found.items())
    ]


def claim_sagas(store: MemoryState, *, worker: str, now: int, limit: int, sagas: str) -> Rows:
    """Give sagas of registered definitions to a living worker: those meant for it, then what is due, oldest first."""
    registered = {(name, version) for name, version in msgspec.json.decode(sagas)}
    known = [
        row
        for row in store.rows("sagas")
        if row["wake_at"] is not None and (row["saga"], row["saga_version"]) in registered
    ]
    known.sort(key=lambda row: (row["wake_at"], row["id"]))
    mine = [row for row in known if row["ended_at"] is None and row["owner"] == GIVEN + worker]
    due = [row for row in known if _unowned(row) and row["wake_at"] <= now]
    left = [row for row in known if _given(row) and row["owner"] != GIVEN + worker and row["wake_at"] <= now]
    return _claimed(store, worker, (mine + due + left)[:limit])


def claim_saga(store: MemoryState, *, worker: str, id: str) -> Rows:  # noqa: A002 - the contract's name
    """Give one saga to a living worker, due or not."""
    return _claimed(store, worker, [row for row in store.rows("sagas") if row["id"] == id and _unowned(row)])


def release_sagas(store: MemoryState, *, worker: str, fences: str, now: int) -> Rows:
    """Take sagas from their owner, unless it has claimed them again since; they are due at once."""
    wanted = msgspec.json.decode(fences, type=dict[str, int])
    mine = [
        row
        for row in store.rows("sagas")
        if wanted.get(row["id"]) == row["fence"] and row["owner"] == worker and row["ended_at"] is None
    ]
    return [_put(store, "sagas", row, owner="", wake_at=now) for row in mine]


def bury_worker(store: MemoryState, *, id: str, incarnation: int, beat: int | None, now: int) -> Rows:  # noqa: A002
    """Declare one life of a worker dead, for ever, and free its sagas. Again: free what is still its own."""
    for row in store.rows("workers"):
        if row["id"] == id and row["incarnation"] == incarnation:
            if row["alive"] == 1 and beat not in (None, row["beat"]):
                return []
            _put(store, "workers", row, alive=0, died_at=now if row["alive"] == 1 else row["died_at"])
            owned = [r for r in store.rows("sagas") if r["owner"] in (id, GIVEN + id) and r["ended_at"] is None]
            return [_put(store, "sagas", r, owner="", wake_at=now) for r in owned]
    return []


def live_workers(store: MemoryState) -> Rows:
    """The workers that were not declared dead."""
    return [row for row in store.rows("workers") if row["alive"] == 1]


def worker_loads(store: MemoryState) -> Rows:
    """How many sagas each living worker has, and of how many it has room for."""
    owners = [row["owner"] for row in store.rows("sagas") if row["ended_at"] is None]
    return [
        {
            "id": row["id"],
            "max_running": row["max_running"],
            "runs": row["runs"],
            "held": owners.count(row["id"]) + owners.count(GIVEN + row["id"]),
            "given": owners.count(GIVEN + row["id"]),
        }
        for row in live_workers(store)
    ]


def prune_workers(store: MemoryState, *, before: int) -> Rows:
    """Forget workers that have long been dead, and of whom nothing is left."""
    owners = {row["owner"] for row in store.rows("sagas") if row["ended_at"] is None}
    owners |= {row["owner"] for row in store.rows("checkpoints")}
    owners |= {row["worker"] for row in open_slots(store)}
    for row in store.rows("workers"):
        died_at = row["started_at"] if row["died_at"] is None else row["died_at"]
        left = row["id"] in owners or GIVEN + row["id"] in owners
        if row["alive"] == 0 and died_at is not None and died_at < before and not left:
            del store.tables["workers"][row["id"],]
    return []


def _unowned(row: dict[str, Any]) -> bool:
    return row["owner"] == "" and row["ended_at"] is None


def _given(row: dict[str, Any]) -> bool:
    return str(row["owner"] or "").startswith(GIVEN) and row["ended_at"] is None


def _claimed(store: MemoryState, worker: str, rows: Rows) -> Rows:
    if not any(row["id"] == worker for row in live_workers(store)):
        return []
    values = {"owner": worker, "wake_at": None, "waits_for": None}
    claimed = [_put(store, "sagas", row, fence=(row["fence"] or 0) + 1, **values) for row in rows]
    return sorted(claimed, key=lambda row: row["id"])


def _put(store: MemoryState, table: str, row: dict[str, Any], **values: Any) -> dict[str, Any]:
    row = {**row, **values}
    image = tuple(row.values())
    store.tables[table][image[: SHAPES[table].width]] = image
    return row


# -- streams -------------------------------------------------------------------------------------------------------


def streams_page(store: MemoryState, *, prefix: str, after: str, limit: int) -> Rows:
    """Streams behind name `after`, with version, number of events and time of the last."""
    names = sorted(stream for stream in store.streams if stream > after and stream.startswith(prefix))
    return [
        {"stream": name, "version": last.version, "events": last.version, "last_at": last.recorded_at}
        for name in names[:limit]
        for last in (store.streams[name][-1],)
    ]


# -- schedules -----------------------------------------------------------------------------------------------------


def due_schedules(store: MemoryState, *, now: int, limit: int) -> Rows:
    """Schedules that are not paused and due, the longest due first."""
    due = [row for row in _active(store) if row["next_run"] <= now]
    return _first(sorted(due, key=lambda row: (row["next_run"], row["id"])), limit)


def next_schedule(store: MemoryState) -> Rows:
    """When the next schedule is due."""
    due = [row["next_run"] for row in _active(store)]
    return [{"next_run": min(due)}] if due else []


def schedules_all(store: MemoryState) -> Rows:
    """All schedules."""
    return store.rows("schedules")


def open_slots(store: MemoryState) -> Rows:
    """Slots that were claimed and are not done."""
    return [row for row in store.rows("slots") if row["done"] == 0]


def _active(store: MemoryState) -> Rows:
    return [row for row in store.rows("schedules") if row["paused"] == 0 and row["next_run"] is not None]


# -- projections ---------------------------------------------------------------------------------------------------


def checkpoints_all(store: MemoryState) -> Rows:
    """All checkpoints."""
    return store.rows("checkpoints")


def projections_all(store: MemoryState) -> Rows:
    """All projections."""
    return store.rows("projections")


def documents_find(
    store: MemoryState,
    *,
    projection: str,
    generation: int,
    where: str,
    order_by: str | None,
    descending: int,
    limit: int,
    offset: int,
) -> Rows:
    """Documents whose top-level fields equal those of `where`, by a field or by key; ties by key."""
    wanted = msgspec.json.decode(where)
    if not isinstance(wanted, dict):
        raise DefinitionError(f"documents_find: where must be a JSON object, not {where!r}")
    field = None if order_by is None else msgspec.json.decode(order_by, type=str)
    found = []
    for row in _of_generation(store, "documents", projection, generation):
        body = _fields(row["body"])
        if all(name in body and _same(body[name], value) for name, value in wanted.items()):
            found.append((_rank(body.get(field)), row))
    if field is not None:
        found.sort(key=lambda item: item[0], reverse=bool(descending))
    return [row for _, row in found][offset : offset + limit]


def _fields(body: str | None) -> dict[str | None, Any]:
    """The top-level fields of a document; only an object has any."""
    decoded = msgspec.json.decode(body) if body is not None else None
    return decoded if isinstance(decoded, dict) else {}


def _same(a: Any, b: Any) -> bool:
    # A flag is no number; numbers are equal across int and float.
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _rank(value: Any) -> tuple[int, Any]:
    """The order of SQLite over JSON values: nothing, then numbers (flags as 0 and 1), then text."""
    if value is None:
        return (0, 0)
    if isinstance(value, (bool, int, float)):
        return (1, value)
    return (2, value if isinstance(value, str) else msgspec.json.encode(value).decode())


def documents_by_keys(store: MemoryState, *, projection: str, generation: int, keys: str) -> Rows:
    """The documents of some keys, by key."""
    wanted = set(msgspec.json.decode(keys))
    found = [row for row in _of_generation(store, "documents", projection, generation) if row["key"] in wanted]
    return sorted(found, key=lambda row: str(row["key"]))


def parked_keys_page(store: MemoryState, *, projection: str, generation: int) -> Rows:
    """Keys whose events are parked."""
    return _of_generation(store, "parked_keys", projection, generation)


def parked_events_page(store: MemoryState, *, projection: str, generation: int, key: str | None, limit: int) -> Rows:
    """Parked events, of one key if given, by position."""
    rows = [r for r in _of_generation(store, "parked_events", projection, generation) if key in (None, r["key"])]
    return _first(sorted(rows, key=lambda row: (row["position"], row["key"])), limit)


def parked_count(store: MemoryState, *, projection: str, generation: int) -> Rows:
    """How many events are parked."""
    return [{"n": len(_of_generation(store, "parked_events", projection, generation))}]


def delete_documents(store: MemoryState, *, projection: str, generation: int) -> Rows:
    """Delete a generation of a projection: documents, parked keys and parked events."""
    for table in ("documents", "parked_keys", "parked_events"):
        for key in [key for key in store.tables[table] if key[:2] == (projection, generation)]:
            del store.tables[table][key]
    return []


def swap_projection(store: MemoryState, *, name: str, shadow: int, version: int, position: int) -> Rows:
    """Make the shadow generation the live one, if it has folded the log to its end."""
    checkpoint = store.tables["checkpoints"].get((f"projection:{name}@{shadow}",))
    level = checkpoint is not None and checkpoint[1] == position == store.last_position()
    rows = [row for row in store.rows("projections") if row["name"] == name and row["shadow"] == shadow]
    return [
        _put(
            store,
            "projections",
            row,
            generation=shadow,
            version=version,
            shadow=None,
            inline_from=position if row["mode"] == "inline" else None,
        )
        for row in rows
        if level
    ]


def _of_generation(store: MemoryState, table: str, projection: str, generation: int) -> Rows:
    return [r for r in store.rows(table) if r["projection"] == projection and r["generation"] == generation]


# -- the bus -------------------------------------------------------------------------------------------------------


def dead_letters_page(store: MemoryState, *, subscription: str | None, limit: int) -> Rows:
    """Dead letters, of one subscription if given, the oldest first."""
    rows = [row for row in store.rows("dead_letters") if subscription in (None, row["subscription"])]
    return _first(sorted(rows, key=lambda row: (row["parked_at"] or 0, row["id"])), limit)


def staged_page(store: MemoryState, *, after: str, limit: int) -> Rows:
    """What users' transactions have left for the store."""
    rows = [row for row in store.rows("staged") if row["refused"] is None and row["id"] > after]
    return _first(sorted(rows, key=lambda row: row["id"]), limit)


def staged_refused(store: MemoryState, *, after: str, limit: int) -> Rows:
    """What users' transactions have left and cannot be written."""
    rows = [row for row in store.rows("staged") if row["refused"] is not None and row["id"] > after]
    return _first(sorted(rows, key=lambda row: row["id"]), limit)


def backlog_counts(store: MemoryState, *, limit: int) -> Rows:
    """How much was set aside for people; so many of each at most."""
    tables = ("dead_letters", "parked_keys", "parked_events")
    counts = {table: len(store.tables[table]) for table in tables}
    refused = sum(row["refused"] is not None for row in store.rows("staged"))
    counts |= {"staged": len(store.tables["staged"]) - refused, "refused": refused}
    return [{name: min(n, limit) for name, n in counts.items()}]


# -- queues --------------------------------------------------------------------------------------------------------


def queues_all(store: MemoryState) -> Rows:
    """The queues by name."""
    return sorted(store.rows("queues"), key=lambda row: row["name"])


def queue_counts(store: MemoryState) -> Rows:
    """How many sagas of each queue are in which state; -1: they stand."""
    counts: dict[tuple[str, int], int] = {}
    standing = _standing(store)
    for row in store.rows("queued"):
        key = row["queue"], -1 if row["state"] >= _ADMITTED and row["saga"] in standing else row["state"]
        counts[key] = counts.get(key, 0) + 1
    return [{"queue": queue, "state": state, "n": n} for (queue, state), n in sorted(counts.items())]


def queue_work(store: MemoryState) -> Rows:
    """The queues by name, with what there is to do for them."""
    found = []
    for queue in queues_all(store):
        rows = [row for row in store.rows("queued") if row["queue"] == queue["name"]]
        states = {row["state"] for row in rows}
        early = [row["not_before"] for row in rows if row["state"] == _EARLY]
        work = {
            "early": min(early) if early else None,
            "waiting": int(_WAITING in states),
            "returned": int(_RETURNED in states),
            "woken": int(bool(woken_sagas(store, worker=f"queue:{queue['name']}"))),
        }
        found.append({**queue, **work})
    return found


def queue_early(store: MemoryState, *, queue: str, now: int, limit: int) -> Rows:
    """Sagas whose time has come."""
    rows = [row for row in _queued(store, queue, _EARLY) if row["not_before"] <= now]
    return _first(sorted(rows, key=lambda row: (row["not_before"], row["saga"])), limit)


def queue_heads(store: MemoryState, *, queue: str, sagas: str, each: int, most: int) -> Rows:
    """The first of each partition."""
    waiting = _queued(store, queue, _WAITING)
    each = max(1, min(each, most // max(1, len({row["partition"] for row in waiting}))))
    rows = _startable(store, waiting, sagas)
    rows.sort(key=lambda row: (row["partition"], -row["priority"], row["enqueued_at"], row["saga"]))
    found: Rows = []
    taken: dict[str, int] = {}
    for row in rows:
        taken[row["partition"]] = taken.get(row["partition"], 0) + 1
        if taken[row["partition"]] <= each:
            found.append({**row, "each": each})
    return found


def queue_place(store: MemoryState, *, queue: str, partition: str, priority: int, enqueued_at: int, saga: str) -> Rows:
    """How many of a partition go before one."""
    here = (-priority, enqueued_at, saga)
    waiting = (row for row in _queued(store, queue, _WAITING) if row["partition"] == partition)
    return [{"n": sum((-row["priority"], row["enqueued_at"], row["saga"]) < here for row in waiting)}]


def queue_returned(store: MemoryState, *, queue: str, sagas: str, limit: int) -> Rows:
    """What workers without room gave back."""
    rows = _startable(store, _queued(store, queue, _RETURNED), sagas)
    return _first(sorted(rows, key=lambda row: (row["enqueued_at"], row["saga"])), limit)


def queue_running(store: MemoryState, *, queue: str) -> Rows:
    """How many were admitted and have not ended, by partition."""
    found: dict[str, dict[str, Any]] = {}
    standing = _standing(store)
    for row in sorted(store.rows("queued"), key=lambda row: row["partition"]):
        if row["queue"] == queue and row["state"] >= _ADMITTED:
            counts = found.setdefault(row["partition"], {"partition": row["partition"], "running": 0, "standing": 0})
            counts["running"] += 1
            counts["standing"] += row["saga"] in standing
    return list(found.values())


def _queued(store: MemoryState, queue: str, state: int) -> Rows:
    return [row for row in store.rows("queued") if row["queue"] == queue and row["state"] == state]


def _startable(store: MemoryState, rows: Rows, sagas: str) -> Rows:
    registered = {(name, version) for name, version in msgspec.json.decode(sagas)}
    of = {row["id"]: row for row in store.rows("sagas")}
    return [
        {**row, "fence": saga["fence"]}
        for row in rows
        if (saga := of.get(row["saga"])) is not None and (saga["saga"], saga["saga_version"]) in registered
    ]


def _standing(store: MemoryState) -> set[str]:
    return {row["id"] for row in store.rows("sagas") if row["state"] == "NEEDS_INTERVENTION"}


READ_FUNCTIONS: Final[dict[str, Callable[..., Rows]]] = {
    function.__name__: function
    for function in (
        sagas_page,
        sagas_by_ids,
        next_wake,
        woken_sagas,
        owned_sagas,
        sagas_count,
        sagas_count_to,
        sagas_unclaimed,
        log_end,
        live_workers,
        worker_loads,
        streams_page,
        due_schedules,
        next_schedule,
        schedules_all,
        open_slots,
        checkpoints_all,
        projections_all,
        documents_find,
        documents_by_keys,
        parked_keys_page,
        parked_events_page,
        parked_count,
        queues_all,
        queue_counts,
        queue_work,
        queue_early,
        queue_heads,
        queue_place,
        queue_returned,
        queue_running,
        staged_page,
        staged_refused,
        backlog_counts,
        dead_letters_page,
    )
}

CLAIM_FUNCTIONS: Final[dict[str, Callable[..., Rows]]] = {
    function.__name__: function
    for function in (
        claim_sagas,
        claim_saga,
        bury_worker,
        prune_workers,
        release_sagas,
        delete_documents,
        swap_projection,
    )
}
