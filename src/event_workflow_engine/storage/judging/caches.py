"""What a writer remembers of the store between batches, so that most units are judged without a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from event_workflow_engine.storage.row_images import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from event_workflow_engine.storage.row_images import Image, Key

__all__ = ["NO_EVENTS", "Cache", "Head", "StoreCache", "by_table"]

K = TypeVar("K")
V = TypeVar("V")

HEADS_LIMIT: Final = 16_384
SAGAS_LIMIT: Final = 8_192
"""Every step of a saga looks at its row."""

ROWS_LIMIT: Final = 1_024
"""For the other tables, whose rows are looked at seldom, or may be large."""

_AGE_EVERY: Final = 8  # commits


class Cache(Generic[K, V]):
    """A dictionary of bounded size that forgets what was not used lately, in two generations.

    What is used is in `young`; when that is full it becomes the old generation, and the one before it is dropped.
    A user reads `young` directly, after `missing` has fetched there what it will need.

    Attributes:
        young: What was used lately.
        passed: By key a check that the value, which stands beside it, has passed: made again of the same it would pass.
    """

    __slots__ = ("_limit", "_old", "passed", "young")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self.passed: dict[K, tuple[Any, V]] = {}

    def missing(self, keys: Iterable[K]) -> list[K]:
        """Those of `keys` that are not remembered; the others are in `young` now."""
        young, old = self.young, self._old
        unknown = []
        for key in keys:
            if key not in young:
                if key in old:
                    young[key] = old.pop(key)
                else:
                    unknown.append(key)
        return unknown

    def age(self) -> None:
        """Between uses: forget what is too much."""
        if len(self.young) > self._limit:
            self._old = self.young
            self.young = {}
            self.passed = {}

    def clear(self) -> None:
        """Forget everything."""
        self.young = {}
        self._old = {}
        self.passed = {}


Head = tuple[int, int, int]
"""Where a stream ends: its number (0 for one that has no events), its version, and the position of its last record."""

NO_EVENTS: Final[Head] = (0, 0, 0)


def by_table() -> dict[str, Cache[Any, Any]]:
    """A cache for each declared table."""
    return {name: Cache(SAGAS_LIMIT if name == "sagas" else ROWS_LIMIT) for name in SHAPES}


class StoreCache:
    """Ends of streams, images of rows and the last position, as the last commit left them.

    Valid as long as no other connection has committed, and while no transaction of the writer has failed; the writer
    clears it otherwise.

    Attributes:
        heads: Where streams end, by name.
        rows: Images by key, by table; ``None`` for keys that have no row.
        position: Of the last event; ``None`` when it is not known.
        last_stream: The largest number of a stream; known when the position is.
    """

    __slots__ = ("_commits", "heads", "last_stream", "position", "rows")

    def __init__(self) -> None:
        self.heads: Cache[str, Head] = Cache(HEADS_LIMIT)
        self.rows: dict[str, Cache[Key, Image | None]] = by_table()
        self.position: int | None = None
        self.last_stream = 0
        self._commits = 0

    def changed(self, tables: Iterable[str], returned: str, rows: Iterable[dict[str, Any]]) -> None:
        """A claim changed rows: forget those of `tables`, learn the ones that it `returned`."""
        for table in tables:
            self.rows[table].clear()
        for row in rows:
            image = tuple(row.values())
            self.rows[returned].young[image[: SHAPES[returned].width]] = image

    def age(self) -> None:
        """Between batches: forget what is too much. Looks at every few only, for a batch adds few thousands at most."""
        self._commits += 1
        if not self._commits % _AGE_EVERY:
            self._forget_old()

    def _forget_old(self) -> None:
        self.heads.age()
        for rows in self.rows.values():
            rows.age()

    def clear(self) -> None:
        """Forget everything."""
        self.heads.clear()
        for rows in self.rows.values():
            rows.clear()
        self.position = None
