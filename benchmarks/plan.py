"""What is measured, against which raw limit, beside which peer, and what it must reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Probe:
    """A function run in a fresh process on an empty folder.

    Attributes:
        call: ``module:function`` below `benchmarks`; of a peer ``script:function`` below ``benchmarks/peers``.
        sizes: Its keyword arguments.
        quick: Those that differ in a quick run.
        repeat: How often it runs; the median counts.
        peer: Whether the peers' interpreter runs it.
        slow: Left out of quick runs.
        server: Whether it gets the URL of a fresh PostgreSQL server as ``url``.
    """

    call: str
    sizes: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    repeat: int = 3
    peer: bool = False
    slow: bool = False
    server: bool = False


@dataclass(frozen=True)
class Job:
    """A measurement of ours, run between two of its raw limit, time after time, and then its peers."""

    ours: Probe
    limit: Probe | None = None
    peers: dict[str, Probe] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        figure: The figure of the job's `ours`; `limit_figure` and `peer_figure` likewise.
        better: Whether more or less of it is better.
        bar: What it must reach; ``None``: no target of its own.
        limit_share: What share of the raw limit of the same run it must reach.
        floor: Another figure of the job and the least it may be.
    """

    job: str
    work: str
    figure: str
    unit: str
    better: Literal["more", "less"]
    bar: float | None = None
    limit_figure: str | None = None
    limit_share: float | None = None
    floor: tuple[str, float] | None = None
    peer_figure: str | None = None


_COMMITS = Probe("limits:one_row_commits", {"seconds": 0.7}, {"seconds": 0.2})
_DBOS = {"DBOS": {}, "DBOS, WAL": {"wal": True}}


def _dbos(function: str, quick: dict[str, Any], *, repeat: int = 1, **sizes: Any) -> dict[str, Probe]:
    return {
        name: Probe(f"dbos_sagas:{function}", sizes | more, quick, repeat, peer=True) for name, more in _DBOS.items()
    }


def _es(function: str, quick: dict[str, Any], *, repeat: int = 3) -> dict[str, Probe]:
    return {"eventsourcing": Probe(f"eventsourcing_store:{function}", {}, quick, repeat, peer=True)}


def _ours(call: str, form: str, quick: dict[str, Any], *, repeat: int = 3, **sizes: Any) -> Probe:
    return Probe(f"sagas:{call}", {"form": form} | sizes, quick, repeat)


def _pg(function: str, quick: dict[str, Any], *, repeat: int = 3, **sizes: Any) -> Probe:
    return Probe(f"postgres:{function}", sizes, quick, repeat, server=True)


def _pg_peer(call: str, quick: dict[str, Any], **sizes: Any) -> Probe:
    return Probe(call, sizes, quick, 1, peer=True, server=True)


_STEPS_QUICK = {"steps": 200, "long": 1000}
_CONCURRENT_QUICK = {"sagas": 100}
_LATENCY_QUICK = {"samples": 100}
_RECOVERY_QUICK = {"sagas": 100}
_GROUP = Probe("limits:group_commit", {}, {"clients": 200, "rounds": 1})
_HOPS = Probe("limits:hop_latency", {}, {"samples": 100})
_PICKUP_QUICK = {"samples": 5, "warm": 1, "settle": 0.1, "idle": 1}
_QUEUES: dict[str, dict[str, Any]] = {
    "queue": {},
    "queue-limit": {"limit": 20},
    "queue-processes": {"limit": 20, "workers": 4},
}

