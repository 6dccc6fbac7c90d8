"""Engines that run no sagas start them, wait for them and read them, beside engines that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import Saga, SagaStep

if TYPE_CHECKING:
    from tests.rules.conftest import Lab


async def one() -> int:
    return 1


quick = Saga("quick", [SagaStep("one", one)])


@pytest.mark.timeout(30)
async def test_what_an_onlooker_executes_runs_on_a_worker_and_its_result_comes_back(lab: Lab) -> None:
    async with lab.engine(quick), lab.engine(quick, worker=False) as onlooker:
        for n in range(10):
            assert (await onlooker.execute(quick, id=f"q-{n}"))["one"] == 1


@pytest.mark.timeout(30)
async def test_what_found_no_room_in_its_own_process_may_end_in_another(lab: Lab) -> None:
    async with lab.engine(quick), lab.engine(quick, max_running=1) as full:
        handles = [await full.start(quick, id=f"q-{n}") for n in range(30)]
        for handle in handles:
            assert (await handle.result())["one"] == 1
