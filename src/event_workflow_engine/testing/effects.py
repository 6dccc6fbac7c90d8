"""`Effects`: what the actions of sagas did to the world, what compensations took back, and whether that balances."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from event_workflow_engine import history as h
from event_workflow_engine.context import CompensationContext, current_step
from event_workflow_engine.errors import DefinitionError, OutcomeUnknownError
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.testing.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from event_workflow_engine.context import StepContext
    from event_workflow_engine.engine import WorkflowEngine

__all__ = ["Effects", "UnbalancedEffectsError"]

_MAYBE: Final = (TimeoutError, asyncio.CancelledError, OutcomeUnknownError)


class UnbalancedEffectsError(AssertionError):
    """Effects were undone twice, undone without being done, or left neither done nor undone."""


_What = Literal["begun", "done", "maybe", "undoing", "undone", "transactional", "crashed"]


class _Line(msgspec.Struct, array_like=True):
    """One entry of the ledger."""

    what: _What
    key: str = ""
    saga_id: str = ""
    step: str = ""
    outcome: Outcome = Outcome.SUCCEEDED


class _Effect:
    """What is known of one step's effect."""

    def __init__(self, saga_id: str, step: str) -> None:
        self.saga_id = saga_id
        self.step = step
        self.begun = False
        self.done = False
        self.maybe = False
        self.undoing = False
        self.undone_in: int | None = None

    @property
    def stands(self) -> bool:
        return (self.done or self.maybe) and self.undone_in is None

    def __str__(self) -> str:
        return f"step {self.step!r} of saga {self.saga_id!r}"


