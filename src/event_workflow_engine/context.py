"""The saga's context: what code running inside a saga may know, carried in `contextvars`.

Also the `Runtime` protocol: all that `step()`, `sleep()` and `wait_for_signal()` see of the engine, so that the
definitions above need not know the runner below them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload

import msgspec

from event_workflow_engine.codecs import LARGEST
from event_workflow_engine.errors import DefinitionError, EncodeError, OutsideSagaError

if TYPE_CHECKING:
    from datetime import datetime

    from event_workflow_engine.outcomes import Outcome

__all__ = [
    "RUNTIME",
    "Appending",
    "CompensationContext",
    "Heart",
    "Runtime",
    "SagaContext",
    "StepContext",
    "StepResults",
    "StepTransaction",
    "current_saga",
    "current_step",
    "leave_saga",
    "present_saga",
]

In = TypeVar("In")
R = TypeVar("R")
In_co = TypeVar("In_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class SagaContext(msgspec.Struct, frozen=True):
    """Where the running code stands.

    Attributes:
        saga_id: The saga's id.
        saga: The definition's name.
        step: The step's identity; ``None`` in the body of a saga function.
        correlation_id: Shared by all that one first cause led to.
        causation_id: What led to this directly.
    """

    saga_id: str
    saga: str
    step: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


class StepResults(Mapping[str, Any]):
    """Results of steps: by name ``Any``, by action that action's type."""

    __slots__ = ("_by_action", "_by_name")

    def __init__(self, by_name: Mapping[str, Any], by_action: Mapping[Any, str]) -> None:
        self._by_name = by_name
        self._by_action = by_action

    @overload
    def __getitem__(self, key: str, /) -> Any: ...
    @overload
    def __getitem__(self, key: Callable[..., Coroutine[Any, Any, R]], /) -> R: ...
    @overload
    def __getitem__(self, key: Callable[..., R], /) -> R: ...
    def __getitem__(self, key: Any, /) -> Any:
        """The result of a step.

        Raises:
            KeyError: No such step, it has no result (yet), or the action is used by more than one step.
        """
        if isinstance(key, str):
            if key not in self._by_name:
                known = ", ".join(map(repr, self._by_name)) or "none yet"
                raise KeyError(f"no step {key!r} has a result; those that have: {known}")
            return self._by_name[key]
        try:
            name = self._by_action[key]
        except KeyError:
            raise KeyError(f"{key!r} is the action of no step, or of several: ask by the step's name") from None
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """The names of steps that have a result."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """How many steps have a result."""
        return len(self._by_name)

    def __repr__(self) -> str:
        """As a dict."""
        return f"StepResults({dict(self._by_name)!r})"


class Session(Protocol):
    """What runs a step's SQL."""

    connection: Any

    async def execute(self, sql: str, params: Mapping[str, Any], /) -> int:
        """Run a statement; the number of rows it changed."""
        ...

    async def fetch(self, sql: str, params: Mapping[str, Any], /) -> list[dict[str, Any]]:
        """Run a query; all its rows."""
        ...


class Appending(Protocol):
    """Makes what is to be appended to a stream, beside the step's record."""

    def __call__(self, stream: str, events: Any, metadata: Mapping[str, Any] | None, /) -> Any:
        """Checks all of it. Raises as `StepTransaction.append` does."""
        ...


