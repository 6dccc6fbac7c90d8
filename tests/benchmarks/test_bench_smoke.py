"""Each measurement of the benchmarks runs at a tiny size and gives figures. Nothing here looks at how fast."""

from __future__ import annotations

import ast
import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from benchmarks.__main__ import main
from benchmarks.plan import JOBS, LIMITS, ROWS, Probe, Row
from benchmarks.runner import Figures, Measured

from benchmarks import imports, limits, postgres, queues, report, sagas, store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).resolve().parent.parent.parent

TINY = [
    (limits.fsync, {"seconds": 0.01}),
    (limits.one_row_commits, {"seconds": 0.01}),
    (limits.group_commit, {"clients": 5, "writes": 2, "rounds": 1}),
    (limits.group_commit, {"clients": 5, "writes": 2, "rounds": 1, "rows_a_statement": 1}),
    (limits.hop_latency, {"samples": 5}),
    (limits.asyncio_tasks, {"tasks": 10}),
    (limits.msgspec_round_trip, {"rounds": 10}),
    (limits.bare_load, {"events": 50, "rounds": 1}),
    (limits.bare_fold, {"events": 50, "keys": 5, "batch": 20}),
    (sagas.sequential, {"form": "declared", "steps": 3, "long": 6}),
    (sagas.sequential, {"form": "function", "steps": 3, "long": 6}),
    (sagas.concurrent, {"form": "declared", "sagas": 3, "steps": 2}),
    (sagas.concurrent, {"form": "function", "sagas": 3, "steps": 2}),
    (sagas.latency, {"form": "declared", "samples": 3}),
    (sagas.latency, {"form": "function", "samples": 3}),
    (imports.core, {"runs": 1}),
    (imports.bare, {"runs": 1}),
    (store.append, {"events": 20, "writers": 4}),
    (store.load, {"events": 20, "rounds": 1}),
    (store.projection, {"events": 200, "keys": 4}),
    (queues.throughput, {"sagas": 4, "limit": 2, "rounds": 1}),
]


@pytest.mark.parametrize(("measure", "sizes"), TINY, ids=lambda value: getattr(value, "__name__", ""))
def test_measurement_gives_positive_figures(
    measure: Callable[..., Figures], sizes: dict[str, Any], tmp_path: Path
) -> None:
    figures = measure(tmp_path, **sizes)
    assert figures
    assert all(math.isfinite(value) and value > 0 for value in figures.values()), figures


TINY_ON_POSTGRES = [
    (postgres.bare_calls, {"seconds": 0.01}),
    (postgres.bare_group, {"clients": 5, "writes": 2, "rounds": 1}),
    (postgres.sequential, {"form": "declared", "steps": 3}),
    (postgres.concurrent, {"form": "function", "sagas": 3}),
    (postgres.latency, {"form": "declared", "samples": 3}),
    (postgres.many_processes, {"workers": 2, "sagas": 4, "rounds": 2}),
    (postgres.enqueue, {"samples": 3, "settle": 0.1, "idle": 0.1}),
    (postgres.append, {"writers": 3, "events": 30}),
    (queues.throughput, {"sagas": 4, "limit": 2, "workers": 2, "rounds": 1}),
]


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a database of its own."""
    server, name = postgres_url.partition("?")[0], f"bench_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(server)
    await admin.execute(f"CREATE DATABASE {name}")
    yield f"{server.rpartition('/')[0]}/{name}"
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("measure", "sizes"), TINY_ON_POSTGRES, ids=lambda value: getattr(value, "__name__", ""))
async def test_measurement_on_postgres_gives_figures(
    measure: Callable[..., Figures], sizes: dict[str, Any], tmp_path: Path, database: str
) -> None:
    figures = await asyncio.to_thread(measure, tmp_path, url=database, **sizes)
    assert figures
    assert all(math.isfinite(value) and value >= 0 for value in figures.values()), figures


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_recovery_on_postgres_takes_no_less_than_the_lease(tmp_path: Path, database: str) -> None:
    figures = await asyncio.to_thread(postgres.recovery, tmp_path, url=database, sagas=5, lease=0.5)
    assert 0 < figures["resumed_s"] < 10


@pytest.mark.parametrize("form", ["declared", "function"])
def test_recovery_resumes_every_saga_after_the_kill(form: str, tmp_path: Path) -> None:
    figures = sagas.recovery(tmp_path, form=form, sagas=5)
    assert 0 < figures["resumed_s"] <= figures["from_exec_s"]
    assert figures["ended_s"] >= figures["resumed_s"]


def test_memory_waits_until_all_are_asleep(tmp_path: Path) -> None:
    figures = sagas.memory(tmp_path, sagas=20)
    assert figures["idle_mb"] > 0
    assert figures["put_to_sleep_per_s"] > 0


def test_every_planned_call_names_a_measurement() -> None:
    modules = {
        "imports": imports, "limits": limits, "postgres": postgres, "queues": queues, "sagas": sagas, "store": store,
    }  # fmt: skip
    probes = [probe for job in JOBS.values() for probe in (job.ours, job.limit) if probe]
    for probe in (*probes, *LIMITS):
        module, _, function = probe.call.partition(":")
        assert callable(getattr(modules[module], function)), probe.call
    assert {row.job for row in ROWS} == set(JOBS)


@pytest.mark.parametrize(
    "probe", [probe for job in JOBS.values() for probe in job.peers.values()], ids=lambda probe: probe.call
)
def test_every_planned_peer_takes_the_sizes_that_it_gets(probe: Probe) -> None:
    script, _, function = probe.call.partition(":")
    tree = ast.parse((ROOT / "benchmarks" / "peers" / f"{script}.py").read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    given = {*probe.sizes, *probe.quick, *(["url"] if probe.server else [])}
    accepted = {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}
    if found.args.kwarg:  # those of `pickup.measured`
        accepted |= {"warm", "settle", "idle"}
    assert given <= accepted


def test_the_runner_prints_the_table_and_writes_nothing_when_quick(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "append", "--folder", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "append of 1 event" in done.stdout
    assert "Written" not in done.stdout


def test_results_are_written_with_their_circumstances(tmp_path: Path) -> None:
    places = ["--folder", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert main(["--quick", "--only", "append", "--name", "here", *places]) == 0
    results = json.loads((tmp_path / "results" / "here.json").read_text())
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["sqlite"]
    assert results["command"].startswith("python -m benchmarks --quick --only append --name here")
    assert results["rows"][0]["measured"] > 0
    assert str(ROOT) not in json.dumps(results["machine"])


@pytest.mark.parametrize(
    ("value", "limits_around", "holds"),
    [(100.0, (150.0, 170.0), True), (100.0, (300.0, 300.0), False), (9.0, (10.0, 10.0), False)],
)
def test_a_row_holds_only_when_bar_and_share_of_the_limit_do(
    value: float, limits_around: tuple[float, float], *, holds: bool
) -> None:
    row = Row("steps", "w", "rate", "u", "more", bar=10, limit_figure="limit", limit_share=0.5)
    measured = Measured(
        ours={"rate": value}, runs=[{"rate": value}], limit_runs=[{"limit": limit} for limit in limits_around]
    )
    assert report.verdict(row, measured)[0] is holds


def test_ratios_to_peers_say_how_many_times_better_ours_is() -> None:
    measured = Measured(ours={"ms": 2.0}, peers={"slow": {"ms": 10.0}})
    row = Row("latency", "w", "ms", "ms", "less", bar=5, peer_figure="ms")
    assert report.verdict(row, measured) == (True, {"slow": 5.0})
