"""`WorkflowEngine`: composition and life cycle of everything else."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack, overload

from event_workflow_engine.aggregates import Aggregate, Repository
from event_workflow_engine.clock import Clock, SystemClock, micros, seconds
from event_workflow_engine.codecs import JSON, Codec
from event_workflow_engine.commands import CommandBus
from event_workflow_engine.config import EngineConfig
from event_workflow_engine.context import leave_saga
from event_workflow_engine.enlisting import Enlisted
from event_workflow_engine.errors import DefinitionError, EngineStateError, NotRegisteredError
from event_workflow_engine.event_bus import EventBus
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.handle import SagaHandle
from event_workflow_engine.ids import uuid7
from event_workflow_engine.loops import require_loop
from event_workflow_engine.projections import ProjectionManager
from event_workflow_engine.queues import Queueing, Queues
from event_workflow_engine.refusals import Refusals
from event_workflow_engine.runner.definitions import Definitions
from event_workflow_engine.runner.departure import Departure
from event_workflow_engine.runner.keeper import SagaKeeper
from event_workflow_engine.runner.kit import Interceptor, Kit
from event_workflow_engine.scheduler import WorkflowScheduler
from event_workflow_engine.snapshots import SnapshotManager
from event_workflow_engine.staging import Intake
from event_workflow_engine.storage import open_storage
from event_workflow_engine.timers import Alarms
from event_workflow_engine.workers import Worker

if TYPE_CHECKING:
    from event_workflow_engine.runner.balance import Tolerance
    from event_workflow_engine.runner.glance import Glance
    from event_workflow_engine.saga import Saga
    from event_workflow_engine.storage.port import Storage

__all__ = ["WorkflowEngine"]

In = TypeVar("In")
Out = TypeVar("Out")
A = TypeVar("A", bound=Aggregate[Any])
_DEFAULTS: Final = EngineConfig()


class WorkflowEngine:
    """Runs sagas durably on one store, and holds the parts around them.

    An async context manager: entering it resumes the sagas that are under way, leaving it lets running steps end and
    hands the rest over. It may be entered again after it was left.

    Args:
        storage: A URL (``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``memory://``) or an opened storage,
            which is then the caller's to close.
        config: See `EngineConfig`.
        clock: Where time comes from; the machine's clock by default.

    Attributes:
        store: The event store.
        bus: The event bus.
        projections: The projections.
        snapshots: The snapshots.
        scheduler: The scheduler.
        commands: The command bus.
        queues: The queues.
        refusals: What transactions that were enlisted staged, and the store refused.

    Raises:
        DefinitionError: The URL is none that the library knows, or an argument is of another kind.

    Example:
        >>> from event_workflow_engine import Saga, SagaStep, WorkflowEngine
        >>> async def greet() -> str:
        ...     return "hello"
        >>> greeting = Saga("greeting", [SagaStep("greet", greet)])
        >>> async def main() -> None:
        ...     async with WorkflowEngine("memory://") as engine:
        ...         engine.register(greeting)
        ...         results = await engine.execute(greeting, id="g-1")
        ...         print(results["greet"])
        >>> asyncio.run(main())
        hello
    """

    def __init__(
        self,
        storage: str | Storage = "memory://",
        *,
        config: EngineConfig = _DEFAULTS,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(config, EngineConfig):
            raise DefinitionError(f"WorkflowEngine(config={config!r}): an EngineConfig(…)")
        if not isinstance(storage, str) and not hasattr(storage, "perform"):
            raise DefinitionError(
                f"WorkflowEngine({storage!r}): a URL such as 'sqlite:///orders.db', or an opened storage"
            )
        self._owns_storage = isinstance(storage, str)
        self._storage: Storage = (
            open_storage(storage, auto_upgrade=config.auto_upgrade) if isinstance(storage, str) else storage
        )
        self._config = config
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._now = micros(self._clock)
        self._definitions = Definitions()
        self.queues = Queues(self._storage, clock=self._clock, on_new=self._queue_came)
        self.scheduler = WorkflowScheduler(self._storage, clock=self._clock)
        self._keeper = SagaKeeper(self._definitions, config, self.queues, self.scheduler.look_for_slots)
        self._open: AsyncExitStack | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._departure: Departure | None = None
        self._intercept: Interceptor | None = None
        self.store = EventStore(self._storage, clock=self._clock)
        self.bus = EventBus()
        self.bus.attach(self.store)
        self.snapshots = SnapshotManager(self.store)
        self.projections = ProjectionManager(self.store, clock=self._clock)
        self.commands = CommandBus(self.store, snapshots=self.snapshots)
        self._intake = Intake(self._storage, self.now)
        self.refusals = Refusals(self._storage, self._intake.look)

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the store, resume what is under way, and begin to accept.

        Raises:
            EngineStateError: It is entered already, or was on an event loop that has ended.
            StorageError: The store cannot be opened; the message says what to do.
        """
        if self._departure is not None:
            await self._departure.over()  # who left it may not have waited
        if self._open is not None:
            self._require_loop()
            raise EngineStateError("the engine is entered already; one engine is entered once at a time")
        async with AsyncExitStack() as stack:
            self._open, self._loop = stack, asyncio.get_running_loop()
            try:
                await self._start(stack)
            except BaseException:
                self._open = None
                raise
            self._open = stack.pop_all()
        return self

    async def _start(self, stack: AsyncExitStack) -> None:
        self._departure = Departure(self._keeper.cut_off)
        haste = self._departure.haste
        if self._owns_storage:
            await stack.enter_async_context(self._storage)
        alarms = Alarms(self._clock)
        context = contextvars.copy_context()
        context.run(leave_saga)  # the engine may have been entered from inside of another's saga
        liveness = self._storage.liveness(seconds(self._config.lease))
        worker = Worker(self._storage, liveness, self.now, self._keeper)
        kit = Kit(
            storage=self._storage,
            clock=self._clock,
            codec=JSON,
            alarms=alarms,
            loop=asyncio.get_running_loop(),
            actions=self._pool(stack, "ewe-action"),
            undo=self._pool(stack, "ewe-undo"),
            worker=worker.ref,
            is_sure=liveness.is_sure,
            context=context,
            host=self._keeper,
            appending=self.store.beside,
            intercept=self._intercept,
        )
        alarms.start()
        stack.push_async_callback(alarms.stop)
        if self._config.worker:
            stack.push_async_callback(self._sign_off, worker, kit)
            await worker.start()
        feeder = worker.ref.id if self._config.worker else ""
        self.bus.attach(self.store, worker_id=feeder)
        stack.push_async_callback(self.bus.stop, timeout=self._config.shutdown_timeout, haste=haste)
        await self.bus.start()
        stack.push_async_callback(self.projections.stop)
        await self.projections.start(worker_id=feeder)
        stack.push_async_callback(self._keeper.stop, haste)
        self._keeper.start(kit)
        stack.push_async_callback(self.scheduler.stop)
        await self.scheduler.start(self, worker_id=feeder)
        stack.push_async_callback(self._intake.stop)
        self._intake.start()

    async def _sign_off(self, worker: Worker, kit: Kit) -> None:
        await worker.stop(left_in=(kit.actions, kit.undo) if self._keeper.left_behind else ())

    def _pool(self, stack: AsyncExitStack, name: str) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(self._config.threads, thread_name_prefix=name)
        # Threads cannot be stopped: what the shutdown timeout cut off ends by itself.
        stack.callback(pool.shutdown, wait=False)
        return pool

    async def __aexit__(self, *exc: object) -> None:
        """Let running steps end within the shutdown timeout, hand the sagas over, and close.

        Plain functions run in threads, which cannot be cut off: their ends are waited for, and the log says so.

        Cancelling it asks for haste: running steps are cancelled at once, and plain functions are not waited for; their
        sagas are free for others when they have ended. All the rest is done as ever, and the cancel raised behind it,
        or after five seconds where the store does not answer. A second cancel is raised at once.
        """
        self._require_loop()
        opened, self._open = self._open, None
        if opened is not None and self._departure is not None:
            await self._departure.leave(opened.aclose)

    def _require_loop(self) -> None:
        if self._open is not None and self._loop is not None:
            require_loop(self._loop, "the engine")

    # -- sagas -------------------------------------------------------------------------------------------------------

    def register(self, *sagas: Saga[Any, Any]) -> None:
        """Let this engine run sagas. Sync; before or after entering, which then resumes theirs.

        Raises:
            DefinitionError: Another definition has the name and version.
        """
        new = [saga for saga in sagas if self._definitions.add(saga)]
        if new and self._open is not None:
            self._keeper.claims.code_came()
            self.scheduler.code_came()

    @overload
    async def execute(
        self, saga: Saga[In, Out], input: In, *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> Out: ...
    @overload
    async def execute(self, saga: Saga[None, Out], *, id: str | None = None, **queueing: Unpack[Queueing]) -> Out: ...
    @overload
    async def execute(
        self, saga: str, input: Any = None, *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> Any: ...
    async def execute(
        self,
        saga: Saga[Any, Any] | str,
        input: Any = None,  # noqa: A002
        *,
        id: str | None = None,  # noqa: A002
        **queueing: Unpack[Queueing],
    ) -> Any:
        """Run a saga to its end. The same id is the same saga: it is joined, or its result told again.

        Cancelling this call detaches from the saga; it goes on. Use `SagaHandle.cancel` to cancel it.

        Args:
            saga: A registered saga, or the name of one (then its newest version).
            input: What it works on.
            id: Its id; a new UUID version 7 by default.
            **queueing: How it waits for its turn (see `event_workflow_engine.queues.Queueing`); by default not at all.

        Returns:
            The function's result; of a declarative saga the `StepResults`.

        Raises:
            NotRegisteredError: It is not registered.
            SagaConflictError: The id belongs to another saga or input.
            DuplicateSagaError: Its queue has another saga with its ``dedup_key``.
            EncodeError: The input is no JSON, or not of the saga's type. Nothing was stored.
            DefinitionError: It is no saga, or the id is no id.
            SagaFailedError: It ended as undone, failed or cancelled, or needs intervention.
        """
        self._require_loop()
        resolved = self._definitions.resolve(saga)
        saga_id = uuid7() if id is None else id
        ends = self._keeper.ends
        waiter = ends.expect(saga_id)
        try:
            accepted, new = await self._keeper.start_saga(resolved, input, saga_id, self.queues.placement(queueing))
            if new:
                return await ends.conclusion(await waiter, saga_id, resolved)
        finally:
            ends.forget(saga_id, waiter)
        return await ends.wait(accepted, resolved)

    @overload
    async def start(
        self, saga: Saga[In, Out], input: In, *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> SagaHandle[Out]: ...
    @overload
    async def start(
        self, saga: Saga[None, Out], *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> SagaHandle[Out]: ...
    @overload
    async def start(
        self, saga: str, input: Any = None, *, id: str | None = None, **queueing: Unpack[Queueing]
    ) -> SagaHandle[Any]: ...
    async def start(
        self,
        saga: Saga[Any, Any] | str,
        input: Any = None,  # noqa: A002
        *,
        id: str | None = None,  # noqa: A002
        **queueing: Unpack[Queueing],
    ) -> SagaHandle[Any]:
        """Accept a saga; durable once this returns. The same id is the same saga.

        Args:
            saga: A registered saga, or the name of one (then its newest version).
            input: What it works on.
            id: Its id; a new UUID version 7 by default.
            **queueing: How it waits for its turn (see `event_workflow_engine.queues.Queueing`); by default not at all.

        Raises:
            NotRegisteredError: It is not registered.
            SagaConflictError: The id belongs to another saga or input.
            DuplicateSagaError: Its queue has another saga with its ``dedup_key``.
            EncodeError: The input is no JSON, or not of the saga's type. Nothing was stored.
            DefinitionError: It is no saga, or the id is no id.
        """
        self._require_loop()
        resolved = self._definitions.resolve(saga)
        saga_id = uuid7() if id is None else id
        accepted, _ = await self._keeper.start_saga(resolved, input, saga_id, self.queues.placement(queueing))
        return SagaHandle(self, accepted, resolved)

    def _queue_came(self) -> None:
        if self._open is not None:
            self._keeper.claims.look()

    @overload
    def handle(self, id: str) -> SagaHandle[Any]: ...
    @overload
    def handle(self, id: str, saga: Saga[Any, Out]) -> SagaHandle[Out]: ...
    def handle(self, id: str, saga: Saga[Any, Any] | None = None) -> SagaHandle[Any]:  # noqa: A002
        """A handle on a saga by its id, without I/O.

        Args:
            id: The saga's id.
            saga: Its definition, which types the result; by default the one registered under its name, if any.
        """
        return SagaHandle(self, id, saga)

    def enlist(self, connection: Any) -> Enlisted:
        """Start sagas, append events and send signals as part of a transaction of your own; without I/O.

        PostgreSQL only. Elsewhere write to your tables in a transactional step (`SagaStep`).

        Args:
            connection: An asyncpg connection to the store's database on which a transaction is open; or a SQLAlchemy
                ``AsyncSession`` or ``AsyncConnection`` over asyncpg. Its role needs the store's rights. One to another
                database is refused by what is then asked for, with a `DefinitionError`.
        """
        return Enlisted(self, connection, self._definitions, self.queues)

    def repository(self, aggregate: type[A]) -> Repository[A]:
        """Load and save aggregates of one type."""
        return Repository(self.store, aggregate, snapshots=self.snapshots)

    # -- for the testing kit -----------------------------------------------------------------------------------------

    def intercept(self, interceptor: Interceptor) -> None:
        """Let something stand in for actions and compensations, from the next time that the engine is entered."""
        self._intercept = interceptor

    def balance(self, tolerance: Tolerance) -> None:
        """Have sagas go to workers with fewer sooner or later than they do, from the next time that it is entered."""
        self._keeper.tolerance = tolerance

    # -- what handles and the scheduler use --------------------------------------------------------------------------

    @property
    def storage(self) -> Storage:
        """The store behind it all."""
        return self._storage

    @property
    def codec(self) -> Codec:
        """Encodes inputs, results and signals."""
        return JSON

    def now(self) -> int:
        """The engine's clock, in microseconds since 1970."""
        return self._now()

    def knows_saga(self, name: str) -> bool:
        """Whether a saga of that name is registered."""
        try:
            self._definitions.resolve(name)
        except NotRegisteredError:
            return False
        return True

    async def run_command(self, command: Any, *, id: str) -> object:  # noqa: A002 - the contract's name
        """Execute a scheduled command."""
        return await self.commands.execute(command, id=id)

    async def wait_for_end(self, saga_id: str, saga: Saga[Any, Any] | None) -> Any:
        """See `SagaHandle.result`."""
        self._require_loop()
        return await self._keeper.ends.wait(saga_id, saga)


def glance_at(engine: WorkflowEngine) -> Glance:
    """What an engine has in memory: for the testing kit, and so no part of the engine that users see."""
    return engine._keeper.glance  # noqa: SLF001 - of this module
