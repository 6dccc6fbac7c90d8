"""The code that processes have of a saga: its versions, and what was changed under a number that it kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from event_workflow_engine.testing.simulation.plan import StepPlan

if TYPE_CHECKING:
    from event_workflow_engine.testing.simulation.plan import Code, SagaPlan

__all__ = ["NEW_STEP", "OTHER_NAME", "changed", "codes_of", "second"]

NEW_STEP: Final = "n"
"""The second version has it before all others."""

OTHER_NAME: Final = "x"
"""What the last step is called where it was renamed."""


def second(plan: SagaPlan) -> SagaPlan:
    """The second version of a saga."""
    replace = msgspec.structs.replace
    steps = [replace(one, after=(*one.after, NEW_STEP)) if plan.form == "dag" else one for one in plan.steps]
    stages = ((1, 0.0), *plan.stages) if plan.form == "function" else ()
    return replace(plan, version=2, steps=(StepPlan(NEW_STEP), *steps), stages=stages)


def changed(plan: SagaPlan, how: Code) -> SagaPlan:
    """A saga function whose code was changed though its version was not."""
    *others, last = plan.steps
    if how == "reordered" and others and len(plan.stages) > 1:
        steps = (last, *others[1:], others[0])
    else:
        steps = (*others, msgspec.structs.replace(last, name=OTHER_NAME))
    return msgspec.structs.replace(plan, steps=steps)


def codes_of(plan: SagaPlan, code: Code) -> list[SagaPlan]:
    """The definitions that a process has."""
    if code == "none":
        return []
    if code in ("reordered", "renamed"):
        return [changed(plan, code)]
    first, newer = [plan] * (code != "new"), [second(plan)] * (code != "old")
    return first + newer
