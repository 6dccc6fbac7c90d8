"""Transactional steps: what an action writes and the record that it has succeeded commit together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec import structs

from event_workflow_engine import history as h
from event_workflow_engine.context import StepTransaction
from event_workflow_engine.errors import EngineStateError, StorageError, StorageUnavailableError, WorkflowError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from event_workflow_engine.context import StepContext
    from event_workflow_engine.runner.commands import StartStep
    from event_workflow_engine.runner.execution import Attempt
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.storage.port import Append, SqlSession, Unit, Written

__all__ = ["TransactionalAction"]


class TransactionalAction:
    """One attempt of a transactional step.

    From before the transaction is asked for until it has ended, the saga's other facts wait for it: a unit that stood
    behind the transaction in the store's queue would be waited for by the transaction, and wait for it.

    Args:
        run: The saga.
        attempt: Whose action it is.
        command: Its step.
        action: What to call.
        context: The action's.
        record: Makes the fact of a success, and the value as it is read back.
    """

    def __init__(
        self,
        run: SagaRun,
        attempt: Attempt,
        command: StartStep,
        action: Callable[..., Coroutine[Any, Any, Any]],
        context: StepContext[Any],
        record: Callable[[SagaRun, StartStep, Any], tuple[Any, Any]],
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._command = command
        self._action = action
        self._context = context
        self._record = record
        self._raised: BaseException | None = None
        self._success: tuple[Any, Any] | None = None

    async def act(self, args: tuple[Any, ...]) -> None:
        """Run it, to the end of its transaction; raises where nothing of it stays.

        Raises:
            BaseException: What the action raised.
        """
        run = self._run
        run.holds += 1
        try:
            await self._landed()  # a transaction that is open has a connection that the unit in flight may need
            verdict = await self._transact(args)
        finally:
            run.holds -= 1
        if self._success is not None:
            run.told(verdict)
            if not run.closed:
                run.forward.attempt_settled(self._command.step, *self._success)
        elif isinstance(verdict, Exception) and not run.closed:
            run.lose(verdict)  # the transaction was not to be had: that is no word about the action

    async def _transact(self, args: tuple[Any, ...]) -> Written | Exception:
        """What became of the unit that goes with it. Once there is one, nothing cuts it off."""

        async def work(session: SqlSession) -> Unit:
            transaction = StepTransaction(session, self._run.kit.appending)
            try:
                self._context.enter(transaction)
                first = () if self._command.args is None else (transaction,)  # called in a body: its arguments follow
                value = await self._action(*first, *args)
                await session.check()
            except BaseException as error:
                self._raised = error
                raise
            finally:
                appends = tuple(transaction.end())
            return await self._settle(value, appends)

        job = asyncio.ensure_future(self._run.kit.storage.transact(work))
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                if self._success is None:
                    job.cancel()
        if job.cancelled():
            raise asyncio.CancelledError
        error = job.exception()
        if error is None:
            return job.result()
        if isinstance(error, StorageUnavailableError):
            return error  # whatever the action made of a connection that was lost
        if self._success is not None and isinstance(error, WorkflowError):
            return error  # the action has returned: it is the unit that was refused
        if self._raised is None and isinstance(error, (StorageError, EngineStateError)):
            return error
        raise error

    async def _settle(self, value: Any, appends: tuple[Append, ...]) -> Unit:
        """The action has returned: the unit that says so, and appends what it wanted to."""
        run, step = self._run, self._command.step
        fact, read_back = self._record(run, self._command, value)
        if isinstance(fact, h.StepUnknown):
            self._raised = read_back
            raise read_back
        await self._landed()  # of another transaction of this saga, which has committed
        self._attempt.settle()
        run.emit(fact)
        unit = run.next_unit()
        assert unit is not None, f"step {step!r} has just been recorded"
        self._success = fact, read_back
        return structs.replace(unit, appends=unit.appends + appends) if appends else unit

    async def _landed(self) -> None:
        """Return when the saga has no unit in flight."""
        while self._run.flying is not None:
            await asyncio.wait([self._run.landed()])
        if self._run.closed:
            raise asyncio.CancelledError
