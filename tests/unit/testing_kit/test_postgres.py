from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from event_workflow_engine.errors import DefinitionError, StorageUnavailableError
from event_workflow_engine.testing.postgres import PostgresServer

HOLDER = """
import sys
from event_workflow_engine.testing.postgres import PostgresServer
with PostgresServer(settings={"fsync": "off"}) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


async def value(server: PostgresServer, sql: str) -> object:
    connection = await asyncpg.connect(server.url())
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest.mark.timeout(60)
async def test_data_stay_over_stops_and_kills_and_go_with_the_server() -> None:
    with PostgresServer(settings={"fsync": "off"}) as server:
        await value(server, "CREATE TABLE t AS SELECT 7 AS n")
        port, folder = server.port, server._home
        for kill in (False, True):
            before = server.pid
            await asyncio.to_thread(server.restart, kill=kill)
            assert server.pid != before
            assert server.port == port
            assert await value(server, "SELECT n FROM t") == 7
        server.stop()
        with pytest.raises(StorageUnavailableError, match="does not run"):
            _ = server.pid
        server.start()
    assert not folder.exists()


@pytest.mark.timeout(60)
def test_a_server_ends_with_the_process_that_started_it() -> None:
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        postmaster = os.pidfd_open(int(holder.stdout.readline()))
        holder.kill()
        ended, _, _ = select.select([postmaster], [], [], 20)
        os.close(postmaster)
    assert ended


@pytest.mark.timeout(60)
def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(StorageUnavailableError, match="no_such_setting"):
        PostgresServer(settings={"no_such_setting": "1"}).__enter__()


def test_a_folder_without_programs_is_named() -> None:
    with pytest.raises(DefinitionError, match="/nowhere"):
        PostgresServer(binaries=Path("/nowhere")).__enter__()
