"""Queues: sagas wait for their turn, and only so many run at once, over all workers, on one, for a key, in a time.

A queued saga is accepted as durably as any other; its row says that the queue has it. Workers admit from the store: who
decides requires the queue's row to be as read, so that two never admit by the same free place. Limits count rows, so
nothing that crashes leaves a place taken.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import msgspec

from event_workflow_engine.clock import Clock, Duration, SystemClock, from_micros, seconds, to_micros
from event_workflow_engine.errors import DefinitionError, NotRegisteredError, RowConflictError
from event_workflow_engine.ids import uuid7
from event_workflow_engine.storage.names import check_text
from event_workflow_engine.storage.port import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from event_workflow_engine.history import InQueue
    from event_workflow_engine.storage.port import Storage

__all__ = [
    "Limits",
    "Placement",
    "Queue",
    "QueueStatus",
    "Queueing",
    "Queues",
    "RateLimit",
    "leaving",
    "owner_of",
    "queue_of",
]

_log: Final = logging.getLogger("event_workflow_engine.queues")

DEFAULT: Final = "default"
EARLY, WAITING, ADMITTED, RETURNED = range(4)
_STANDING: Final = -1
_OWNER: Final = "queue:"
_LONGEST: Final = 200
_MICROS: Final = 1_000_000
_INT32: Final = 2**31
_MAX_RATE: Final = 1_000_000


@dataclass(frozen=True)
class RateLimit:
    """At most so many in every span of time, however it is laid.

    Attributes:
        count: How many sagas may begin.
        per: In which time. Seconds or timedelta.

    Raises:
        DefinitionError: A value is out of its range.
    """

    count: int
    per: Duration

    def __post_init__(self) -> None:
        """Check the ranges."""
        if type(self.count) is not int or not 1 <= self.count <= _MAX_RATE or not 0 < seconds(self.per) < _INT32:
            raise DefinitionError(f"{self!r}: count is 1 to {_MAX_RATE:,}, per is above 0 seconds")


@dataclass(frozen=True)
class Queue:
    """A queue, and what it lets run.

    A saga takes its place when it begins, and gives it back when it has ended, however long it sleeps in between. One
    that stands at ``NEEDS_INTERVENTION`` keeps only that of its partition: others of its key wait for the decision.

    Attributes:
        name: Its name: 1 to 200 printable characters.
        limit: How many run at once, over all workers. ``None``: as many as the workers have room for.
        worker_limit: How many one worker has in memory at once; those that sleep do not count.
        partition_limit: How many of one partition run at once; 1 is one after the other.
        rate: How many begin in a time.

    Raises:
        DefinitionError: A value is out of its range.

    Example:
        >>> Queue("payments", limit=20, partition_limit=1, rate=RateLimit(100, per=60)).limit
        20
    """

    name: str
    limit: int | None = None
    worker_limit: int | None = None
    partition_limit: int | None = None
    rate: RateLimit | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_name(self.name, "a queue's name")
        for limit in (self.limit, self.worker_limit, self.partition_limit):
            if limit is not None and (type(limit) is not int or limit < 1):
                raise DefinitionError(f"{self!r}: a limit is a whole number from 1 on, or None")
        if self.rate is not None and not isinstance(self.rate, RateLimit):
            raise DefinitionError(f"{self!r}: rate is a RateLimit(count, per) or None")


class Queueing(TypedDict, total=False):
    """How a saga is started through a queue: keyword arguments of `WorkflowEngine.start` and `WorkflowEngine.execute`.

    Attributes:
        queue: A registered queue, or its name. Without one, but with `not_before`, it is the queue ``"default"``, which
            has no limits unless it is registered with some.
        priority: The higher goes first among those of its partition; then the older one. Default 0.
        not_before: When it may begin at the earliest; an aware datetime.
        partition: A key, such as a tenant's. Partitions take turns: the one with the fewest running goes first, so that
            none waits behind the many of another. See also `Queue.partition_limit`.
        dedup_key: Only one saga with this key is in the queue, waiting or running, at a time.
        on_duplicate: What a start does where there is one: ``"reject"`` raises a `DuplicateSagaError`, which is the
            default; ``"join"`` starts nothing and gives the handle of that one, if it is of the same definition.
    """

    queue: Queue | str
    priority: int
    not_before: datetime
    partition: str
    dedup_key: str
    on_duplicate: Literal["reject", "join"]


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """A queue's limits as they are stored; `per` in microseconds."""

    limit: int | None = None
    worker_limit: int | None = None
    partition_limit: int | None = None
    rate: int | None = None
    per: int = 0


@dataclass(frozen=True)
class QueueStatus:
    """A queue as it is.

    Attributes:
        name: Its name.
        paused: Whether nothing of it begins.
        early: How many sagas wait for their `not_before`.
        waiting: How many wait for their turn.
        running: How many have begun and have not ended, those asleep among them.
        standing: How many of them stand at ``NEEDS_INTERVENTION``.
        queue: Its limits.
    """

    name: str
    paused: bool
    early: int
    waiting: int
    running: int
    standing: int
    queue: Queue


