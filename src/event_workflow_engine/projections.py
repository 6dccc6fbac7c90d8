"""`ProjectionManager`: read models that are folds of the log: behind it, inside each commit, or on demand."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from event_workflow_engine._projections.definitions import (
    DocumentProjection,
    Mode,
    Projection,
    SqlProjection,
    Transaction,
)
from event_workflow_engine._projections.feeding import checkpoint_name
from event_workflow_engine._projections.folding import Documents, Folding, matching
from event_workflow_engine._projections.inline import InlineDocuments
from event_workflow_engine._projections.running import ProjectionRunner
from event_workflow_engine.clock import Clock, Duration, SystemClock, seconds, to_micros
from event_workflow_engine.codecs import JSON
from event_workflow_engine.errors import DefinitionError, EngineStateError, NotRegisteredError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.event_store import EventStore
    from event_workflow_engine.storage.port import Rows

__all__ = [
    "DocumentProjection",
    "Mode",
    "Projection",
    "ProjectionManager",
    "ProjectionStatus",
    "SqlProjection",
    "Transaction",
]

D = TypeVar("D")

_log: Final = logging.getLogger("event_workflow_engine.projections")
_PAGE: Final = 1000


class ProjectionStatus(msgspec.Struct, frozen=True):
    """How far a projection is.

    Attributes:
        events: How many events it has folded.
        last_event_id: The last of them.
        position: Up to where it has looked at the log.
        saga_id: The saga that caused its last update; ``None`` where it was none. Of a live projection only `position`
            is known.
        lag_events: Positions of the log behind its own.
        lag: The age of the first event that it is still to fold; zero when level.
        parked: Events that are parked behind one that could not be folded.
    """

    events: int
    last_event_id: str | None
    position: int
    saga_id: str | None
    lag_events: int
    lag: timedelta
    parked: int


class ProjectionManager:
    """Registers projections, keeps them up to date, and reads them.

    Args:
        store: The store whose log they fold.
        clock: For lags; the machine's by default.
    """

    def __init__(self, store: EventStore, *, clock: Clock | None = None) -> None:
        self._store = store
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._projections: dict[str, Projection] = {}
        self._runners: dict[str, ProjectionRunner] = {}
        self._worker = ""
        self._started = False

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, *, worker_id: str = "") -> None:
        """Begin to feed what is registered.

        Args:
            worker_id: This worker; without one, async projections are fed elsewhere.
        """
        self._worker = worker_id
        self._started = True
        for projection in self._projections.values():
            self._run(projection)
        self._store.before_strict = self._inline_in_force

    async def _inline_in_force(self) -> None:
        """Wait until every inline projection is folded inside the commits."""
        for runner in tuple(self._runners.values()):
            await runner.ready()

    async def stop(self) -> None:
        """Feed no more, and let other workers go on."""
        self._started = False
        self._store.before_strict = None
        runners, self._runners = list(self._runners.values()), {}
        await asyncio.gather(*(runner.stop() for runner in runners))

    def register(self, *projections: Projection) -> None:
        """Keep projections up to date from now on. Sync; before or after the engine is entered.

        Raises:
            DefinitionError: It is no projection, or another one has the name.
        """
        for projection in projections:
            if not isinstance(projection, Projection):
                raise DefinitionError(f"register({projection!r}): a DocumentProjection or SqlProjection is needed")
            known = self._projections.get(projection.name)
            if known is projection:
                continue
            if known is not None:
                raise DefinitionError(f"a projection named {projection.name!r} is registered already")
            if self._started and not _loop_runs():
                raise DefinitionError(
                    f"projection {projection.name!r}: once the engine is entered, register it where its loop runs: "
                    "in async code, such as an async fixture"
                )
            self._projections[projection.name] = projection
            if self._started:
                self._run(projection)

    @property
    def registered(self) -> tuple[Projection, ...]:
        """All that are registered here."""
        return tuple(self._projections.values())

    def _run(self, projection: Projection) -> None:
        if projection.mode == "live":
            return
        inline: InlineDocuments | None = None
        if isinstance(projection, DocumentProjection) and projection.mode == "inline":
            inline = InlineDocuments.of(self._store.storage)
            inline.add(projection, self._store.serializer)
            if not self._worker:
                inline.trust(projection.name)  # whether it lacks anything is seen to by a worker
        runner = self._runners[projection.name] = ProjectionRunner(self._store, projection, self._worker, inline)
        runner.start()

    def _runner(self, projection: Projection) -> ProjectionRunner:
        self._known(projection)
        runner = self._runners.get(projection.name)
        if runner is None:
            raise EngineStateError(f"projection {projection.name!r} is not running: enter the engine first")
        return runner

    def _known(self, projection: Projection) -> None:
        if not isinstance(projection, Projection):
            raise DefinitionError(f"{projection!r} is no projection: give the projection itself, not its name")
        if self._projections.get(projection.name) is not projection:
            raise NotRegisteredError(
                f"projection {projection.name!r} is not registered here: call projections.register(…) first"
            )

    # -- reading -----------------------------------------------------------------------------------------------------

    async def get(self, projection: DocumentProjection[D], key: str) -> D | None:
        """A document by its key; ``None``: there is none.

        Raises:
            NotRegisteredError: The projection is not registered here.
        """
        self._known(projection)
        if projection.mode == "live":
            return (await self._folded(projection, key)).get(key)
        generation = await self._generation(projection)
        while True:
            row = await self._store.storage.get("documents", (projection.name, generation, key))
            if row is not None:
                return self._read(projection, row)
            before, generation = generation, await self._generation(projection)
            if generation == before:  # else a rebuild has taken its place, and removed it
                return None

    async def find(
        self,
        projection: DocumentProjection[D],
        where: Mapping[str, Any] | None = None,
        *,
        order_by: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[D]:
        """Documents whose fields equal those of `where`.

        Args:
            projection: Which.
            where: Top-level fields and their values; all documents by default.
            order_by: A field; with a ``-`` before it downwards; by key by default.
            limit: At most so many.
            offset: After so many.
        """
        if limit < 0 or offset < 0:
            raise DefinitionError(f"find(limit={limit}, offset={offset}): neither may be below 0")
        descending = order_by is not None and order_by.startswith("-")
        field = order_by.removeprefix("-") if order_by is not None else None
        if projection.mode == "live":
            return self._found(await self._folded(projection, None), where, field, descending)[offset : offset + limit]
        generation = await self._generation(projection)
        while True:
            rows = await self._store.storage.query(
                "documents_find",
                projection=projection.name,
                generation=generation,
                where=JSON.encode(dict(where or {}), "find(where=…)").decode(),
                order_by=None if field is None else JSON.encode(field, "find(order_by=…)").decode(),
                descending=int(descending),
                limit=limit,
                offset=offset,
            )
            before, generation = generation, generation if rows else await self._generation(projection)
            if generation == before:
                return [self._read(projection, row) for row in rows]

    async def fetch(self, projection: SqlProjection, sql: str, /, **params: Any) -> Rows:
        """Read a SQL projection's tables: ``{table}`` and ``:name`` as in its handlers. Nothing can be written.

        Returns:
            The rows, as dicts.
        """
        if projection.mode == "inline":
            await self.wait_for(projection, await self._store.storage.last_position())
        generation = await self._generation(projection)
        while True:
            try:
                return await self._store.storage.fetch(projection.bind(sql, generation), params)
            except DefinitionError:
                # Its tables may have been dropped, when a rebuild took their place in between.
                before, generation = generation, await self._generation(projection)
                if generation == before:
                    raise

    async def _generation(self, projection: Projection) -> int:
        self._known(projection)
        runner = self._runners.get(projection.name)
        if runner is not None:
            await runner.ready()
        row = await self._store.storage.get("projections", (projection.name,))
        return 1 if row is None else int(row["generation"])

    def _read(self, projection: DocumentProjection[D], row: dict[str, Any]) -> D:
        document: D = JSON.decode(
            row["body"].encode(), projection.document, f"document {row['key']!r} of projection {projection.name!r}"
        )
        return document

    async def _folded(self, projection: DocumentProjection[D], key: str | None) -> dict[str, D]:
        """A live projection, folded now; of one key only, where it is given."""
        self._known(projection)
        names = sorted(projection.routes)
        # What cannot be folded keeps its key as it was, as in the other modes.
        documents = Documents(Folding(projection, self._store.serializer), lambda _: None, lambda _: False)
        after = 0
        while records := await self._store.storage.read_log(after=after, limit=_PAGE, types=names):
            for record in matching(records, names):
                documents.fold(record)
            after = records[-1].position
        for change, error in documents.failed:
            if error is not None and key in (None, change.key):
                _log.warning("live projection %s stops at an event for key %s: %s", projection.name, change.key, error)
        values = documents.values
        return {one: values[one] for one in values if values[one] is not None and key in (None, one)}

    def _found(
        self, documents: Mapping[str, D], where: Mapping[str, Any] | None, field: str | None, descending: bool
    ) -> list[D]:
        """As the stores do it over what they keep, which is JSON."""
        wanted = _fields(dict(where or {}), "find(where=…)")
        found = []
        for key in sorted(documents):
            fields = _fields(documents[key], f"document {key!r}")
            if all(name in fields and _same(fields[name], value) for name, value in wanted.items()):
                found.append((_rank(fields.get(field)) if field is not None else (), documents[key]))
        if field is not None:
            found.sort(key=lambda item: item[0], reverse=descending)
        return [document for _, document in found]

    # -- knowing -----------------------------------------------------------------------------------------------------

    async def wait_for(self, projection: Projection, position: int, *, timeout: Duration = 5) -> None:  # noqa: ASYNC109
        """Wait until a projection has looked at a position of the log. Other types and parked keys count as passed.

        Args:
            projection: Which.
            position: E.g. the last of ``Appended.positions``.
            timeout: Seconds or timedelta.

        Raises:
            TimeoutError: It is not there in time.
        """
        if projection.mode == "live":
            return
        runner = self._runner(projection)
        try:
            async with asyncio.timeout(seconds(timeout)):
                await runner.reached(position)
        except TimeoutError:
            raise TimeoutError(
                f"projection {projection.name!r} has not reached position {position} within {seconds(timeout):g} s"
            ) from None

    async def status(self, projection: Projection) -> ProjectionStatus:
        """How far a projection is, and how far behind."""
        self._known(projection)
        if projection.mode == "live":
            end = await self._store.storage.last_position()
            return ProjectionStatus(0, None, end, None, 0, timedelta(), 0)
        storage = self._store.storage
        generation = await self._generation(projection)
        row = await storage.get("checkpoints", (checkpoint_name(projection.name, generation),)) or {}
        runner = self._runners.get(projection.name)
        end = await storage.last_position()
        position = row.get("position") or 0
        if runner is not None:
            position = max(position, runner.position, end if runner.inline else 0)
        lag = timedelta()
        if position < end:
            behind = await storage.read_log(after=position, limit=1, types=sorted(projection.routes))
            if behind:
                age = to_micros(self._clock.now()) - behind[0].recorded_at
                lag = timedelta(microseconds=max(0, age))
            else:
                position = end
        (parked,) = await storage.query("parked_count", projection=projection.name, generation=generation)
        return ProjectionStatus(
            row.get("events") or 0,
            row.get("last_event_id"),
            position,
            row.get("saga_id"),
            max(0, end - position),
            lag,
            parked["n"],
        )

    # -- mending -----------------------------------------------------------------------------------------------------

    async def rebuild(self, projection: Projection) -> None:
        """Fold the whole log anew beside the live read model, then take its place; returns after the swap.

        Raises:
            EngineStateError: Another worker feeds it: rebuild it there.
        """
        if projection.mode != "live":
            await self._runner(projection).rebuild()

    async def retry_parked(self, projection: Projection, key: str | None = None) -> int:
        """Fold parked events again, when the fold was mended; of one key, or of all.

        Returns:
            How many events were folded.

        Raises:
            EngineStateError: Another worker feeds it: retry it there.
            Exception: What the fold raised again; its key stays parked.
        """
        if projection.mode == "live":
            return 0
        return await self._runner(projection).retry(key)


def _fields(value: Any, what: str) -> dict[str, Any]:
    """The top-level fields as JSON has them; only an object has any."""
    decoded = msgspec.json.decode(JSON.encode(value, what))
    return decoded if isinstance(decoded, dict) else {}


def _same(a: Any, b: Any) -> bool:
    # A flag is no number; numbers are equal across int and float.
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _rank(value: Any) -> tuple[int, Any]:
    """The order of the stores over JSON values: nothing, then numbers (flags as 0 and 1), then text."""
    if value is None:
        return (0, 0)
    if isinstance(value, (bool, int, float)):
        return (1, value)
    return (2, value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
