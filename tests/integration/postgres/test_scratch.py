"""A schema of one's own beside a store: made, and gone again, whatever stands in the way."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg
import pytest

from event_workflow_engine.errors import StorageUnavailableError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.opening import scratch_beside
from event_workflow_engine.storage.postgres.scratch import PostgresScratch

if TYPE_CHECKING:
    from tests.integration.postgres.kit import Server


async def schemas(server: Server, database: str) -> set[str]:
    rows = await server.run("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ewe%'", database)
    return {row["nspname"] for row in rows}


async def test_it_is_made_beside_the_store_that_the_url_names_and_goes_alone(server: Server) -> None:
    database = await server.database()
    async with open_storage(server.at(database=database, schema="ewe_mine"), auto_upgrade=True):
        scratch = scratch_beside(server.at(database=database, schema="ewe_mine", pool="3"))
        assert isinstance(scratch, PostgresScratch)
        await scratch.make()
        async with open_storage(scratch.url, auto_upgrade=True):
            assert await schemas(server, database) == {"ewe_mine", scratch.schema}
        await scratch.drop()
        assert await schemas(server, database) == {"ewe_mine"}


async def test_a_session_that_hangs_in_it_does_not_keep_it_and_one_elsewhere_lives_on(server: Server) -> None:
    database = await server.database()
    scratch = PostgresScratch(server.at(database=database))
    await scratch.make()
    async with scratch.committing():
        hangs, elsewhere = [await asyncpg.connect(server.at(database=database)) for _ in range(2)]
        await hangs.execute(f"BEGIN; LOCK TABLE {scratch.schema}.bare_commits")
        await elsewhere.execute("BEGIN; CREATE TABLE public.mine (n int)")
        await scratch.drop()
        assert await schemas(server, database) == set()
        assert await elsewhere.fetchval("SELECT count(*) FROM public.mine") == 0
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await hangs.execute("ROLLBACK")
        assert hangs.is_closed()
        await elsewhere.close()


async def test_where_it_was_never_made_there_is_nothing_to_drop(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        scratch = PostgresScratch(server.at(port=taken.getsockname()[1]))
        with pytest.raises(StorageUnavailableError, match="out of reach"):
            await scratch.make()
        await scratch.drop()


async def test_one_that_cannot_be_dropped_is_told_with_what_removes_it(server: Server) -> None:
    database, role = await server.database(), await server.role()
    await server.run(f"GRANT CREATE ON DATABASE {database} TO {role}")
    scratch = PostgresScratch(server.at(user=role, database=database))
    await scratch.make()
    await server.run(f"ALTER SCHEMA {scratch.schema} OWNER TO CURRENT_USER", database)
    with pytest.raises(StorageUnavailableError, match=f"DROP SCHEMA IF EXISTS {scratch.schema} CASCADE"):
        await scratch.drop()