@dataclass(frozen=True)
class Placement:
    """Where a new saga goes: `Queueing`, checked."""

    queue: str
    priority: int
    not_before: int | None
    partition: str
    dedup_key: str | None
    joins: bool

    def rows(self, saga_id: str, now: int) -> tuple[Row, ...]:
        """What puts a saga into the queue, in the unit that accepts it."""
        values = {
            "queue": self.queue,
            "partition": self.partition,
            "priority": self.priority,
            "enqueued_at": now,
            "not_before": self.not_before,
            "state": WAITING if self.not_before is None or self.not_before <= now else EARLY,
        }
        row = Row("queued", "insert", (saga_id,), values)
        if self.dedup_key is None:
            return (row,)
        return (row, Row("queue_keys", "insert", (self.queue, self.dedup_key), {"saga": saga_id}))


def owner_of(queue: str) -> str:
    """Who has a saga, by its row, until a worker does."""
    return _OWNER + queue


def queue_of(owner: str) -> str | None:
    """The queue that has a saga; ``None`` where a worker does, or nobody."""
    return owner.removeprefix(_OWNER) if owner.startswith(_OWNER) else None


def leaving(saga_id: str, place: InQueue) -> tuple[Row, ...]:
    """What takes a saga out of its queue, in the unit that ends it."""
    row = Row("queued", "delete", (saga_id,))
    if place.key is None:
        return (row,)
    return (row, Row("queue_keys", "delete", (place.queue, place.key), where={"saga": saga_id}))


