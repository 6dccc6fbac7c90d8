"""What the backends share above their committer: entering and leaving, and the delegation to it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self, TypeVar

from event_workflow_engine.errors import DefinitionError, EngineStateError
from event_workflow_engine.loops import require_loop
from event_workflow_engine.storage.exclusive import run_with_unit, to_the_end
from event_workflow_engine.storage.group_commit import GroupCommitter, Listeners, Repeated
from event_workflow_engine.storage.holding import run_held
from event_workflow_engine.storage.port import RINGING_CLAIMS, Written
from event_workflow_engine.storage.user_sql import bounded_hold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from event_workflow_engine.errors import LogRewoundError
    from event_workflow_engine.storage.exclusive import ExclusiveTransaction
    from event_workflow_engine.storage.group_commit import Execute, Verdict
    from event_workflow_engine.storage.holding import HoldingTransaction
    from event_workflow_engine.storage.port import (
        CommitHook,
        HeldStore,
        InlineFolder,
        Row,
        Rows,
        SqlSession,
        Told,
        Unit,
    )

__all__ = ["GroupedStorage"]

T = TypeVar("T")


class GroupedStorage(ABC):
    """A storage whose units go through a `GroupCommitter`.

    It may be entered several times at once, by an engine and by its user: it opens with the first and closes with the
    last. After that it may be entered again, on another event loop too. What listens stays over that.
    """

    url: str
    stages: bool = False
    """See `Storage.stages`."""
    rewinds: list[tuple[int, int]]
    """See `Storage.rewinds`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rewinds = []
        self._listeners = Listeners()
        self._folder: InlineFolder | None = None
        self._open_committer: GroupCommitter | None = None
        self._entered = 0
        self._opening: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Open the store, or join those who have it open.

        Raises:
            StorageUnavailableError: The store is out of reach, read-only, locked or full.
            StorageCorruptError: It is not a store of this library, or a damaged one.
            SchemaVersionError: Its schema is newer, was altered, or must be migrated first.
            EngineStateError: It is open on another event loop.
        """
        if self._open_committer is not None:
            self._require_open()
        self._entered += 1
        try:
            if self._opening is None:
                self._opening = asyncio.ensure_future(self._open())
            # One task opens, whoever of those that enter is cancelled.
            await asyncio.shield(self._opening)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave the store; the last to leave waits until all accepted units have their verdicts, and closes it."""
        await self._leave()

    async def _leave(self) -> None:
        self._entered -= 1
        if self._entered or self._opening is None:
            return
        opening, self._opening = self._opening, None
        await asyncio.wait([opening])
        committer, self._open_committer = self._open_committer, None
        if committer is not None:
            await committer.close()
        if not opening.cancelled() and opening.exception() is None:
            await self._close()
            self._listeners.ring()  # who waits for a commit would wait for ever

    @abstractmethod
    async def _open(self) -> None:
        """Open what is below; to end with `_start`."""

    @abstractmethod
    async def _close(self) -> None:
        """Close what is below; nothing is queued or in flight any more."""

    def _start(self, execute: Execute, *, answers_later: bool) -> None:
        self._open_committer = GroupCommitter(execute, self._listeners, answers_later=answers_later)

    def _rewound(self, error: LogRewoundError) -> None:
        """Something that this process knew of the log is lost: what was decided until now must not land."""
        self.rewinds.append((error.position, error.end))
        if self._open_committer is not None:
            self._open_committer.refuse_waiting(error)

    @property
    def _committer(self) -> GroupCommitter:
        committer = self._open_committer
        if committer is None:
            raise self._not_open()
        require_loop(committer.loop, "the store", self.url)
        return committer

    def _require_open(self) -> None:
        """Raises an `EngineStateError` where it is not open, or open on another loop."""
        _ = self._committer

    def _not_open(self) -> EngineStateError:
        return EngineStateError(f"the store {self.url!r} is not open: use it inside of `async with`")

    def submit(self, unit: Unit) -> asyncio.Future[Written]:
        """Queue a unit without waiting for room. Never blocks, never raises."""
        try:
            return self._committer.submit(unit)
        except EngineStateError as error:
            future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

    def post(self, unit: Unit, told: Told) -> None:
        """Queue a unit without waiting for room; `told` is called with its verdict. Never blocks, never raises."""
        committer = self._open_committer
        if committer is not None:
            committer.post(unit, told)
        else:
            asyncio.get_running_loop().call_soon(told, self._not_open())

    async def write(self, unit: Unit) -> Written:
        """Queue a unit, waiting while the queue is full, and wait for its verdict."""
        return await self._committer.write(unit)

    async def exclusive(self, unit: Unit, work: Callable[[SqlSession], Awaitable[None]]) -> Written:
        """Run `work` in a write transaction of its own and commit `unit` with it: both or neither."""

        async def worked(session: SqlSession) -> Unit:
            await work(session)
            return unit

        return await self._committer.alone(lambda: self._run_alone(worked), unit_id=unit.id)

    async def transact(self, work: Callable[[SqlSession], Awaitable[Unit]]) -> Written:
        """Run `work` in a transaction and commit the unit that it returns with it: both or neither."""
        return await self._committer.alone(lambda: self._run_alone(work))

    async def stage(self, connection: Any, row: Row) -> None:  # noqa: ARG002 - for those that can
        """See `Storage.stage`: where a store's file or memory is its own, there is no other connection to share."""
        raise DefinitionError(
            f"{self.url}: this store cannot join a transaction of another connection; write to the user's tables in a "
            "transactional step, or use PostgreSQL"
        )

    async def _run_alone(self, work: Callable[[SqlSession], Awaitable[Unit]]) -> Written:
        unit, verdict = await run_with_unit(self._transaction(), work, bounded_hold())
        if isinstance(verdict, Written):
            self._listeners.announce([(unit, verdict)])
        return self._answer(verdict)

    @staticmethod
    def _answer(verdict: Verdict) -> Written:
        if isinstance(verdict, Written):
            return verdict
        if isinstance(verdict, Repeated):
            return verdict.written
        raise verdict

    @abstractmethod
    def _transaction(self) -> ExclusiveTransaction:
        """A transaction for exclusive work. It is this caller's turn."""

    async def hold(self, work: Callable[[HeldStore], Awaitable[T]]) -> T:
        """Run `work` while no other writer gets in; what it put is there when it has returned, or nothing of it."""
        result = await self._committer.alone(lambda: run_held(self._holding(), work))
        self._listeners.ring()
        return result

    @abstractmethod
    def _holding(self) -> HoldingTransaction:
        """A transaction that holds the store. It is this caller's turn."""

    async def perform(self, name: str, /, **params: Any) -> Rows:
        """Run a named claim, in its turn."""
        committer = self._committer
        rows = await committer.alone(lambda: to_the_end(asyncio.ensure_future(self._claim(name, params))))
        if rows or name in RINGING_CLAIMS:
            self._listeners.ring()
        return rows

    @abstractmethod
    async def _claim(self, name: str, params: Mapping[str, Any]) -> Rows:
        """Run a named claim to its end. It is this caller's turn."""

    def add_commit_hook(self, hook: CommitHook) -> Callable[[], None]:
        """Call `hook` on the loop after each batch of this process, in commit order; returns its remover."""
        return self._listeners.add_commit_hook(hook)

    def add_bell(self, ring: Callable[[], None], *, own: bool = True) -> Callable[[], None]:
        """Call `ring` on the loop whenever anything was committed, by this process or another; returns its remover."""
        return self._listeners.add_bell(ring, own=own)

    def set_inline_folder(self, folder: InlineFolder | None) -> None:
        """Install what folds inline projections, or remove it."""
        self._folder = folder
