"""The rows of one batch: what its units see and change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError, OwnershipLostError
from event_workflow_engine.storage.row_images import SHAPES, Image, Key, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.storage.judging.caches import Cache
    from event_workflow_engine.storage.port import Row, Unit, WorkerRef

__all__ = ["ABSENT", "Changes", "RowChanges", "RowView", "undeclared"]

Changes = dict[tuple[str, Key], Image | None]
"""What one unit did so far: images by table and key."""

ABSENT: Final[Any] = object()
"""In place of an image that nobody asked for."""

_INCARNATION: Final = SHAPES["workers"].place("incarnation")
_ALIVE: Final = SHAPES["workers"].place("alive")


class RowChanges(ABC):
    """Images of rows, from the writer's cache or the store, as the units accepted so far left them."""

    def __init__(self, rows: dict[str, Cache[Key, Image | None]]) -> None:
        self._rows = rows
        self._before: dict[str, dict[Key, Any]] = {}  # by table: what changed rows were before the batch

    def fetch(self, units: Sequence[Unit]) -> None:
        """Have the rows of `units` in the cache, with a query for each table at most.

        Raises:
            DefinitionError: A table is not declared, or a key does not fit its table.
        """
        wanted: dict[str, dict[Key, None]] = {}
        workers: dict[str, None] = {}
        caches = self._rows
        for unit in units:
            for row in unit.rows:
                cache = caches.get(row.table)
                if cache is None:
                    raise undeclared(row)
                if row.key not in cache.young and not SHAPES[row.table].overwrites(row):
                    wanted.setdefault(row.table, {})[row.key] = None
            if unit.worker is not None:
                workers[unit.worker.id] = None
        for worker in workers:
            if (worker,) not in caches["workers"].young:
                wanted.setdefault("workers", {})[(worker,)] = None
        for table, keys in wanted.items():
            if unknown := self._rows[table].missing(keys):
                self._fetch(table, unknown)

    def image(self, table: str, key: Key) -> Image | None:
        """The row as the batch left it so far."""
        rows = self._rows[table]
        if rows.missing((key,)):
            self._fetch(table, (key,))
        return rows.young[key]

    def check_alive(self, worker: WorkerRef) -> None:
        """Check that this life of `worker`, whose row was fetched, was not declared dead.

        Raises:
            OwnershipLostError: It was, or nobody knows it.
        """
        image = self._rows["workers"].young[(worker.id,)]
        if image is None or image[_ALIVE] != 1 or image[_INCARNATION] != worker.incarnation:
            raise OwnershipLostError(
                f"worker {worker.id!r} (incarnation {worker.incarnation}) is not alive in the store: it must not write"
            )

    def apply(self, rows: Sequence[Row], changes: Changes) -> None:
        """Apply compare-and-sets over what their unit did so far; nobody else sees it before `keep`.

        Raises:
            RowConflictError: A row is not as expected.
            DefinitionError: A row is malformed.
        """
        for row in rows:
            table, key = row.table, row.key
            shape = SHAPES.get(table)
            if shape is None:
                raise undeclared(row)
            image = changes.get((table, key), ABSENT) if changes else ABSENT
            cache = self._rows[table]
            if image is ABSENT:
                image = cache.young.get(key, ABSENT)
                if image is ABSENT:
                    image = None if shape.overwrites(row) else self.image(table, key)
            # A saga makes the same check with each of its units, of an image that most often is the same, too.
            passed = cache.passed.get(key)
            if passed is not None and passed[0] is row and passed[1] is image:
                continue
            new = shape.apply(image, row)
            if new is not image:
                changes[table, key] = new
            elif row.op == "check":
                cache.passed[key] = row, image

    def keep(self, changes: Changes) -> None:
        """The unit was accepted: the next ones see what it did."""
        for (table, key), image in changes.items():
            images = self._rows[table].young
            before = self._before.setdefault(table, {})
            if key not in before:
                before[key] = images.get(key, ABSENT)
            images[key] = image

    @abstractmethod
    def _fetch(self, table: str, raw_keys: Iterable[Key]) -> None:
        """Have the rows of those keys in the cache, ``None`` for those that there are not."""


def undeclared(row: Row) -> DefinitionError:
    """Why an operation on a table that is none of ours is refused."""
    return DefinitionError(f"no table {row.table!r} is declared")


class RowView:
    """The rows as a fold sees them: as the batch left them, changed by what its unit did so far."""

    __slots__ = ("_changes", "_rows")

    def __init__(self, rows: RowChanges, changes: Changes) -> None:
        self._rows = rows
        self._changes = changes

    def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The row by its columns, or ``None``."""
        shape = shape_of(table)
        key = shape.key(key)
        changes = self._changes
        image = changes[table, key] if (table, key) in changes else self._rows.image(table, key)
        return None if image is None else shape.as_dict(image)
