"""Text that PostgreSQL cannot hold fails its own unit alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.port import Row, Written
from event_workflow_engine.testing.conformance.kit import append, events, record, row_unit, unit

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from event_workflow_engine.storage.port import Unit

pytestmark = pytest.mark.timeout(60)


def document(key: str, body: str, projection: str = "p") -> Row:
    return Row("documents", "insert", (projection, 1, key), {"body": body})


def long(rng: random.Random) -> str:
    """Text that no compression brings into an index's page."""
    return "".join(chr(rng.randrange(0x4E00, 0x9F00)) for _ in range(4000))


ODD: dict[str, tuple[Callable[[random.Random], Unit], str]] = {
    "a text value": (lambda _: row_unit(document("k", "a\0b")), "NUL"),
    "a text value beside events": (lambda _: unit(events("odd"), rows=[document("k", "a\0b")]), "NUL"),
    "a key": (lambda _: row_unit(document("a\0b", "{}")), "NUL"),
    "a stream's name": (lambda _: unit(events("a\0b")), "NUL"),
    "a long stream's name": (lambda rng: unit(events(long(rng))), "too long"),
    "a long id": (lambda rng: unit(append("odd", record(long(rng)))), "too long"),
    "a long key": (lambda rng: row_unit(document(long(rng), "{}")), "too long"),
    "text for a schema": (
        lambda _: unit(append("odd", msgspec.structs.replace(record(), schema="5"))),
        "NewRecord.schema",
    ),
    "text for a time": (lambda _: msgspec.structs.replace(unit(events("odd")), at="5"), "Unit.at"),
    "a long id of rows": (lambda rng: row_unit(document("k", "{}"), unit_id=long(rng)), "too long"),
}


@pytest.mark.parametrize("name", ODD)
async def test_what_cannot_be_held_fails_alone(postgres_url: str, rng: random.Random, name: str) -> None:
    make, says = ODD[name]
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        before, odd, behind = [unit(events(f"a-{n}")) for n in range(9)], make(rng), row_unit(document("own", "{}"))
        futures = [storage.submit(one) for one in (*before, odd, behind)]
        *landed, refused, last = await asyncio.gather(*futures, return_exceptions=True)
        assert [result.unit_id for result in landed if isinstance(result, Written)] == [one.id for one in before]
        assert isinstance(last, Written)
        assert isinstance(refused, DefinitionError)
        assert says in str(refused)
        # Nothing of it is there, and the store goes on.
        assert {one.id for one in await storage.read_log()} == {one.id for one in before}
        assert await storage.get("documents", ("p", 1, "k")) is None
        assert (await storage.write(unit(events("a-0", expected=1)))).appended[0].version == 2


async def test_the_longest_names_that_are_promised_are_held(postgres_url: str, rng: random.Random) -> None:
    name = long(rng)[:660]
    async with open_storage(postgres_url, auto_upgrade=True) as storage:
        assert len(name.encode()) < 2000
        await storage.write(unit(append(name, record(name)), rows=[document(name, "{}")]))
        assert await storage.head(name) == 1
        assert await storage.outcome(name)
