"""Durable sagas on one event log: workflows over several systems that end either done or undone.

Everything public that is not named here is imported from its module.
"""

from event_workflow_engine.aggregates import Aggregate, Repository
from event_workflow_engine.commands import CommandBus
from event_workflow_engine.compensations import CompensationManager
from event_workflow_engine.config import EngineConfig
from event_workflow_engine.context import CompensationContext, StepContext, StepResults, current_saga, current_step
from event_workflow_engine.engine import WorkflowEngine
from event_workflow_engine.errors import SagaFailedError, WorkflowError
from event_workflow_engine.event_bus import EventBus
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import NewEvent, RecordedEvent, current_event, event
from event_workflow_engine.handle import SagaHandle
from event_workflow_engine.outcomes import Outcome
from event_workflow_engine.projections import DocumentProjection, Projection, ProjectionManager, SqlProjection
from event_workflow_engine.retries import RetryPolicy
from event_workflow_engine.saga import Saga, SagaStep, Signal, run_saga, saga, sleep, step, wait_for_signal
from event_workflow_engine.scheduler import Task, WorkflowScheduler
from event_workflow_engine.snapshots import SnapshotManager
from event_workflow_engine.state_machine import StateMachine, WorkflowState

__all__ = [
    "Aggregate",
    "CommandBus",
    "CompensationContext",
    "CompensationManager",
    "DocumentProjection",
    "EngineConfig",
    "EventBus",
    "EventStore",
    "NewEvent",
    "Outcome",
    "Projection",
    "ProjectionManager",
    "RecordedEvent",
    "Repository",
    "RetryPolicy",
    "Saga",
    "SagaFailedError",
    "SagaHandle",
    "SagaStep",
    "Signal",
    "SnapshotManager",
    "SqlProjection",
    "StateMachine",
    "StepContext",
    "StepResults",
    "Task",
    "WorkflowEngine",
    "WorkflowError",
    "WorkflowScheduler",
    "WorkflowState",
    "current_event",
    "current_saga",
    "current_step",
    "event",
    "run_saga",
    "saga",
    "sleep",
    "step",
    "wait_for_signal",
]
