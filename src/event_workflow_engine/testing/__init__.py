"""What helps to test sagas: a virtual clock, fakes for steps, and the fixtures ``engine``, ``clock``, ``fake_step``."""

from event_workflow_engine.testing.clock import VirtualClock
from event_workflow_engine.testing.fakes import StepCalls, StepFaker, fail_times, raises, returns, times_out, unknown

__all__ = [
    "StepCalls",
    "StepFaker",
    "VirtualClock",
    "fail_times",
    "raises",
    "returns",
    "times_out",
    "unknown",
]