class StepTransaction:
    """The transaction of a transactional step. Parameters are ``:name``. Ends with the action."""

    __slots__ = ("_appending", "_appends", "_session", "_size")

    def __init__(self, session: Session, appending: Appending) -> None:
        self._session = session
        self._appending: Appending | None = appending
        self._appends: list[Any] = []
        self._size = 0

    async def execute(self, sql: str, /, **params: Any) -> int:
        """Run a statement.

        Returns:
            How many rows it changed.

        Raises:
            DefinitionError: The SQL or its parameters are wrong, or it changes the engine's tables or the transaction.
            StorageError: A constraint failed, or the database cannot do its work.
        """
        return await self._session.execute(sql, params)

    async def fetch(self, sql: str, /, **params: Any) -> list[dict[str, Any]]:
        """Run a query; all its rows. Raises as `execute` does."""
        return await self._session.fetch(sql, params)

    async def append(self, stream: str, events: Any, /, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Append events to a stream, whatever version it has then, with the record that the step has succeeded.

        So they are in the log exactly once, whatever crashes, or never, where the action raises afterwards. Nobody sees
        them before.

        Args:
            stream: As in `EventStore.append`.
            events: An event or a sequence of them. They get their ids here.
            metadata: For all these events.

        Raises:
            DefinitionError: As in `EventStore.append`; an event has an id of its own; or the action has ended.
            NotRegisteredError: An event's type is not registered.
            EncodeError: A payload cannot be written as JSON, or not be read back as its type; or all that the
                transaction appends has more than 64 MiB.
        """
        append = None if self._appending is None else self._appending(stream, events, metadata)
        if append is None or self._appending is None:  # from another thread it may have ended meanwhile
            raise DefinitionError(f"stream {stream!r}: the step's transaction has ended, and takes no more events")
        size = self._size + sum(len(record.data) for record in append.records)
        if size > LARGEST:
            raise EncodeError(
                f"stream {stream!r}: {size:,} bytes of JSON in one transaction, which takes {LARGEST:,}: "
                "append them in several steps"
            )
        self._size = size
        self._appends.append(append)

    def end(self) -> list[Any]:
        """For the engine: the action has ended; what it has appended."""
        self._appending = None
        return self._appends

    @property
    def connection(self) -> Any:
        """On PostgreSQL the asyncpg connection, for what goes over one; its transaction is the engine's to end.

        Raises:
            DefinitionError: The store's database has none that could be used beside the store's own work.
        """
        if self._session.connection is None:
            raise DefinitionError("this store's connection is its own: use transaction.execute and transaction.fetch")
        return self._session.connection


class Heart(Protocol):
    """What a step's heartbeats go to."""

    def heartbeat(self, progress: Any) -> None:
        """The action is alive."""
        ...


class StepContext(Generic[In_co]):
    """What an action gets to know about its step and saga.

    Attributes:
        input: The saga's input.
        results: Results of the steps before.
        idempotency_key: The same for every attempt of this step in this saga, and no other step's. Hand it to systems
            that deduplicate. Built from saga id, run number and step identity.
        attempt: From 1.
        fence: Grows with each owner of the saga, for systems that can refuse an older one.
        deadline: When this attempt times out; ``None`` where it has no timeout.
    """

    __slots__ = (
        "_heart",
        "_saga",
        "_step",
        "_transaction",
        "attempt",
        "deadline",
        "fence",
        "idempotency_key",
        "input",
        "results",
    )

    def __init__(
        self,
        saga: SagaContext,
        step: str,
        input: In_co,  # noqa: A002 - the contract's name
        results: StepResults,
        idempotency_key: str,
        attempt: int,
        fence: int,
        deadline: datetime | None,
        heart: Heart | None = None,
    ) -> None:
        self._saga = saga
        self._step = step
        self.input = input
        self.results = results
        self.idempotency_key = idempotency_key
        self.attempt = attempt
        self.fence = fence
        self.deadline = deadline
        self._heart = heart
        self._transaction: StepTransaction | None = None

    @property
    def transaction(self) -> StepTransaction:
        """The transaction in which the step's record commits, too.

        Raises:
            DefinitionError: The step is not transactional.
        """
        if self._transaction is None:
            raise DefinitionError(
                f"step {self._step!r} is not transactional: declare it with SagaStep(…, transactional=True), or call "
                "it by step.in_transaction(…)"
            )
        return self._transaction

    def enter(self, transaction: StepTransaction) -> None:
        """For the engine: the action begins in a transaction."""
        self._transaction = transaction

    @property
    def saga_id(self) -> str:
        """The saga's id."""
        return self._saga.saga_id

    @property
    def step(self) -> str:
        """The step's identity in its saga."""
        return self._step

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `saga_id`, `saga`, `step` and `attempt`."""
        saga = self._saga
        extra = {"saga_id": saga.saga_id, "saga": saga.saga, "step": self._step, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"event_workflow_engine.saga.{saga.saga}"), extra)

    def heartbeat(self, progress: Any = None) -> None:
        """Say that the action is alive; restarts its timeout. Synchronous, and safe from any thread.

        Args:
            progress: Not stored; handed to the log at debug level.
        """
        if self._heart is not None:
            self._heart.heartbeat(progress)

    def in_saga(self) -> SagaContext:
        """Where the step stands, for `current_saga`."""
        saga = self._saga
        return SagaContext(saga.saga_id, saga.saga, self._step, saga.correlation_id, self.idempotency_key)


class CompensationContext(StepContext[In_co], Generic[In_co, R_co]):
    """What a compensation gets to know.

    Attributes:
        result: What the action returned; ``None`` where its outcome is not `Outcome.SUCCEEDED`.
        outcome: What is known of the action. The compensation must bear that it never happened.
    """

    __slots__ = ("outcome", "result")

    result: R_co | None
    outcome: Outcome

    def __init__(self, *context: Any, result: R_co | None, outcome: Outcome) -> None:
        super().__init__(*context)
        self.result = result
        self.outcome = outcome


class Runtime(Protocol):
    """What a saga function's body can ask of the engine. The runner implements it; `RUNTIME` holds the present one."""

    def step(
        self, fn: Callable[..., Any], args: tuple[Any, ...], spec: Any, key: str | None, /
    ) -> Coroutine[Any, Any, Any]:
        """A durable step; its identity is fixed by this call, it begins when it is awaited.

        Args:
            fn: The action.
            args: Exactly what it is called with.
            spec: A `StepSpec`, checked, with the step's name.
            key: The identity in place of the counted one.
        """
        ...

    def sleep(self, seconds: float, /) -> Coroutine[Any, Any, None]:
        """A durable timer."""
        ...

    def wait_for_signal(self, name: str, kind: Any, timeout: float | None, /) -> Coroutine[Any, Any, Any]:
        """The next signal of that name, decoded as `kind`."""
        ...

    def run_saga(self, saga: Any, input: Any, saga_id: str | None, /) -> Coroutine[Any, Any, Any]:  # noqa: A002
        """A child saga, run to its end."""
        ...


RUNTIME: Final[ContextVar[Runtime | None]] = ContextVar("ewe_runtime", default=None)
SAGA: Final[ContextVar[SagaContext | None]] = ContextVar("ewe_saga", default=None)
"""The saga of the running code. Within a step `STEP` tells more, see `present_saga`."""
STEP: Final[ContextVar[StepContext[Any] | None]] = ContextVar("ewe_step", default=None)


def present_saga() -> SagaContext | None:
    """The saga that the calling code runs in, with its step if it is in one."""
    step = STEP.get()
    return SAGA.get() if step is None else step.in_saga()


def leave_saga() -> None:
    """What follows in this context is no part of a saga."""
    RUNTIME.set(None)
    SAGA.set(None)
    STEP.set(None)


def current_saga() -> SagaContext:
    """The saga that the calling code runs in: in a body, an action, a compensation, and in their tasks and threads.

    Raises:
        OutsideSagaError: There is none.
    """
    saga = present_saga()
    if saga is None:
        raise OutsideSagaError("current_saga() was called outside of a saga")
    return saga


def current_step() -> StepContext[Any]:
    """The step that the calling code runs in: in an action or a compensation, and in their tasks and threads.

    Raises:
        OutsideSagaError: There is none.
    """
    step = STEP.get()
    if step is None:
        raise OutsideSagaError("current_step() was called outside of a step's action or compensation")
    return step


def runtime(what: str) -> Runtime:
    """The runtime of the saga function that the calling code is the body of.

    Raises:
        OutsideSagaError: It is not such a body.
    """
    present = RUNTIME.get()
    if present is None:
        raise OutsideSagaError(
            f"{what} was called outside of the body of a saga function; an action that needs it belongs in the body"
        )
    return present
