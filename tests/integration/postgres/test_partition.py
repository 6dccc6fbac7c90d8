"""A worker is cut off from the server by its network, for longer than its lease: others do its work, and it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.crash.sagas import CASES
from tests.integration.postgres.namespaces import hosts
from tests.integration.postgres.test_soak import Workers, check, ended, start
from tests.integration.postgres.test_workers import LEASE, SAGAS, Place, heard, left, onlooker
from tests.integration.postgres.worker import quick

from event_workflow_engine import EngineConfig, WorkflowEngine
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.postgres import PostgresServer

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.postgres.namespaces import Host

    from event_workflow_engine.storage.port import Storage

pytestmark = [pytest.mark.long, pytest.mark.needs_root]


@pytest.fixture
def network(rng: random.Random) -> Iterator[tuple[PostgresServer, Host, Host]]:
    """A server, and two hosts that reach it each by a cable of its own."""
    with hosts(2, rng) as (address, (one, two)), PostgresServer(settings={"fsync": "off"}, address=address) as server:
        yield server, one, two


@pytest.mark.timeout(120)
@pytest.mark.proves("partition", store="postgres")
async def test_rule_12_a_worker_that_is_cut_off_stops_its_sagas_and_works_again_when_it_is_not(
    network: tuple[PostgresServer, Host, Host], tmp_path: Path
) -> None:
    """Its actions end while it is cut off, and what follows them is the other's to do."""
    server, here, there = network
    place = Place(server.url(), tmp_path)
    # A limit of the test's own: pytest's ends the process, and what was made of the network would stay.
    async with asyncio.timeout(60):
        async with open_storage(place.url, auto_upgrade=True):
            pass
        with place.opened, place.worker(SAGAS, via=here.via) as lonely, place.worker(via=there.via) as second:
            await heard(lonely, "waiting", SAGAS)
            await heard(second, "ready")
            here.pull()
            await heard(second, "waiting", SAGAS)
            place.open_gate()
            async with onlooker(place) as engine:
                assert await left(engine) == {second.pid}
                here.plug()
                await heard(lonely, "taken for dead", errors=True)
                second.kill()
                handle = await engine.start(quick, id="q-1")
                assert (await handle.result(timeout=40))["whoami"] == lonely.pid, "it goes on as another life"
    ids = [f"g-{n}" for n in range(SAGAS)]
    assert sorted(place.notes("arrived")) == [(saga_id, lonely.pid) for saga_id in ids], "done once is done"
    assert sorted(place.notes("left")) == [(saga_id, second.pid) for saga_id in ids]


async def life_of(storage: Storage, pid: int, wanted: int) -> None:
    """Wait until the worker of a process lives that life; 0: none, for it was taken for dead."""
    while {row["incarnation"] for row in await storage.query("live_workers") if row["pid"] == pid} != (
        {wanted} if wanted else set()
    ):
        pass


@pytest.mark.timeout(600)
@pytest.mark.proves("partition", store="postgres")
async def test_sagas_go_on_over_partitions_at_any_moment(
    network: tuple[PostgresServer, Host, Host], tmp_path: Path, rng: random.Random
) -> None:
    """Now one worker is cut off and now the other, each for so long that it is taken for dead."""
    server, ledger = network[0], tmp_path / "ledger"
    engine = WorkflowEngine(server.url(), config=EngineConfig(worker=False, auto_upgrade=True))
    engine.register(*(saga for saga, _ in CASES.values()))
    cases = {f"k-{n}": rng.choice(list(CASES)) for n in range(600)}
    todo, lives = list(cases.items()), [1, 1]
    async with asyncio.timeout(540), engine, open_storage(server.url()) as storage:
        workers = Workers(server.url(), ledger, 2, via=[host.via for host in network[1:]])
        try:
            pids = [worker.pid for worker in workers.running]
            for pid in pids:
                await life_of(storage, pid, 1)
            for begin in range(0, len(todo), 30):
                victim = rng.randrange(2)
                starting = [asyncio.create_task(start(engine, *one[::-1])) for one in todo[begin : begin + 30]]
                await asyncio.wait(starting, timeout=rng.random() * LEASE)
                network[1 + victim].pull()
                await life_of(storage, pids[victim], 0)
                lives[victim] += 1
                network[1 + victim].plug()
                await life_of(storage, pids[victim], lives[victim])
                await asyncio.gather(*starting)
            states = await asyncio.gather(*(ended(engine, case, saga_id) for saga_id, case in cases.items()))
        finally:
            workers.close()
        await check(engine, cases, dict(zip(cases, states, strict=True)), ledger)
