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
        pid, file = server.pid, server._data / "postmaster.pid"
        file.unlink()
        file.mkdir()
        assert server.pid == pid, "known though its disk no longer tells"
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


@pytest.mark.parametrize("address", ["198.51.100.1", "nowhere.invalid", "::1"])
def test_an_address_of_another_machine_is_refused(address: str) -> None:
    with pytest.raises(DefinitionError, match=f"{address}.* is no IPv4 address of this machine"):
        PostgresServer(address=address).__enter__()


@pytest.mark.timeout(60)
async def test_a_server_and_its_standby_listen_where_they_are_told_and_ask_for_the_password() -> None:
    with PostgresServer(settings={"fsync": "off"}, address="127.0.0.2") as primary, primary.standby() as standby:
        for server in (primary, standby):
            assert f"@127.0.0.2:{server.port}/" in server.url()
            connection = await asyncpg.connect(server.url())
            try:
                assert await connection.fetchval("SELECT host(inet_server_addr())") == "127.0.0.2"
            finally:
                await connection.close()
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(server.url(password="wrong"))
            with pytest.raises(ConnectionRefusedError):
                await asyncpg.connect(server.url().replace("127.0.0.2", "127.0.0.1"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_standby_takes_the_place_of_a_killed_primary(synchronous: bool) -> None:
    with PostgresServer(settings={"fsync": "off"}) as primary, primary.standby(synchronous=synchronous) as standby:
        both = primary.url(others=[standby])
        primary.query("CREATE TABLE t AS SELECT 7 AS n")
        if not synchronous:
            primary.stop()  # in order: its last commits are sent first
        assert standby.query("SELECT pg_is_in_recovery()") == "t"
        primary.kill()
        standby.promote()
        connection = await asyncpg.connect(both)
        try:
            assert await connection.fetchval("INSERT INTO t VALUES (8) RETURNING inet_server_port()") == standby.port
        finally:
            await connection.close()
        with pytest.raises(StorageUnavailableError, match="not in standby mode"):
            standby.promote()
        folder = standby._home
    assert not folder.exists()


@pytest.mark.timeout(60)
async def test_a_primary_waits_for_its_synchronous_standby_until_that_is_left() -> None:
    """A commit is acknowledged when the standby has it, so not while it is away; afterwards nobody is waited for."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with PostgresServer(settings={"fsync": "off"}) as primary:
        with primary.standby(synchronous=True) as standby:
            standby.stop()
            commit = asyncio.create_task(asyncio.to_thread(primary.query, "CREATE TABLE t (n int)"))
            while await asyncio.to_thread(primary.query, waiting) != "1":
                assert not commit.done()
            await asyncio.to_thread(standby.start)
            await commit
        primary.query("CREATE TABLE u (n int)")


@pytest.mark.timeout(60)
def test_a_standby_that_was_away_lacks_what_was_committed_then() -> None:
    with PostgresServer(settings={"fsync": "off"}) as primary, primary.standby() as standby:
        standby.stop()
        primary.query("CREATE TABLE t (n int)")
        primary.kill()
        standby.start()
        standby.promote()
        with pytest.raises(StorageUnavailableError, match='relation "t" does not exist'):
            standby.query("TABLE t")


@pytest.mark.timeout(60)
def test_a_standby_needs_a_primary_that_runs() -> None:
    with PostgresServer(settings={"fsync": "off"}) as primary:
        primary.stop()
        with pytest.raises(StorageUnavailableError, match="pg_basebackup"):
            primary.standby().__enter__()