JOBS: dict[str, Job] = {
    "steps": Job(
        _ours("sequential", "declared", _STEPS_QUICK), _COMMITS, _dbos("sequential", {"steps": 100}, steps=1000)
    ),
    "steps-function": Job(
        _ours("sequential", "function", _STEPS_QUICK), _COMMITS, _dbos("sequential", {"steps": 100}, steps=1000)
    ),
    "concurrent": Job(
        _ours("concurrent", "declared", _CONCURRENT_QUICK),
        _GROUP,
        _dbos("concurrent", _CONCURRENT_QUICK, sagas=1000),
    ),
    "concurrent-function": Job(
        _ours("concurrent", "function", _CONCURRENT_QUICK),
        _GROUP,
        _dbos("concurrent", _CONCURRENT_QUICK, sagas=1000),
    ),
    "latency": Job(_ours("latency", "declared", _LATENCY_QUICK), _HOPS, _dbos("latency", _LATENCY_QUICK)),
    "latency-function": Job(_ours("latency", "function", _LATENCY_QUICK), _HOPS, _dbos("latency", _LATENCY_QUICK)),
    "recovery": Job(_ours("recovery", "declared", _RECOVERY_QUICK), None, _dbos("recovery", _RECOVERY_QUICK)),
    "recovery-function": Job(_ours("recovery", "function", _RECOVERY_QUICK), None, _dbos("recovery", _RECOVERY_QUICK)),
    "recovery-10k": Job(_ours("recovery", "declared", {"sagas": 500}, sagas=10_000)),
    "recovery-10k-function": Job(_ours("recovery", "function", {"sagas": 500}, sagas=10_000)),
    "append": Job(
        Probe("store:append", {}, {"events": 2000}),
        Probe("limits:group_commit", {"clients": 100, "writes": 100}, {"writes": 10, "rounds": 1}),
        _es("append", {"events": 200}),
    ),
    "load": Job(
        Probe("store:load", {}, {"events": 2000}),
        Probe("limits:bare_load", {}, {"events": 2000, "rounds": 1}),
        _es("load", {"events": 1000, "rounds": 1}),
    ),
    "projection": Job(
        Probe("store:projection", {}, {"events": 3000}),
        Probe("limits:bare_fold", {}, {"events": 3000}),
        _es("system", {"events": 500}),
    ),
    "memory": Job(Probe("sagas:memory", {}, {"sagas": 3000}, repeat=1)),
    "import": Job(Probe("imports:core", {}, {"runs": 1}), Probe("imports:bare", {}, {"runs": 1})),
    **{
        f"pg-steps-{form}": Job(
            _pg("sequential", {"steps": 200}, form=form),
            _pg("bare_calls", {"seconds": 0.3}),
            {
                "DBOS": _pg_peer("dbos_sagas:sequential", {"steps": 50}, steps=1000),
                "Absurd": _pg_peer("absurd_tasks:sequential", {"steps": 50}, steps=1000),
            },
        )
        for form in ("declared", "function")
    },
    **{
        f"pg-concurrent-{form}": Job(
            _pg("concurrent", {"sagas": 100}, form=form),
            _pg("bare_group", {"clients": 100, "rounds": 1}),
            {
                "DBOS": _pg_peer("dbos_sagas:concurrent", {"sagas": 50}, sagas=1000),
                "Absurd": _pg_peer("absurd_tasks:concurrent", {"sagas": 50}, sagas=1000),
            },
        )
        for form in ("declared", "function")
    },
    "pg-processes": Job(_pg("many_processes", {"sagas": 100, "rounds": 1})),
    **{
        f"pg-latency-{form}": Job(
            _pg("latency", {"samples": 50}, form=form),
            None,
            {"DBOS": _pg_peer("dbos_sagas:latency", {"samples": 30})},
        )
        for form in ("declared", "function")
    },
    "pg-enqueue": Job(
        _pg("enqueue", {"samples": 20, "settle": 0.1, "idle": 1}, repeat=1),
        None,
        {
            "DBOS": _pg_peer("dbos_sagas:enqueue", _PICKUP_QUICK, samples=40, warm=3),
            "DBOS, poll 0.05 s": _pg_peer("dbos_sagas:enqueue", _PICKUP_QUICK, samples=150, poll=0.05),
            "procrastinate": _pg_peer("procrastinate_queue:enqueue", _PICKUP_QUICK),
            "PgQueuer": _pg_peer("pgqueuer_queue:enqueue", _PICKUP_QUICK),
            "Absurd": _pg_peer("absurd_tasks:enqueue", _PICKUP_QUICK, samples=100, warm=3),
            "Absurd, poll 0.05 s": _pg_peer("absurd_tasks:enqueue", _PICKUP_QUICK, samples=150, poll=0.05),
        },
    ),
    "pg-append": Job(
        _pg("append", {"events": 2000}),
        None,
        {
            f"eventsourcing{name}": _pg_peer(
                "eventsourcing_store:append_postgres", {"seconds": 0.3, "writers": 8}, width=width
            )
            for name, width in (("", 3), (", saves of 1", 1), (", saves of 100", 100))
        },
    ),
    "pg-recovery": Job(
        _pg("recovery", {"sagas": 50, "lease": 1.0}, repeat=1),
        None,
        {
            "DBOS, the same executor restarted": _pg_peer(
                "dbos_sagas:recovery", {"sagas": 50, "elsewhere": 1}, sagas=1000, elsewhere=10
            ),
            "Absurd": _pg_peer("absurd_tasks:recovery", {"sagas": 50, "lease": 2}),
        },
    ),
    **{name: Job(Probe("queues:throughput", sizes, {"sagas": 100, "rounds": 1})) for name, sizes in _QUEUES.items()},
    **{
        f"pg-{name}": Job(Probe("queues:throughput", sizes, {"sagas": 100, "rounds": 1}, server=True))
        for name, sizes in _QUEUES.items()
    },
}

