"""Given, when, then: what an aggregate decides, what a projection folds, how a saga ends, each in one statement."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from event_workflow_engine.aggregates import Aggregate, stream_of
from event_workflow_engine.callables import called
from event_workflow_engine.commands import drained
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import DefinitionError, SagaFailedError
from event_workflow_engine.history import StepStarted
from event_workflow_engine.projections import DocumentProjection
from event_workflow_engine.saga import Saga
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing.clock import VirtualClock
from event_workflow_engine.testing.effects import Effects
from event_workflow_engine.testing.fakes import StepFaker
from event_workflow_engine.testing.observed import ObservedStorage
from event_workflow_engine.testing.settling import is_calm, settle
from event_workflow_engine.testing.standstill import WatchedEngine
from event_workflow_engine.testing.telling import waits_in_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from event_workflow_engine.handle import SagaHandle
    from event_workflow_engine.saga import Signal
    from event_workflow_engine.testing.fakes import Fake

__all__ = ["AggregateScenario", "ProjectionScenario", "SagaScenario", "given"]

A = TypeVar("A", bound=Aggregate[Any])
D = TypeVar("D")
In = TypeVar("In")

_ID: Final = "given"
_ANY: Final[Any] = object()
_ALL: Final = 1_000_000


@overload
def given(subject: type[A], *past: Any) -> AggregateScenario[A]: ...
@overload
def given(subject: DocumentProjection[D], *past: Any) -> ProjectionScenario[D]: ...
@overload
def given(subject: Saga[In, Any], *past: In) -> SagaScenario: ...
def given(subject: Any, *past: Any) -> Any:
    """What there is before something happens. Each scenario has a store in memory of its own, which events go through.

    Args:
        subject: An aggregate's class, a document projection, or a saga.
        past: The events that have happened; of a saga its input, if it has one.

    Raises:
        DefinitionError: It is none of these.

    Example:
        >>> import asyncio
        >>> from dataclasses import dataclass
        >>> from event_workflow_engine import Aggregate, event
        >>> @event("light-switched")
        ... @dataclass(frozen=True)
        ... class Switched:
        ...     on: bool
        >>> @dataclass
        ... class Light(Aggregate[Switched], category="light"):
        ...     on: bool = False
        ...
        ...     def apply(self, event: Switched, /) -> None:
        ...         self.on = event.on
        >>> def toggle(light: Light) -> list[Switched]:
        ...     return [Switched(not light.on)]
        >>> asyncio.run(given(Light, Switched(True)).when(toggle).then(Switched(False)))
    """
    if isinstance(subject, type) and issubclass(subject, Aggregate):
        return AggregateScenario(subject, past)
    if isinstance(subject, DocumentProjection):
        return ProjectionScenario(subject, past)
    if isinstance(subject, Saga):
        return SagaScenario(subject, past)
    raise DefinitionError(f"given({subject!r}): a class derived from Aggregate, a DocumentProjection or a Saga")


class AggregateScenario(Generic[A]):
    """An aggregate whose past is given; made by `given`."""

    def __init__(self, aggregate: type[A], past: Sequence[Any]) -> None:
        self._aggregate = aggregate
        self._past = past
        self._decide: Callable[..., Any] | None = None
        self._args: tuple[Any, ...] = ()

    def when(self, decide: Callable[..., Any], *args: Any) -> AggregateScenario[A]:
        """Have something decided.

        Args:
            decide: Called with the aggregate and `args`. Decides as a command's handler does: returns an event,
                several, or ``None``; or an awaitable of that.
            args: The command, say.
        """
        self._decide, self._args = decide, args
        return self

    async def then(self, *events: Any) -> None:
        """These events are what was decided, as they are read back from the store.

        Raises:
            AssertionError: Others are.
        """
        decided = await self._run()
        _expect(decided == list(events), f"decided was {decided}, expected {list(events)}")

    async def then_raises(self, error: type[BaseException]) -> None:
        """It is refused with an error of that class.

        Raises:
            AssertionError: It is not refused.
        """
        try:
            decided = await self._run()
        except error:
            return
        raise AssertionError(f"decided was {decided}, expected was a {error.__name__}")

    async def _run(self) -> list[Any]:
        if self._decide is None:
            raise DefinitionError(
                f"given({self._aggregate.__name__}, …): .when(…) says what is decided, before .then(…)"
            )
        async with WorkflowEngine("memory://") as engine:
            repository = engine.repository(self._aggregate)
            if self._past:
                await repository.save(await repository.load(_ID), list(self._past))
            aggregate = await repository.load(_ID)
            before = aggregate.version
            decided = self._decide(aggregate, *self._args)
            if inspect.isawaitable(decided):
                decided = await decided
            events = drained(engine.store.serializer, decided)
            if not events:
                return []
            await repository.save(aggregate, events)
            stream = stream_of(self._aggregate, _ID)
            return [event.data async for event in engine.store.read(stream) if event.version > before]


class ProjectionScenario(Generic[D]):
    """A projection that is fed what is given; made by `given`."""

    def __init__(self, projection: DocumentProjection[D], past: Sequence[Any]) -> None:
        self._projection = projection
        self._past = past

    async def then(self, documents: Mapping[str, D | None]) -> None:
        """These are its documents; ``None``: there is none of the key. Keys that are not named are not looked at.

        Raises:
            AssertionError: A document is another one, or an event could not be folded.
        """
        async with WorkflowEngine("memory://") as engine:
            projection: DocumentProjection[Any] = self._projection
            engine.projections.register(projection)
            position = 0
            for number, event in enumerate(self._past):
                position = (await engine.store.append(f"{_ID}-{number}", [event])).positions[-1]
            await engine.projections.wait_for(projection, position)
            parked = (await engine.projections.status(projection)).parked
            _expect(not parked, f"{parked} events could not be folded")
            found: dict[str, Any] = {key: await engine.projections.get(projection, key) for key in documents}
        _expect(found == dict(documents), f"the documents are {found}, expected {dict(documents)}")


class SagaScenario:
    """A saga in virtual time; made by `given`. What is called happens in that order, each time when all is quiet."""

    def __init__(self, saga: Saga[Any, Any], past: Sequence[Any]) -> None:
        if len(past) > 1:
            raise DefinitionError(f"given({saga.name!r}, …): a saga has one input at most, not {len(past)}")
        self._saga = saga
        self._input = past[0] if past else None
        self._children: tuple[Saga[Any, Any], ...] = ()
        self._fakes = StepFaker()
        self._events: list[Callable[[SagaHandle[Any], VirtualClock], Awaitable[Any]]] = []

    def registering(self, *sagas: Saga[Any, Any]) -> SagaScenario:
        """Register further sagas: the children that it runs, and theirs."""
        self._children += sagas
        return self

    def faking(self, fn: Callable[..., Any], fake: Fake) -> SagaScenario:
        """Have a fake stand in for an action or compensation.

        Where the saga is a function, one that it does not come to is told by an `UnusedFakeWarning` in the end.

        Raises:
            DefinitionError: It is none of the saga's, where that is declared.
        """
        own = {spec.action for spec in self._saga.specs.values()}
        own |= {spec.compensation.fn for spec in self._saga.specs.values() if spec.compensation is not None}
        if self._saga.fn is None and fn not in own:
            raise DefinitionError(f"faking({called(fn)}): saga {self._saga.name!r} has no such action or compensation")
        self._fakes(fn, fake)
        return self

    def passes(self, **parts: Any) -> SagaScenario:
        """Let time pass: `timedelta`'s parts, as ``days=3``."""
        self._events.append(lambda _, clock: clock.advance(**parts))
        return self

    def signalled(self, signal: Signal[Any] | str, payload: Any = None) -> SagaScenario:
        """Send a signal."""
        self._events.append(lambda handle, _: handle.signal(signal, payload))
        return self

    def cancelled(self) -> SagaScenario:
        """Cancel it."""
        self._events.append(lambda handle, _: handle.cancel())
        return self

    async def then(
        self,
        state: WorkflowState,
        *,
        result: Any = _ANY,
        standing: Sequence[str] | None = None,
        undone: Sequence[str] | None = None,
    ) -> None:
        """It is in that state when all is quiet, and its effects balance.

        Args:
            state: Which.
            result: What it returned; by default not looked at.
            standing: The steps whose effects stand, by their first attempts; by default not looked at.
            undone: The steps whose effects were undone; the same.

        Raises:
            AssertionError: Something is otherwise; of a saga that has not ended it says what it waits for, and where
                that is a child, what the child waits for.
        """
        async with self._run() as (engine, handle, effects):
            status = await handle.status()
            if status is not state:
                why = await _why(engine, handle)
                raise AssertionError(f"the saga is {status.value}, expected {state.value}{why}")
            if result is not _ANY:
                if not await _has_ended(engine, handle):
                    raise AssertionError(f"the saga has returned nothing so far{await _why(engine, handle)}")
                returned = await handle.result()
                _expect(returned == result, f"the saga returned {returned!r}, expected {result!r}")
            found = effects.standing(handle.id), effects.undone(handle.id)
            for what, steps, expected in zip(("stand", "are undone"), found, (standing, undone), strict=True):
                _expect(expected is None or steps == list(expected), f"{steps} {what}, expected {list(expected or ())}")
            await effects.check(engine)
            await self._warn_of_unused(engine)

    async def _warn_of_unused(self, engine: WorkflowEngine) -> None:
        """Where nobody could tell before which functions the saga has: a declared one's were looked at in `faking`."""
        if self._saga.fn is None:
            return
        undoing: list[Callable[..., Any] | None] = []
        for one in (self._saga, *self._children):
            undoing += [spec.compensation.fn for spec in one.specs.values() if spec.compensation is not None]
            for row in await engine.storage.query("sagas_page", state=None, saga=one.name, after="", limit=_ALL):
                facts = [event.data for event in await engine.handle(row["id"]).history()]
                named = [fact.undo.name for fact in facts if isinstance(fact, StepStarted) and fact.undo is not None]
                undoing += [one.find_compensation(name) for name in named]
        self._fakes.warn_of_unused(but=undoing)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[tuple[WorkflowEngine, SagaHandle[Any], Effects]]:
        clock, effects = VirtualClock(), Effects()
        async with open_storage("memory://") as storage:
            observed = ObservedStorage(storage)
            engine = WatchedEngine(observed, clock=clock, is_calm=lambda made: is_calm(made, observed))
            engine.intercept(effects.around(self._fakes.find))
            clock.settle = partial(settle, engine, observed, effects.threads)
            engine.register(self._saga, *self._children)
            async with engine:
                handle = await engine.start(self._saga, self._input, id=_ID)
                await clock.settle()
                for event in self._events:
                    await event(handle, clock)
                    await clock.settle()
                yield engine, handle, effects


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


async def _has_ended(engine: WorkflowEngine, handle: SagaHandle[Any]) -> bool:
    row = await engine.storage.get("sagas", (handle.id,))
    return row is not None and (row["ended_at"] is not None or row["state"] == WorkflowState.NEEDS_INTERVENTION.value)


async def _why(engine: WorkflowEngine, handle: SagaHandle[Any]) -> str:
    """How it comes: why it has ended, or what keeps it from its end."""
    if not await _has_ended(engine, handle):
        return f": it {await waits_in_words(engine, handle.id)}"
    try:
        await handle.result()
    except SagaFailedError as error:
        return f": {error}"
    return ""
