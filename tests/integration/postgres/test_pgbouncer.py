"""A real PgBouncer in transaction mode between two workers and the server: all sagas end once, also when it is killed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tests.crash.sagas import CASES, read
from tests.integration.postgres.pgbouncer import PgBouncer
from tests.integration.postgres.test_pooler import do_everything
from tests.integration.postgres.test_soak import LEASE, Workers, check, ended, start

from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.needs_pgbouncer, pytest.mark.timeout(300)]

SAGAS = 200


@pytest.fixture
async def pooler() -> AsyncIterator[tuple[PostgresServer, PgBouncer]]:
    with PostgresServer(settings={"fsync": "off"}) as server, PgBouncer(server) as pooler:
        async with open_storage(server.url(), auto_upgrade=True):
            pass
        await pooler.start()
        yield server, pooler


async def test_every_kind_of_write_and_read_bears_shared_connections(
    pooler: tuple[PostgresServer, PgBouncer],
) -> None:
    """While other clients of the pooler keep its connections changing hands."""
    server, bouncer = pooler
    places = [f"{bouncer.url()}?prepared=off&listen=off&schema=s{n}" for n in range(4)]
    for n in range(len(places)):
        async with open_storage(f"{server.url()}?schema=s{n}", auto_upgrade=True):
            pass

    async def one(url: str) -> None:
        async with open_storage(url) as storage:
            await do_everything(storage)

    async with asyncio.TaskGroup() as clients:
        for url in places:
            clients.create_task(one(url))


@pytest.mark.parametrize("killed", [False, True], ids=["stays", "is killed"])
@pytest.mark.parametrize("listening", [False, True], ids=["polling", "listening past it"])
async def test_sagas_run_behind_a_pooler_that(
    pooler: tuple[PostgresServer, PgBouncer], tmp_path: Path, rng: random.Random, listening: bool, killed: bool
) -> None:
    server, bouncer = pooler
    ledger = tmp_path / "ledger"
    listen = quote(server.url(), safe="") if listening else "off"
    url = f"{bouncer.url()}?prepared=off&listen={listen}"
    engine = WorkflowEngine(url, config=EngineConfig(worker=False))
    engine.register(*(saga for saga, _ in CASES.values()))
    cases = {f"k-{n}": rng.choice(list(CASES)) for n in range(SAGAS)}
    async with engine:
        # A machine that is busy elsewhere costs the short lease of the soak, and then something is done again.
        workers = Workers(url, ledger, 2, lease=LEASE if killed else 20.0)
        try:
            starting = [asyncio.create_task(start(engine, case, saga_id)) for saga_id, case in cases.items()]
            if killed:
                while len(read(ledger)) < SAGAS // 2:
                    await engine.store.storage.last_position()
                bouncer.kill()
                await bouncer.start()
            await asyncio.gather(*starting)
            states = await asyncio.gather(*(ended(engine, case, saga_id) for saga_id, case in cases.items()))
        finally:
            workers.close()
        await check(engine, cases, dict(zip(cases, states, strict=True)), ledger)
    if not killed:
        assert len(read(ledger)) == len(set(read(ledger))), "no worker died, so nothing was done again"
