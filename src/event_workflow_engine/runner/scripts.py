"""A saga's surroundings and its script, as it comes into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine.context import SAGA, SagaContext
from event_workflow_engine.runner.body import BodyScript
from event_workflow_engine.runner.graph import GraphScript

if TYPE_CHECKING:
    from event_workflow_engine import history as h
    from event_workflow_engine.runner.run import SagaRun

__all__ = ["new_script", "set_up"]


def set_up(run: SagaRun, started: h.SagaStarted, value: Any) -> None:
    """Make the context and the script; `value` is the typed input."""
    run.input = value
    run.key_prefix = f"{run.saga_id}:{started.run}:"
    run.context = run.kit.context.copy()
    correlation = started.correlation_id or run.saga_id
    run.place = SagaContext(run.saga_id, run.saga.name, None, correlation, started.causation_id)
    run.context.run(SAGA.set, run.place)
    run.forward.script = new_script(run)


def new_script(run: SagaRun) -> GraphScript | BodyScript:
    """A script that knows nothing of the journal yet."""
    saga, kit = run.saga, run.kit
    if saga.fn is None:
        return GraphScript(saga.specs, run.dag)
    arguments = (run.input,) if saga.takes_input else ()
    return BodyScript(saga, arguments, run.context.copy(), kit.codec, run.saga_id, kit.host.child_step)
