"""The declared tables: every row that a unit may compare and set, by name and column.

Backends create them in their migrations; a test compares those with these declarations. Every column is
nullable unless it is part of the key. Times are microseconds since 1970 in UTC. Flags are 0 or 1.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = [
    "CHECKPOINTS",
    "COMMANDS",
    "DEAD_LETTERS",
    "DOCUMENTS",
    "GIVEN",
    "PARKED_EVENTS",
    "PARKED_KEYS",
    "PROJECTIONS",
    "QUEUED",
    "QUEUES",
    "QUEUE_KEYS",
    "SAGAS",
    "SAGA_IDS",
    "SCHEDULES",
    "SLOTS",
    "SNAPSHOTS",
    "STAGED",
    "TABLES",
    "WORKERS",
    "Table",
]

ColumnType = Literal["text", "integer", "blob", "real"]


class Table(msgspec.Struct, frozen=True):
    """A declared table.

    Attributes:
        name: Its name, in SQL too.
        key: The columns of its primary key, in order.
        columns: All its columns, the key's first, with their types.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, ColumnType]


SAGAS: Final = Table(
    "sagas",
    ("id",),
    {
        "id": "text",
        "saga": "text",  # the definition's name
        "saga_version": "integer",
        "state": "text",  # a WorkflowState
        "owner": "text",  # worker id; '' when no worker has it; see GIVEN
        "fence": "integer",  # grows with each owner
        "wake_at": "integer",  # NULL: owned and running, or ended, or waiting for a signal alone
        "cursor": "integer",  # version of the inbox stream up to which the owner has read, at the last row write
        "started_at": "integer",
        "ended_at": "integer",  # it alone says that the saga has ended
        "waits_for": "text",  # JSON: see waits.py; written as it leaves memory, NULL while a worker has it
    },
)
"""The index of sagas. Indexes: (owner) and (wake_at) where ended_at is NULL; (saga, id); (state, id)."""

GIVEN: Final = "given:"
"""What stands before a worker's id in `owner` while a saga is given to it. Until `wake_at` it is for that worker alone
to claim, and from then on for any.
"""

SAGA_IDS: Final = Table(
    "saga_ids",
    ("id",),
    {"id": "text", "saga": "text", "input_hash": "text", "expires_at": "integer"},
)
"""Ids in use; outlives the journal."""

WORKERS: Final = Table(
    "workers",
    ("id",),
    {
        "id": "text",
        "incarnation": "integer",
        "alive": "integer",
        "beat": "integer",  # heartbeat counter; unused where liveness is a file lock
        "host": "text",
        "pid": "integer",
        "started_at": "integer",
        "lease": "integer",  # microseconds that an unchanged counter leaves it alive; NULL where none counts
        "max_running": "integer",  # how many sagas it has room for
        "runs": "text",  # JSON: [[name, version], …]: the sagas that it can run
        "died_at": "integer",  # by the clock of whoever buried it; NULL while it lives
        "beat_at": "integer",  # when it last counted, by its own clock: for people
    },
)

CHECKPOINTS: Final = Table(
    "checkpoints",
    ("name",),  # "projection:<name>@<generation>" or "subscription:<name>"
    {
        "name": "text",
        "position": "integer",
        "events": "integer",
        "last_event_id": "text",
        "saga_id": "text",
        "recorded_at": "integer",
        "owner": "text",  # the worker that feeds it now; '' when none
    },
)

PROJECTIONS: Final = Table(
    "projections",
    ("name",),
    {
        "name": "text",
        "generation": "integer",  # the live one
        "version": "integer",  # of the fold
        "mode": "text",
        "shadow": "integer",  # the one being rebuilt, NULL when none
        "inline_from": "integer",  # inline folding is on from this position; NULL: catching up
    },
)

DOCUMENTS: Final = Table(
    "documents",
    ("projection", "generation", "key"),
    {"projection": "text", "generation": "integer", "key": "text", "body": "text"},
)

