"""A queue with many waiting: who is next is found without reading them all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.postgres.queries import in_schema, statements_in

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(60)

WAITING, EACH, PARTITIONS = 6000, 20, 3
ASKED = {"queue": "q", "sagas": '[["trip", 1]]', "each": EACH, "most": 1000}
WAIT = f"""
INSERT INTO ewe.sagas (id, saga, saga_version) SELECT 's-' || n, 'trip', 1 FROM generate_series(1, {WAITING}) AS n;
INSERT INTO ewe.queued (saga, queue, partition, priority, enqueued_at, state)
SELECT 's-' || n, 'q', 'p-' || n % {PARTITIONS}, 0, n, 1 FROM generate_series(1, {WAITING}) AS n;
"""


def rows_read(node: dict[str, Any]) -> Iterator[float]:
    """By each scan of the plan, over all its loops."""
    if "Scan" in node["Node Type"]:
        yield node["Actual Rows"] * node["Actual Loops"]
    for inner in node.get("Plans", ()):
        yield from rows_read(inner)


@pytest.mark.parametrize("statistics", ["without statistics", "with statistics"])
async def test_the_look_for_who_is_next_reads_hardly_more_than_it_gives(postgres_url: str, statistics: str) -> None:
    server, _, schema = postgres_url.partition("?schema=")
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        connection = await asyncpg.connect(server)
        try:
            await connection.execute(in_schema(WAIT, schema))
            if statistics == "with statistics":
                await connection.execute(in_schema("ANALYZE ewe.sagas, ewe.queued", schema))
            sql, names = statements_in(schema)["queue_heads"].numbered[0]
            shown = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *(ASKED[name] for name in names))
        finally:
            await connection.close()
        heads = await storage.query("queue_heads", **ASKED)
    assert [head["saga"] for head in heads[:2]] == ["s-3", "s-6"]
    assert len(heads) == PARTITIONS * EACH
    (found,) = json.loads(shown)
    assert max(rows_read(found["Plan"])) <= 2 * len(heads)
