"""`import event_workflow_engine` is cheap, and brings in nothing of the web, the command line or a database driver."""

from __future__ import annotations

import json
import subprocess
import sys

# How much more than the least that any such library imports. On a quiet machine twice that is 100 to 150 ms, which is
# what users are promised; how long it takes is measured by `python -m benchmarks`, for a busy machine says nothing.
BUDGET = 2.0
LEAST = "asyncio, dataclasses, sqlite3, ssl, typing_extensions, msgspec"

# What only a face, an extra or a test needs. `sqlite3` is the standard library's, and the default store.
UNWANTED = {
    "aiokafka", "asyncpg", "click", "cryptography", "cyclopts", "fastapi", "faststream", "httpx", "hypothesis", "nats",
    "opentelemetry", "prometheus_client", "psycopg", "pydantic", "pytest", "redis", "requests", "rich", "sqlalchemy",
    "starlette", "typer", "uvicorn", "uvloop",
}  # fmt: skip

PROBE = """
import json, sys
calls = 0
def count(frame, event, arg):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
import {}
sys.setprofile(None)
print(json.dumps([calls, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def import_once(names: str) -> tuple[int, set[str]]:
    """Calls that an import makes in a fresh interpreter that ignores the variables of this one (-I), and the modules."""
    probe = PROBE.format(names)
    done = subprocess.run([sys.executable, "-I", "-c", probe], check=True, capture_output=True, text=True, timeout=60)
    calls, modules = json.loads(done.stdout)
    return calls, set(modules)


def test_the_core_import_is_cheap() -> None:
    import_once("event_workflow_engine")  # compiles it where nobody has yet
    ours, least = import_once("event_workflow_engine")[0], import_once(LEAST)[0]
    assert least < ours <= BUDGET * least, (ours, least)


def test_the_core_import_brings_no_face_and_no_driver() -> None:
    _, modules = import_once("event_workflow_engine")
    assert modules & UNWANTED == set()
