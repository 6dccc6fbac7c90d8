"""Child sagas: the step that runs one to its end, and which steps do nothing but wait for theirs."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from event_workflow_engine.callables import CallInfo
from event_workflow_engine.context import StepResults, current_step
from event_workflow_engine.errors import EngineStateError, StorageError
from event_workflow_engine.journal import child_id
from event_workflow_engine.runner.starting import is_id
from event_workflow_engine.saga import StepSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from event_workflow_engine.runner.definitions import Definitions
    from event_workflow_engine.runner.ends import Ends
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.saga import Saga

__all__ = ["Children"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_BACK_OFF_S: Final = 0.5


class _Waiting(NamedTuple):
    """A step that waits for its child.

    Attributes:
        saga_id: The parent's.
        step: Its step.
        child_id: For whose end.
        end: Done when the child has ended, or the wait was cut off.
    """

    saga_id: str
    step: str
    child_id: str
    end: asyncio.Future[SagaRun | None]


class Children:
    """Runs child sagas as steps of their parents.

    Args:
        definitions: Knows them, too.
        ends: Tells of theirs.
        start: Starts a saga.
    """

    def __init__(
        self, definitions: Definitions, ends: Ends, start: Callable[[Saga[Any, Any], Any, str], Awaitable[Any]]
    ) -> None:
        self._definitions = definitions
        self._ends = ends
        self._start = start
        self._waiting: dict[asyncio.Future[Any], _Waiting] = {}  # by the tasks of the parents' steps
        self._next: asyncio.Future[None] | None = None

    def stop(self) -> None:
        """The engine is left, and may be entered again in another loop."""
        self._next = None

    def step(self, saga: Saga[Any, Any], value: Any, saga_id: str | None, step: str) -> StepSpec:
        """See `Host.child_step`: the child's id is fixed by its parent and step, so it starts once."""
        self._definitions.resolve(saga)

        async def run_child() -> Any:
            started = saga_id if saga_id is not None else child_id(current_step().saga_id, step)
            try:
                result = await self._end_of(saga, value, started)
            finally:
                self._waiting.pop(_present_task(), None)
            return dict(result) if isinstance(result, StepResults) else result

        # A declarative child's results go into its parent's journal by name.
        kind = saga.output_type if saga.fn is not None else dict[str, Any]
        info = CallInfo(is_async=True, result_type=kind)
        return StepSpec(
            name=step,
            action=run_child,
            info=info,
            # One that is none fails the step, and could not even be written.
            child=saga_id if is_id(saga_id) else None,
        )

    async def _end_of(self, saga: Saga[Any, Any], value: Any, child_id: str) -> Any:
        """A child's result. What the store or the engine's end comes between is no failure of the child."""
        while True:
            try:
                await self._start(saga, value, child_id)
                return await self._ends.wait(child_id, saga, partial(self._waits, child_id))
            except StorageError as error:
                _log.warning("child saga %s: the store did not answer, trying again: %s", child_id, error)
                await asyncio.sleep(_BACK_OFF_S)
            except EngineStateError:  # the engine is left: the parent is handed over, and this cut off
                never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._waits(child_id, never)
                await never

    def _waits(self, child_id: str, end: asyncio.Future[SagaRun | None]) -> None:
        """From here on the step that runs now does nothing but wait."""
        context = current_step()
        self._waiting[_present_task()] = _Waiting(context.saga_id, context.step, child_id, end)
        begins, self._next = self._next, None
        if begins is not None:
            begins.set_result(None)

    def next_wait(self) -> asyncio.Future[None]:
        """Done when a step begins to wait for its child: what acted does not then."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def acting_on(self, run: SagaRun) -> list[asyncio.Future[Any]]:
        """Its code that runs now and its unit that is in flight, without the steps that only wait for children.

        A child that is in memory here acts for itself. One that has ended is waited for no longer: there is something
        to do for its parent, from that moment on.
        """
        return [future for future in run.acting_on if not self._only_waits(future)]

    def _only_waits(self, future: asyncio.Future[Any]) -> bool:
        waiting = self._waiting.get(future)
        return waiting is not None and not waiting.end.done()

    def of(self, saga_id: str) -> dict[str, str]:
        """The children that a saga waits for here, by its steps."""
        waiting = (one for one in self._waiting.values() if one.saga_id == saga_id and not one.end.done())
        return {one.step: one.child_id for one in waiting}


def _present_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "a step's code runs in a task"
    return task