PARKED_KEYS: Final = Table(
    "parked_keys",
    ("projection", "generation", "key"),
    {"projection": "text", "generation": "integer", "key": "text", "error": "text", "parked_at": "integer"},
)

PARKED_EVENTS: Final = Table(
    "parked_events",
    ("projection", "generation", "key", "position"),
    {"projection": "text", "generation": "integer", "key": "text", "position": "integer"},
)

SNAPSHOTS: Final = Table(
    "snapshots",
    ("stream", "type"),
    {
        "stream": "text",
        "type": "text",
        "version": "integer",
        "schema_version": "integer",
        "fingerprint": "text",
        "state": "blob",
        "taken_at": "integer",
    },
)

SCHEDULES: Final = Table(
    "schedules",
    ("id",),
    {
        "id": "text",
        "kind": "text",  # once | every | cron
        "spec": "text",  # JSON: interval, expression, tz, missed policy
        "task": "blob",  # JSON: what runs
        "next_run": "integer",
        "paused": "integer",
        "created_at": "integer",
    },
)

SLOTS: Final = Table(
    "slots",
    ("schedule", "slot"),
    {"schedule": "text", "slot": "integer", "worker": "text", "fired_at": "integer", "done": "integer"},
)

DEAD_LETTERS: Final = Table(
    "dead_letters",
    ("id",),
    {
        "id": "text",
        "subscription": "text",
        "event": "blob",  # JSON of the recorded event
        "error": "text",
        "attempts": "integer",
        "parked_at": "integer",
    },
)

COMMANDS: Final = Table(
    "commands",
    ("id",),
    {"id": "text", "command_hash": "text", "stream": "text", "version": "integer", "positions": "text"},
)

QUEUES: Final = Table(
    "queues",
    ("name",),
    {
        "name": "text",
        "rev": "integer",  # grows with every admission and every change: who decides by the row requires it unchanged
        "paused": "integer",
        "config": "text",  # JSON: the limits
        "recent": "text",  # JSON: [[from, to, n], …]: how many were admitted when, as far as the rate limit asks
    },
)

QUEUED: Final = Table(
    "queued",
    ("saga",),  # the saga's id; the row stays until the saga has ended
    {
        "saga": "text",
        "queue": "text",
        "partition": "text",  # '' where none was named
        "priority": "integer",  # the higher goes first
        "enqueued_at": "integer",
        "not_before": "integer",
        "state": "integer",  # 0 too early, 1 waiting, 2 admitted, 3 admitted, and given back by a worker without room
    },
)
"""Sagas in queues. Indexes: (queue, not_before) of state 0; (queue, partition, priority DESC, enqueued_at, saga) of
state 1; (queue, partition) from state 2 on.
"""

QUEUE_KEYS: Final = Table("queue_keys", ("queue", "key"), {"queue": "text", "key": "text", "saga": "text"})
"""Keys of sagas that must not be in a queue twice, until they have ended."""

STAGED: Final = Table(
    "staged",
    ("id",),
    {
        "id": "text",  # in the order of staging, as far as one process stages
        "body": "text",  # JSON: the unit that is to be written
        "staged_at": "integer",
        "refused": "text",  # why it cannot be written: it stays for people to see
    },
)
"""What users' own transactions have left for the store, until a process of the store has moved it there."""

TABLES: Final[dict[str, Table]] = {
    table.name: table
    for table in (
        SAGAS,
        SAGA_IDS,
        WORKERS,
        CHECKPOINTS,
        PROJECTIONS,
        DOCUMENTS,
        PARKED_KEYS,
        PARKED_EVENTS,
        SNAPSHOTS,
        SCHEDULES,
        SLOTS,
        DEAD_LETTERS,
        COMMANDS,
        QUEUES,
        QUEUED,
        QUEUE_KEYS,
        STAGED,
    )
}
