"""What every saga in memory shares: storage, time, threads, and whom to tell how it went."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from event_workflow_engine.clock import Clock, micros
from event_workflow_engine.errors import OwnershipLostError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from concurrent.futures import Executor
    from contextvars import Context

    from event_workflow_engine.codecs import Codec
    from event_workflow_engine.context import Appending
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.saga import StepSpec
    from event_workflow_engine.storage.port import Storage, WorkerRef
    from event_workflow_engine.timers import Alarms

__all__ = ["Giving", "Host", "Interceptor", "Kit"]

Interceptor = Callable[[Callable[..., Any]], Callable[..., Any] | None]
"""Asked for each action and compensation: the async function that stands in for it; ``None``: none does."""


class Host(Protocol):
    """What a run tells whoever keeps it, and asks of it."""

    def run_ended(self, run: SagaRun) -> None:
        """Its last unit is on disk."""
        ...

    def run_parked(self, run: SagaRun) -> None:
        """It waits, its row says until when, and it may leave memory."""
        ...

    def run_lost(self, run: SagaRun, error: BaseException) -> None:
        """Its unit was refused or could not be written: what is in memory is no longer what is stored."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that the host keeps until it is done."""
        ...

    def child_step(self, saga: Any, input: Any, saga_id: str | None, step: str) -> StepSpec:  # noqa: A002
        """The step that runs a child saga to its end."""
        ...


class Giving(Protocol):
    """Gives sagas to other workers."""

    @property
    def until(self) -> int:
        """Until when a saga that leaves now is for its receiver alone."""
        ...

    def receiver(self, run: SagaRun) -> str:
        """Which worker may have a saga; ``""``: none."""
        ...

    def take(self, run: SagaRun) -> str:
        """The same, and it leaves."""
        ...


class Kit:
    """The shared parts, put together by the engine for each time that it is entered.

    Attributes:
        now: Tells the clock's time, in microseconds since 1970.
    """

    __slots__ = (
        "actions",
        "alarms",
        "appending",
        "clock",
        "codec",
        "context",
        "giving",
        "host",
        "intercept",
        "is_sure",
        "loop",
        "now",
        "storage",
        "undo",
        "worker",
    )

    def __init__(
        self,
        *,
        storage: Storage,
        clock: Clock,
        codec: Codec,
        alarms: Alarms,
        loop: asyncio.AbstractEventLoop,
        actions: Executor,
        undo: Executor,
        worker: WorkerRef,
        is_sure: Callable[[], bool],
        context: Context,
        host: Host,
        appending: Appending,
        intercept: Interceptor | None = None,
    ) -> None:
        self.storage = storage
        self.clock = clock
        self.now = micros(clock)
        self.codec = codec
        self.alarms = alarms
        self.loop = loop
        self.actions = actions
        self.undo = undo
        self.worker = worker
        self.is_sure = is_sure
        self.context = context
        self.host = host
        self.appending = appending
        self.giving: Giving | None = None
        self.intercept = intercept

    def doubt(self) -> OwnershipLostError:
        """Why no action may begin where it is not sure: others may take this worker for dead, and act (rule 12)."""
        return OwnershipLostError(f"worker {self.worker.id!r} has had no confirmed heartbeat for too long")
