"""The rows of one batch: those that it was judged by, each with the version that it had, and those that it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.storage.judging.caches import StoreCache, by_table
from event_workflow_engine.storage.judging.rows import ABSENT, Changes, RowChanges, undeclared
from event_workflow_engine.storage.postgres.wanted import NotFetchedError, Wanted
from event_workflow_engine.storage.row_images import SHAPES, Image, Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.storage.judging.caches import Cache
    from event_workflow_engine.storage.port import Row, Unit, WorkerRef

__all__ = ["SharedCache", "VersionedRows"]


class SharedCache(StoreCache):
    """What is remembered of a store that others write to. The server checks it with every batch, so it may be wrong.

    Attributes:
        row_versions: For each remembered image the row's version, its ``xmin``; ``None`` where there is no row.
    """

    __slots__ = ("row_versions",)

    def __init__(self) -> None:
        super().__init__()
        self.row_versions: dict[str, Cache[Key, int | None]] = by_table()

    def learn(self, table: str, image: Image, version: int) -> None:
        """Remember a row as the store has it."""
        key = image[: SHAPES[table].width]
        self.rows[table].young[key] = image
        self.row_versions[table].young[key] = version

    def learn_absent(self, table: str, keys: Iterable[Key]) -> None:
        """Remember that there are no such rows."""
        for key in keys:
            self.rows[table].young[key] = None
            self.row_versions[table].young[key] = None

    def forget(self, table: str, keys: Iterable[Key]) -> None:
        """Remember rows no longer."""
        for cache in (self.rows[table], self.row_versions[table]):
            for key in cache.missing(keys):  # brings those that are remembered into the young ones
                cache.young.pop(key, None)
            for key in keys:
                cache.young.pop(key, None)

    def _forget_old(self) -> None:
        super()._forget_old()
        for versions in self.row_versions.values():
            versions.age()

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        for versions in self.row_versions.values():
            versions.clear()


class VersionedRows(RowChanges):
    """Rows from the cache; which of them the batch was judged by is kept, to be checked by the server."""

    def __init__(self, cache: SharedCache, *, guesses: bool) -> None:
        super().__init__(cache.rows)
        self._shared = cache
        self._guesses = guesses
        self._looked: dict[str, dict[Key, None]] = {}

    def fetch(self, units: Sequence[Unit]) -> None:
        """See that the rows of `units` are in the cache.

        Raises:
            DefinitionError: A table is not declared, or a key does not fit its table.
            NotFetchedError: Some are not.
        """
        wanted: Wanted | None = None
        workers = self._rows["workers"]
        for unit in units:
            for row in unit.rows:
                cache = self._rows.get(row.table)
                if cache is None:
                    raise undeclared(row)
                if row.key in cache.young or not cache.missing((row.key,)) or SHAPES[row.table].overwrites(row):
                    continue
                key = SHAPES[row.table].key(row.key)
                if row.op == "insert" and self._guesses:
                    self._shared.learn_absent(row.table, (key,))
                else:
                    wanted = wanted or Wanted()
                    wanted.rows.setdefault(row.table, set()).add(key)
            if unit.worker is not None and workers.missing(((unit.worker.id,),)):
                wanted = wanted or Wanted()
                wanted.rows.setdefault("workers", set()).add(SHAPES["workers"].key((unit.worker.id,)))
        if wanted is not None:
            raise NotFetchedError(wanted)

    def image(self, table: str, key: Key) -> Image | None:
        """The row as the batch left it so far."""
        self._looked.setdefault(table, {})[key] = None
        return super().image(table, key)

    def check_alive(self, worker: WorkerRef) -> None:
        """Check that this life of `worker` was not declared dead."""
        self._looked.setdefault("workers", {})[(worker.id,)] = None
        super().check_alive(worker)

    def apply(self, rows: Sequence[Row], changes: Changes) -> None:
        """Apply compare-and-sets over what their unit did so far."""
        looked = self._looked
        for row in rows:
            if row.op != "upsert" or not SHAPES[row.table].overwrites(row):
                looked.setdefault(row.table, {})[row.key] = None
        super().apply(rows, changes)

    def _fetch(self, table: str, raw_keys: Iterable[Key]) -> None:
        wanted = Wanted()
        wanted.rows[table] = {SHAPES[table].key(key) for key in raw_keys}
        raise NotFetchedError(wanted)

    # -- what the server is told ---------------------------------------------------------------------------------

    def seen(self) -> dict[str, list[tuple[Any, ...]]]:
        """The rows that the batch was judged by, by table: key and version as it was before the batch.

        Raises:
            NotFetchedError: The version of some is not known. It is to be undone and they are to be fetched.
        """
        wanted: Wanted | None = None
        seen: dict[str, list[tuple[Any, ...]]] = {}
        for table, keys in self._looked.items():
            versions = self._shared.row_versions[table]
            if unknown := versions.missing(keys):
                wanted = wanted or Wanted()
                wanted.rows[table] = {SHAPES[table].key(key) for key in unknown}
                continue
            young = versions.young
            seen[table] = [(*key, young[key]) for key in keys]
        if wanted is not None:
            raise NotFetchedError(wanted)
        return seen

    def changed(self) -> tuple[dict[str, list[Image]], dict[str, list[Key]]]:
        """Whole rows to put, and keys of rows to drop, by table."""
        put: dict[str, list[Image]] = {}
        dropped: dict[str, list[Key]] = {}
        for table, before in self._before.items():
            young, looked = self._rows[table].young, self._looked.get(table, {})
            for key, was in before.items():
                image = young[key]
                # What nobody looked at is not checked: it may be otherwise than it is remembered.
                if image is None:
                    if was is not None or key not in looked:
                        dropped.setdefault(table, []).append(key)
                elif image != was or key not in looked:
                    put.setdefault(table, []).append(image)
        return put, dropped

    def undo(self) -> None:
        """The batch is not stored: the cache is to be as it was."""
        for table, before in self._before.items():
            young = self._rows[table].young
            for key, was in before.items():
                if was is ABSENT:
                    young.pop(key, None)
                else:
                    young[key] = was

    def stored(self, version: int) -> None:
        """The batch is stored: the rows that it put have this version."""
        for table, before in self._before.items():
            young, versions = self._rows[table].young, self._shared.row_versions[table].young
            looked = self._looked.get(table, {})
            for key, was in before.items():
                image = young[key]
                if image is None:
                    versions[key] = None
                elif image != was or key not in looked:
                    versions[key] = version