_FORMS = (("", "declared"), ("-function", "function"))

ROWS: tuple[Row, ...] = (
    *(
        Row(
            job="steps" + suffix,
            work=f"one saga of 1,000 sequential steps, {form}",
            figure="steps_per_s",
            unit="steps/s",
            better="more",
            bar=2000,
            limit_figure="commits_per_s",
            limit_share=0.5,
            peer_figure="steps_per_s",
        )
        for suffix, form in _FORMS
    ),
    *(
        Row(
            job="steps" + suffix,
            work=f"the same with 10,000 steps, {form}",
            figure="long_steps_per_s",
            unit="steps/s",
            better="more",
            floor=("long_share", 0.9),
        )
        for suffix, form in _FORMS
    ),
    *(
        Row(
            job="concurrent" + suffix,
            work=f"1,000 concurrent sagas of 5 steps, {form}",
            figure="steps_per_s",
            unit="steps/s",
            better="more",
            bar=20_000,
            limit_figure="writes_per_s",
            peer_figure="steps_per_s",
        )
        for suffix, form in _FORMS
    ),
    *(
        Row(
            job="latency" + suffix,
            work=f"one saga of 3 steps, {name}, {form}",
            figure=f"{name}_ms",
            unit="ms",
            better="less",
            bar=bar,
            limit_figure=f"{name}_ms",
            peer_figure=f"{name}_ms",
        )
        for suffix, form in _FORMS
        for name, bar in (("p50", 2.0), ("p99", 6.0))
    ),
    *(
        Row(
            job=job + suffix,
            work=f"{count} sagas killed, restart to all resumed, {form}",
            figure="resumed_s",
            unit="s",
            better="less",
            bar=bar,
            peer_figure="resumed_s",
        )
        for job, count, bar in (("recovery", "1,000", 1.0), ("recovery-10k", "10,000", 4.0))
        for suffix, form in _FORMS
    ),
    Row(
        job="append",
        work="append of 1 event, 100 concurrent writers",
        figure="events_per_s",
        unit="events/s",
        better="more",
        bar=30_000,
        limit_figure="writes_per_s",
        peer_figure="events_per_s",
    ),
    Row(
        job="load",
        work="load an aggregate of 10,000 events, no snapshot",
        figure="load_ms",
        unit="ms",
        better="less",
        bar=50,
        limit_figure="load_ms",
        peer_figure="load_ms",
    ),
    Row(
        job="projection",
        work="async document projection, exactly-once",
        figure="events_per_s",
        unit="events/s",
        better="more",
        bar=25_000,
        limit_figure="events_per_s",
        peer_figure="events_per_s",
    ),
    Row(job="memory", work="100,000 sagas asleep on a timer", figure="mb", unit="MB", better="less", bar=60),
    Row(
        job="import",
        work="core import",
        figure="import_ms",
        unit="ms",
        better="less",
        bar=150,
        limit_figure="import_ms",
    ),
    *(
        Row(
            job=f"pg-steps-{form}",
            work=f"PostgreSQL: one saga of 1,000 sequential steps, {form}",
            figure="steps_per_s",
            unit="steps/s",
            better="more",
            bar=1100,
            limit_figure="calls_per_s",
            limit_share=0.75,
            peer_figure="steps_per_s",
        )
        for form in ("declared", "function")
    ),
    *(
        Row(
            job=f"pg-concurrent-{form}",
            work=f"PostgreSQL: 1,000 concurrent sagas of 5 steps, {form}",
            figure="steps_per_s",
            unit="steps/s",
            better="more",
            bar=15_000,
            limit_figure="writes_per_s",
            peer_figure="steps_per_s",
        )
        for form in ("declared", "function")
    ),
    Row(
        job="pg-processes",
        work="PostgreSQL: the same from 4 worker processes, declared",
        figure="steps_per_s",
        unit="steps/s",
        better="more",
        bar=15_000,
    ),
    *(
        Row(
            job=f"pg-latency-{form}",
            work=f"PostgreSQL: one saga of 3 steps, {name}, {form}",
            figure=f"{name}_ms",
            unit="ms",
            better="less",
            bar=bar,
            peer_figure=f"{name}_ms",
        )
        for form in ("declared", "function")
        for name, bar in (("p50", 4.0), ("p99", 12.0))
    ),
    *(
        Row(
            job="pg-enqueue",
            work=f"PostgreSQL: started in one process to running in another, {name}",
            figure=f"{name}_ms",
            unit="ms",
            better="less",
            bar=bar,
            peer_figure=f"{name}_ms",
        )
        for name, bar in (("p50", 8.0), ("p99", 30.0))
    ),
    Row(
        job="pg-enqueue",
        work="PostgreSQL: transactions of an idle worker and an idle onlooker",
        figure="idle_queries_per_s",
        unit="/s",
        better="less",
        bar=10,
        peer_figure="idle_queries_per_s",
    ),
    Row(
        job="pg-append",
        work="PostgreSQL: append, 64 writers × 3 events, version checked",
        figure="events_per_s",
        unit="events/s",
        better="more",
        bar=30_000,
        peer_figure="events_per_s",
    ),
    Row(
        job="pg-recovery",
        work="PostgreSQL: 1,000 sagas of a killed worker, all resumed, with a lease of 5 s",
        figure="resumed_s",
        unit="s",
        better="less",
        peer_figure="resumed_s",
    ),
    Row(
        job="pg-recovery",
        work="PostgreSQL: 1,000 sagas of a killed worker resumed, beyond the lease of 5 s",
        figure="over_lease_s",
        unit="s",
        better="less",
        bar=1.0,
    ),
    *(
        Row(
            job=prefix + job,
            work=f"{database}1,000 queued sagas of one step, {how}",
            figure="sagas_per_s",
            unit="sagas/s",
            better="more",
        )
        for prefix, database in (("", ""), ("pg-", "PostgreSQL: "))
        for job, how in (
            ("queue", "no limit"),
            ("queue-limit", "20 at once"),
            ("queue-processes", "20 at once over 4 worker processes"),
        )
    ),
)

LIMITS: tuple[Probe, ...] = (
    Probe("limits:fsync", {}, {"seconds": 0.1}),
    Probe("limits:one_row_commits", {}, {"seconds": 0.2}),
    Probe("limits:group_commit", {"clients": 1000, "writes": 5}, {"clients": 200, "rounds": 1}),
    Probe("limits:group_commit", {"clients": 1000, "writes": 5, "rows_a_statement": 1}, {"clients": 200, "rounds": 1}),
    Probe("limits:asyncio_tasks", {}, {"tasks": 5000}, 1),
    Probe("limits:msgspec_round_trip", {}, {"rounds": 5000}, 1),
)
"""Measured once before everything else, beside the limits of each job."""
