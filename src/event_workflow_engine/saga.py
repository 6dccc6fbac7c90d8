"""Sagas: their definitions, and what the body of a saga function can await.

A `Saga` is a list of steps, which run side by side unless they are ordered, or an async function made one by `saga`.
Both forms run on one journal, by a `WorkflowEngine`.

The package's root has the decorator under this module's name, so that ``from event_workflow_engine.saga import …``
works and ``import event_workflow_engine.saga as m`` gives the decorator.
"""

from event_workflow_engine._saga.body import Signal, Step, run_saga, sleep, step, wait_for_signal
from event_workflow_engine._saga.definition import OnException, OnFailure, Saga, saga
from event_workflow_engine._saga.graph import StepRef
from event_workflow_engine._saga.specs import CompensationSpec, StepSpec
from event_workflow_engine._saga.steps import SagaStep, StepKind

__all__ = [
    "CompensationSpec",
    "OnException",
    "OnFailure",
    "Saga",
    "SagaStep",
    "Signal",
    "Step",
    "StepKind",
    "StepRef",
    "StepSpec",
    "run_saga",
    "saga",
    "sleep",
    "step",
    "wait_for_signal",
]
