"""No statement of ours is compiled: by estimates some are costly, and compiling them takes longer than they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.conformance.kit import events, unit

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import SqlSession

pytestmark = pytest.mark.timeout(60)

SHOW = "SELECT current_setting('jit') AS jit"


@pytest.mark.parametrize(
    ("options", "expected"),
    [("", "off"), ("&jit=on", "on"), ("&listen=off", "on")],
    ids=["by itself", "asked for", "behind a pooler, whose sessions are others' too"],
)
async def test_sessions_are_told_so(postgres_url: str, options: str, expected: str) -> None:
    at_writing: list[Any] = []

    async def work(session: SqlSession) -> None:
        at_writing.extend(await session.fetch(SHOW, {}))

    by_itself = "&options=-c%20jit%3Don"  # whatever the server has
    async with open_storage(postgres_url + by_itself + options, auto_upgrade=True) as storage:
        await storage.exclusive(unit(events("a")), work)
        assert await storage.fetch(SHOW, {}) == at_writing == [{"jit": expected}]


async def test_commits_are_not_in_any_session(postgres_url: str) -> None:
    """Where scans are turned off, servers up to 17 price one that is needed all the same above everything."""
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        rows = await storage.fetch(
            "SELECT CAST(CAST(oid AS regprocedure) AS text) AS signature, proconfig FROM pg_proc "
            "WHERE pronamespace = CAST(:schema AS regnamespace)",
            {"schema": postgres_url.rpartition("=")[2]},
        )
    # By signature: what workers of the release before call has the name of what does the work.
    settings = {row["signature"]: row["proconfig"] or [] for row in rows}
    turned_off = {signature for signature, given in settings.items() if "enable_seqscan=off" in given}
    assert any("commit_batch(" in signature for signature in turned_off)
    assert turned_off == {signature for signature, given in settings.items() if "jit=off" in given}
