"""`import event_workflow_engine` is cheap, and brings in nothing of the web, the command line or a database driver."""

from __future__ import annotations

import json
import subprocess
import sys

BUDGET_MS = 150
RUNS = 7

# What only a face, an extra or a test needs. `sqlite3` is the standard library's, and the default store.
UNWANTED = {
    "aiokafka", "asyncpg", "click", "cryptography", "cyclopts", "fastapi", "faststream", "httpx", "hypothesis", "nats",
    "opentelemetry", "prometheus_client", "psycopg", "pydantic", "pytest", "redis", "requests", "rich", "sqlalchemy",
    "starlette", "typer", "uvicorn", "uvloop",
}  # fmt: skip

PROBE = """
import json, sys, time
start = time.perf_counter()
import event_workflow_engine
took = time.perf_counter() - start
print(json.dumps([took * 1000, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def import_once() -> tuple[float, set[str]]:
    """A fresh interpreter that ignores the variables of this one (-I), warm in the disk's cache after the first."""
    done = subprocess.run([sys.executable, "-I", "-c", PROBE], check=True, capture_output=True, text=True, timeout=60)
    took, modules = json.loads(done.stdout)
    return took, set(modules)


def test_the_core_import_is_cheap() -> None:
    # Another process may hold the core during one run, but hardly during all: the least is the import's own cost.
    times = [import_once()[0] for _ in range(RUNS)]
    assert min(times) <= BUDGET_MS, [round(time) for time in times]


def test_the_core_import_brings_no_face_and_no_driver() -> None:
    _, modules = import_once()
    assert modules & UNWANTED == set()