class Queues:
    """The queues of a store: registered here, limited for all its workers, paused and resumed by an operator.

    Args:
        storage: Where they are.
        clock: The time of pausing and resuming.

    Example:
        >>> import asyncio
        >>> from event_workflow_engine import Saga, SagaStep, WorkflowEngine
        >>> async def pay() -> str:
        ...     return "paid"
        >>> payment = Saga("payment", [SagaStep("pay", pay)])
        >>> async def main() -> None:
        ...     async with WorkflowEngine() as engine:
        ...         engine.register(payment)
        ...         engine.queues.register(Queue("payments", limit=2))
        ...         await engine.queues.pause("payments")
        ...         handle = await engine.start(payment, id="p-1", queue="payments", priority=5)
        ...         print(*[(queue.name, queue.waiting) for queue in await engine.queues.list()])
        ...         await engine.queues.resume("payments")
        ...         print((await handle.result())["pay"])
        >>> asyncio.run(main())
        ('payments', 1)
        paid
    """

    def __init__(
        self, storage: Storage, *, clock: Clock | None = None, on_new: Callable[[], None] | None = None
    ) -> None:
        self._storage = storage
        self._clock = clock if clock is not None else SystemClock()
        self._on_new = on_new
        self._queues: dict[str, Queue] = {}
        self._unstored: dict[str, Queue] = {}
        self._known: set[str] = set()
        self._last = 0

    def register(self, *queues: Queue) -> None:
        """Let sagas be started through queues. Sync; before or after entering the engine.

        The limits hold for all workers of the store from then on, in place of those that it had for a queue.

        Raises:
            DefinitionError: It is no queue, or another one of that name is registered.
        """
        for queue in queues:
            if not isinstance(queue, Queue):
                raise DefinitionError(f"{queue!r} is no queue: make it by Queue(name, …)")
            if self._queues.setdefault(queue.name, queue) != queue:
                raise DefinitionError(f"queue {queue.name!r} is registered already, as {self._queues[queue.name]!r}")
            self._unstored[queue.name] = queue
        if queues and self._on_new is not None:
            self._on_new()

    async def pause(self, name: str) -> None:
        """Let nothing of a queue begin until `resume`, on no worker; what runs goes on.

        Raises:
            NotRegisteredError: The store has no such queue.
        """
        await self._set_paused(name, paused=True)

    async def resume(self, name: str) -> None:
        """Let a paused queue go on.

        Raises:
            NotRegisteredError: The store has no such queue.
        """
        await self._set_paused(name, paused=False)

    async def list(self) -> Sequence[QueueStatus]:
        """All queues of the store, by name."""
        await self.settle()
        rows = await self._storage.query("queues_all")
        counts: dict[str, dict[int, int]] = {row["name"]: {} for row in rows}
        for row in await self._storage.query("queue_counts"):
            counts.setdefault(row["queue"], {})[row["state"]] = row["n"]
        return [_status(row, counts[row["name"]]) for row in rows]

    # -- for the engine ----------------------------------------------------------------------------------------------

    def placement(self, options: Queueing) -> Placement | None:
        """Check how a saga is to be started; ``None``: not through a queue.

        Raises:
            NotRegisteredError: The queue is not registered here.
            DefinitionError: An option is wrong.
        """
        if not options:
            return None
        unknown = sorted(options.keys() - Queueing.__annotations__.keys())
        if unknown:
            raise DefinitionError(f"start() has no option {', '.join(unknown)}; of queues there are "
                                  f"{', '.join(Queueing.__annotations__)}")  # fmt: skip
        queue = options.get("queue")
        if queue is None and options.keys() != {"not_before"}:
            raise DefinitionError(
                "priority, partition, dedup_key and on_duplicate need queue=: a queue that is registered"
            )
        priority = options.get("priority", 0)
        if type(priority) is not int or not -_INT32 <= priority < _INT32:
            raise DefinitionError(f"priority={priority!r}: a whole number of 32 bits; the higher goes first")
        when = options.get("not_before")
        if when is not None and getattr(when, "tzinfo", None) is None:
            raise DefinitionError(
                f"not_before={when!r}: an aware datetime, such as datetime.now(UTC) + timedelta(hours=1)"
            )
        if "partition" in options:
            _check_name(options["partition"], "partition=")
        if "dedup_key" in options:
            _check_name(options["dedup_key"], "dedup_key=")
        policy = options.get("on_duplicate", "reject")
        if policy not in ("reject", "join"):
            raise DefinitionError(f"on_duplicate={policy!r}: 'reject' or 'join'")
        return Placement(
            DEFAULT if queue is None else self._registered(queue),
            priority,
            None if when is None else to_micros(when),
            options.get("partition", ""),
            options.get("dedup_key"),
            policy == "join",
        )

    def _registered(self, queue: Queue | str) -> str:
        name = queue.name if isinstance(queue, Queue) else queue
        if self._queues.get(name) is None or (isinstance(queue, Queue) and self._queues[name] != queue):
            known = ", ".join(sorted(self._queues)) or "none"
            raise NotRegisteredError(
                f"queue {queue!r} is not registered here (known: {known}): call engine.queues.register(Queue(…)) first"
            )
        return name

    async def instant(self, name: str) -> int:
        """When a saga comes into a queue now: later than any before it from this process."""
        await self.settle()
        if name not in self._known:
            await self._store(Queue(name), replace=False)
        self._last = max(to_micros(self._clock.now()), self._last + 1)
        return self._last

    async def settle(self) -> None:
        """Have the store know what was registered here."""
        while self._unstored:
            name, queue = next(iter(self._unstored.items()))
            await self._store(queue, replace=True)
            self._unstored.pop(name, None)

    async def _store(self, queue: Queue, *, replace: bool) -> None:
        config = msgspec.json.encode(_limits(queue)).decode()
        while True:
            row = await self._storage.get("queues", (queue.name,))
            try:
                if row is None:
                    values = {"rev": 1, "paused": 0, "config": config, "recent": "[]"}
                    await self._write(Row("queues", "insert", (queue.name,), values))
                elif replace and row["config"] != config:
                    values = {"rev": row["rev"] + 1, "config": config}
                    await self._write(Row("queues", "update", (queue.name,), values, {"rev": row["rev"]}))
                    _log.info(
                        "queue %s has new limits for all workers: %s (before: %s)", queue.name, config, row["config"]
                    )
            except RowConflictError:
                continue  # another process was quicker: look again
            self._known.add(queue.name)
            return

    async def _set_paused(self, name: str, *, paused: bool) -> None:
        await self.settle()
        while True:
            row = await self._storage.get("queues", (name,))
            if row is None:
                raise NotRegisteredError(f"there is no queue {name!r} in {self._storage.url}: see ewe queue ls")
            values = {"rev": row["rev"] + 1, "paused": int(paused)}
            try:
                await self._write(Row("queues", "update", (name,), values, {"rev": row["rev"]}))
            except RowConflictError:
                continue
            return

    async def _write(self, row: Row) -> None:
        await self._storage.write(Unit(uuid7(), to_micros(self._clock.now()), rows=(row,)))


def _limits(queue: Queue) -> Limits:
    rate = queue.rate
    return Limits(
        queue.limit,
        queue.worker_limit,
        queue.partition_limit,
        None if rate is None else rate.count,
        0 if rate is None else max(1, int(seconds(rate.per) * _MICROS)),
    )


def _status(row: dict[str, Any], counts: dict[int, int]) -> QueueStatus:
    limits = msgspec.json.decode(row["config"], type=Limits)
    rate = None if limits.rate is None else RateLimit(limits.rate, from_micros(limits.per) - from_micros(0))
    standing = counts.get(_STANDING, 0)
    return QueueStatus(
        row["name"],
        bool(row["paused"]),
        counts.get(EARLY, 0),
        counts.get(WAITING, 0),
        counts.get(ADMITTED, 0) + counts.get(RETURNED, 0) + standing,
        standing,
        Queue(row["name"], limits.limit, limits.worker_limit, limits.partition_limit, rate),
    )


def _check_name(value: object, what: str) -> None:
    check_text(value, what)
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
        raise DefinitionError(f"{what} {value!r:.80}: 1 to {_LONGEST} printable characters")
