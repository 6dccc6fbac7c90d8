"""The store fails at each single call that a worker makes of it, and every promise holds."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest
from tests.simulation.planted import BY_SINGLE_ERRORS

from event_workflow_engine.testing.simulation.faults import Weather
from event_workflow_engine.testing.simulation.plan import (
    CallError,
    Deploy,
    Plan,
    Request,
    SagaPlan,
    SchedulePlan,
    StepPlan,
)
from event_workflow_engine.testing.simulation.world import run

if TYPE_CHECKING:
    from collections.abc import Iterator

ENOUGH = 400
OK = StepPlan("a")
START = Request(0.0, "start", "s")


def plan(*sagas: SagaPlan, requests: tuple[Request, ...] = (START,), **more: object) -> Plan:
    return msgspec.structs.replace(Plan(1, 1, Weather(), sagas, requests, ()), **more)


PLANS = {
    "undone": plan(SagaPlan("s", "sequential", (OK, StepPlan("b", ("raise",))))),
    "signalled": plan(
        SagaPlan("s", "function", (OK,), ((1, "signal"),)), requests=(START, Request(1.0, "signal", "s"))
    ),
    "asleep": plan(SagaPlan("s", "function", (OK, StepPlan("b")), ((1, 3.0), (1, 0.0)))),
    "queued": plan(SagaPlan("s", "dag", (OK,), queued=True)),
    "a parent": plan(
        SagaPlan("s", "function", (OK,), ((1, "child"),)), SagaPlan("child", "dag", (OK,), begun_by="parent")
    ),
    "scheduled": plan(
        SagaPlan("tick", "dag", (OK,), begun_by="schedule"),
        # Again, so late that a slot which nobody closes is nobody's by then.
        requests=(Request(0.0, "schedule", "t"), Request(3.0, "unschedule", "t"), Request(30.0, "unschedule", "t")),
        schedules=(SchedulePlan("t", "every", 2, saga="tick"),),
    ),
    "changed": plan(
        SagaPlan("s", "function", (OK, StepPlan("b")), ((1, 3.0), (1, 0.0))),
        deploys=(Deploy(1.0, 0, "stop", {"s": "reordered"}, 5.0),),
    ),
    "fed": plan(requests=(Request(0.0, "append", "things"), Request(1.0, "append", "things"))),
}


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def broken(whole: Plan, how: Literal["refused", "lost", "late"]) -> tuple[int, dict[int, tuple[str, ...]]]:
    """How many calls there were, and what broke when the n-th of them went wrong."""
    found = {}
    for call in range(1, ENOUGH):
        report = run(msgspec.structs.replace(whole, errors=(CallError(0, call, how),)))
        if report.broken:
            found[call] = report.broken
        if not report.met:
            return call - 1, found
    raise AssertionError(f"more than {ENOUGH} calls")


@pytest.mark.parametrize("how", ["refused", "lost", pytest.param("late", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", PLANS)
def test_the_store_may_fail_at_any_call(
    apart: ProcessPoolExecutor, name: str, how: Literal["refused", "lost", "late"]
) -> None:
    calls, found = apart.submit(broken, PLANS[name], how).result()
    assert found == {}
    assert calls > 10


FOUND_IN = {
    "a_parent_fails_when_the_store_does_not_answer": "a parent",
    "code_that_came_is_forgotten_where_the_look_fails": "changed",
}


def finds(name: str) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        BY_SINGLE_ERRORS[name](patch)
        return bool(broken(PLANS[FOUND_IN[name]], "refused")[1])


@pytest.mark.parametrize("name", BY_SINGLE_ERRORS)
def test_a_planted_bug_is_found(apart: ProcessPoolExecutor, name: str) -> None:
    assert apart.submit(finds, name).result()
