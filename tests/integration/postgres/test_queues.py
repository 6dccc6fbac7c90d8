"""A queue that four processes serve: its limits hold at every moment, and a killed one leaves no place taken."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.postgres.queue_worker import (
    LEDGER,
    LIMIT,
    NAME,
    OF_PARTITION,
    OF_WORKER,
    engine_at,
    occupying,
)

from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
SAGAS = 200
TENANTS = 12

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


@contextmanager
def worker(url: str, ledger: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.postgres.queue_worker", url],
        cwd=ROOT,
        env={**os.environ, LEDGER: str(ledger)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


async def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"


def check_limits(ledger: Path, killed: int) -> None:
    """At no moment did more run than may; what the killed process had begun counts until others go on with it."""
    lines = sorted(json.loads(line) for line in ledger.read_text().splitlines())
    running: dict[str, tuple[str, int]] = {}
    for _, what, saga_id, tenant, pid in lines:
        if what == "end":
            del running[saga_id]
            continue
        assert saga_id not in running or running[saga_id][1] == killed, "nobody runs it beside another"
        running[saga_id] = tenant, pid
        assert len(running) <= LIMIT
        assert Counter(tenant for tenant, _ in running.values())[tenant] <= OF_PARTITION
        assert Counter(one for _, one in running.values())[pid] <= OF_WORKER
    ends = Counter(saga_id for _, what, saga_id, *_ in lines if what == "end")
    assert len(ends) == SAGAS
    assert {pid for *_, pid in lines} > {killed}, "others had work, too"


@pytest.mark.proves("handed-over", "one-winner", store="postgres", kills=1)
async def test_limits_hold_over_four_processes_of_which_one_is_killed(postgres_url: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    async with open_storage(postgres_url, auto_upgrade=True):
        pass
    with (
        worker(postgres_url, ledger) as one,
        worker(postgres_url, ledger) as two,
        worker(postgres_url, ledger) as three,
        worker(postgres_url, ledger) as doomed,
    ):
        await asyncio.gather(*(ready(process) for process in (one, two, three, doomed)))
        async with engine_at(postgres_url, worker=False) as desk:
            handles = await asyncio.gather(*(
                desk.start(occupying, f"t-{n % TENANTS}", id=f"s-{n}", queue=NAME, partition=f"t-{n % TENANTS}")
                for n in range(SAGAS)
            ))  # fmt: skip
            await asyncio.gather(*(handle.result(timeout=60) for handle in handles[: SAGAS // 4]))
            doomed.kill()
            await asyncio.gather(*(handle.result(timeout=60) for handle in handles))
            (status,) = await desk.queues.list()
    assert (status.waiting, status.running) == (0, 0)
    check_limits(ledger, doomed.pid)