class Effects:
    """A ledger of effects, one for each step of each saga: the view of a world that deduplicates by idempotency key.

    It stands outside of the engine and outlives its crashes. An action or compensation that is repeated with the same
    key because a crash lost its record counts once; whatever else is repeated does not balance. Transactional steps
    are not in it, nor are their compensations: what they do is the store's.

    Args:
        file: Where to keep it, for a process that is killed: one that is made on the file of another goes on with it,
            behind a crash. By default in memory.

    Attributes:
        threads: Where the plain functions among them are called.

    Example:
        >>> from event_workflow_engine import Saga, SagaStep, WorkflowEngine
        >>> async def charge() -> str:
        ...     return "payment-1"
        >>> async def refund() -> None: ...
        >>> order = Saga("order", [SagaStep("charge", charge, refund)])
        >>> async def main() -> None:
        ...     effects = Effects()
        ...     engine = WorkflowEngine("memory://")
        ...     engine.intercept(effects.around())
        ...     async with engine:
        ...         engine.register(order)
        ...         await engine.execute(order, id="o-1")
        ...         print(effects.standing("o-1"), effects.undone("o-1"))
        ...         await effects.check(engine)
        >>> asyncio.run(main())
        ['charge'] []
    """

    def __init__(self, file: Path | None = None) -> None:
        self._effects: dict[str, _Effect] = {}
        self._wrong: list[str] = []
        self._transactional: set[str] = set()  # keys of steps that are not in it
        self._life = 0
        self._file = file
        self.threads = Threads()
        if file is not None and file.exists():
            for line in file.read_bytes().splitlines():
                self._enter(msgspec.json.decode(line, type=_Line))
            self.crashed()

    def standing(self, saga_id: str) -> list[str]:
        """The steps of a saga whose effects are there, or may be; in the order of their first attempts."""
        return [effect.step for effect in self._effects.values() if effect.saga_id == saga_id and effect.stands]

    def undone(self, saga_id: str) -> list[str]:
        """The steps of a saga whose effects were taken back; in the order of their first attempts."""
        return [
            effect.step
            for effect in self._effects.values()
            if effect.saga_id == saga_id and effect.undone_in is not None
        ]

    def crashed(self) -> None:
        """The engine has crashed: what it had not recorded, it may repeat."""
        self._write(_Line("crashed"))

    def around(
        self, find: Callable[[Callable[..., Any]], Callable[..., Any] | None] | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """An interceptor for `WorkflowEngine.intercept` that enters each action and compensation here.

        Args:
            find: Another interceptor, whose stand-ins are called in the functions' places.
        """

        def recorded(fn: Callable[..., Any]) -> Callable[..., Any]:
            called = find(fn) if find is not None else None
            called = fn if called is None else called

            async def call(*args: Any) -> Any:
                context = current_step()
                if _is_transactional(context) and context.idempotency_key not in self._transactional:
                    self._note("transactional", context)
                if context.idempotency_key in self._transactional:
                    return await self._call(called, args)
                if isinstance(context, CompensationContext):
                    return await self._undo(context, called, args)
                return await self._do(context, called, args)

            return call

        return recorded

    async def _do(self, context: StepContext[Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._note("begun", context)
        try:
            value = await self._call(fn, args)
        except _MAYBE:
            self._note("maybe", context)
            raise
        self._note("done", context)
        return value

    async def _undo(self, context: CompensationContext[Any, Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._note("undoing", context, context.outcome)
        value = await self._call(fn, args)
        self._note("undone", context)
        return value

    async def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if inspect.iscoroutinefunction(fn):
            return await fn(*args)
        value = await self.threads.call(fn, args)
        return await value if inspect.isawaitable(value) else value

    def _note(self, what: _What, context: StepContext[Any], outcome: Outcome = Outcome.SUCCEEDED) -> None:
        self._write(_Line(what, context.idempotency_key, context.saga_id, context.step, outcome))

    def _write(self, line: _Line) -> None:
        if self._file is not None:
            # Whole or not at all, for whoever is killed here. The system keeps it: it outlives the process.
            with self._file.open("ab", buffering=0) as file:
                file.write(msgspec.json.encode(line) + b"\n")
        self._enter(line)

    def _enter(self, line: _Line) -> None:
        if line.what == "crashed":
            self._life += 1
            return
        if line.what == "transactional":
            self._transactional.add(line.key)
            return
        effect = self._effects.get(line.key)
        if effect is None:
            effect = self._effects[line.key] = _Effect(line.saga_id, line.step)
        if line.what == "begun":
            effect.begun = True
            if effect.undoing:
                self._wrong.append(f"{effect}: done after it was undone")
        elif line.what == "undoing":
            effect.undoing = True
            if not effect.begun or (line.outcome is Outcome.SUCCEEDED and not effect.done):
                self._wrong.append(f"{effect}: undone without being done")
        elif line.what == "undone":
            if effect.undone_in == self._life:
                self._wrong.append(f"{effect}: undone twice")
            effect.undone_in = self._life
        else:
            setattr(effect, line.what, True)

    async def check(self, engine: WorkflowEngine) -> None:
        """See whether the effects of all sagas that have ended balance. Those under way, or that stand, are not judged.

        Args:
            engine: An engine on the store of the sagas.

        Raises:
            UnbalancedEffectsError: They do not; it names each.
        """
        wrong = list(self._wrong)
        for saga_id in dict.fromkeys(effect.saga_id for effect in self._effects.values()):
            wrong += await self._judge(engine, saga_id)
        if wrong:
            raise UnbalancedEffectsError("effects do not balance:\n" + "\n".join(f"  {line}" for line in wrong))

    async def _judge(self, engine: WorkflowEngine, saga_id: str) -> list[str]:
        row = await engine.storage.get("sagas", (saga_id,))
        if row is None:
            return [f"saga {saga_id!r}: it had effects, and there is no such saga"]
        if row["ended_at"] is None:
            return []
        facts = [event.data for event in await engine.handle(saga_id).history()]
        completed = row["state"] == WorkflowState.COMPLETED.value
        excused = {
            step
            for fact in facts
            if isinstance(fact, (h.SagaCompleted, h.RollbackPlanned))
            for step in (fact.unknown if isinstance(fact, h.SagaCompleted) else fact.skipped)
        }
        wrong = []
        for effect in self._effects.values():
            if effect.saga_id != saga_id or effect.step in excused:
                continue
            if completed and effect.undone_in is not None:
                wrong.append(f"{effect}: undone, and its saga has completed")
            elif completed and effect.maybe and not effect.done:
                wrong.append(f"{effect}: left neither done nor undone, and its saga has completed")
            elif not completed and effect.stands:
                left = "left as done" if effect.done else "left neither done nor undone"
                wrong.append(f"{effect}: {left}, and its saga has ended as {row['state']}")
        return wrong


def _is_transactional(context: StepContext[Any]) -> bool:
    try:
        return context.transaction is not None
    except DefinitionError:
        return False
