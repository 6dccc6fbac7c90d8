"""What helps to test sagas: a virtual clock, fakes for steps, a ledger of effects, and the fixtures made of them."""

from event_workflow_engine.testing.clock import VirtualClock
from event_workflow_engine.testing.effects import Effects, UnbalancedEffectsError
from event_workflow_engine.testing.fakes import (
    StepCalls,
    StepFaker,
    UnusedFakeWarning,
    fail_times,
    raises,
    returns,
    times_out,
    unknown,
)
from event_workflow_engine.testing.scenarios import AggregateScenario, ProjectionScenario, SagaScenario, given
from event_workflow_engine.testing.standstill import StandstillError

__all__ = [
    "AggregateScenario",
    "Effects",
    "ProjectionScenario",
    "SagaScenario",
    "StandstillError",
    "StepCalls",
    "StepFaker",
    "UnbalancedEffectsError",
    "UnusedFakeWarning",
    "VirtualClock",
    "fail_times",
    "given",
    "raises",
    "returns",
    "times_out",
    "unknown",
]
