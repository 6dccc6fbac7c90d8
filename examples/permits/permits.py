"""The cases as sagas, and what is counted over them: all that worker and driver share."""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from event_workflow_engine import DocumentProjection, saga, step
from event_workflow_engine.history import SagaCompleted, StepSucceeded

FILE = "permit_receipts.csv.gz"
BESIDE_THE_PROJECT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / FILE
DESK_TIME_S = 0.002  # what recording an activity takes: some steps are always under way when the worker is killed


@dataclass(frozen=True)
class Case:
    """A permit application and what was done about it, in order."""

    id: str
    activities: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """The result of a step."""

    case: str
    activity: str


async def record(case: str, activity: str) -> Recorded:
    await asyncio.sleep(DESK_TIME_S)
    return Recorded(case, activity)


@saga("permit")
async def permit(case: Case) -> list[str]:
    """One durable step for each activity; the result is the case's variant."""
    done = [await step(record, case.id, activity, name=activity) for activity in case.activities]
    return [recorded.activity for recorded in done]


# -- what is counted -------------------------------------------------------------------------------------------------
#
# The projections fold the sagas' own facts. A step that was cut off by a kill runs again, so counting in the action, or
# appending an event of its own there, would count it twice unless the event's id came from the idempotency key. The
# fact `step-succeeded` needs no such care: a completed step never runs again, and has exactly one.


@dataclass(frozen=True)
class Totals:
    events: int = 0
    cases: int = 0


@dataclass(frozen=True)
class Activity:
    name: str
    events: int = 0


@dataclass(frozen=True)
class Variant:
    activities: list[str]
    cases: int = 0


totals = DocumentProjection("permit-totals", Totals)
activities = DocumentProjection("permit-activities", Activity)
variants = DocumentProjection("permit-variants", Variant)
PROJECTIONS = (totals, activities, variants)


def activity_of(fact: StepSucceeded) -> str:
    return msgspec.json.decode(fact.result, type=Recorded).activity


def variant_of(fact: SagaCompleted) -> list[str]:
    return msgspec.json.decode(fact.result, type=list[str])


@totals.on(StepSucceeded, key=lambda _: "all")
def count_event(known: Totals | None, _: StepSucceeded) -> Totals:
    before = known or Totals()
    return Totals(before.events + 1, before.cases)


@totals.on(SagaCompleted, key=lambda _: "all")
def count_case(known: Totals | None, _: SagaCompleted) -> Totals:
    before = known or Totals()
    return Totals(before.events, before.cases + 1)


@activities.on(StepSucceeded, key=activity_of)
def count_activity(known: Activity | None, fact: StepSucceeded) -> Activity:
    before = known or Activity(activity_of(fact))
    return Activity(before.name, before.events + 1)


@variants.on(SagaCompleted, key=lambda fact: hashlib.sha256(fact.result).hexdigest())
def count_variant(known: Variant | None, fact: SagaCompleted) -> Variant:
    before = known or Variant(variant_of(fact))
    return Variant(before.activities, before.cases + 1)


# -- the log ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is true of a log: counted from its rows, or read from the projections."""

    events: int
    cases: int
    activities: dict[str, int]
    variants: dict[tuple[str, ...], int]


def facts_of(cases: list[Case]) -> Facts:
    return Facts(
        events=sum(len(case.activities) for case in cases),
        cases=len(cases),
        activities=dict(Counter(activity for case in cases for activity in case.activities)),
        variants=dict(Counter(case.activities for case in cases)),
    )


def read_log() -> tuple[list[Case], str]:
    """The cases in order of their first event, and where they came from.

    ``EWE_DATA`` names the file, or the folder that holds it; otherwise it is looked for beside the project.

    Raises:
        FileNotFoundError: ``EWE_DATA`` names nothing that is there.
    """
    named = os.environ.get("EWE_DATA")
    path = BESIDE_THE_PROJECT if not named else Path(named) / FILE if Path(named).is_dir() else Path(named)
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
            return cases_of(list(csv.DictReader(lines))), str(path)
    if named:
        raise FileNotFoundError(f"EWE_DATA={named}: there is no such file, nor a folder with {FILE}")
    return sample(), (
        f"a built-in sample of {SAMPLE_CASES} cases: the permit log is not at {path}; "
        f"get it (doi 10.4121/12709127) and name it with EWE_DATA"
    )


def cases_of(rows: list[dict[str, str]]) -> list[Case]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["case:concept:name"], []).append(row["concept:name"])
    return [Case(case, tuple(done)) for case, done in found.items()]


SAMPLE_CASES = 240
_SAMPLE = (
    ("Confirmation of receipt",),
    ("Confirmation of receipt", "T02 Check confirmation of receipt", "T06 Determine necessity of stop advice"),
    (
        "Confirmation of receipt",
        "T02 Check confirmation of receipt",
        "T03 Adjust confirmation of receipt",
        "T02 Check confirmation of receipt",
        "T04 Determine confirmation of receipt",
        "T05 Print and send confirmation of receipt",
        "T06 Determine necessity of stop advice",
        "T10 Determine necessity to stop indication",
    ),
)


def sample() -> list[Case]:
    return [Case(f"sample-{number}", _SAMPLE[number % len(_SAMPLE)]) for number in range(SAMPLE_CASES)]
