"""The worker leaves: what runs gets its time, then every saga goes to others, but for code that cannot be cut off."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from event_workflow_engine.runner.leaving import threads
from event_workflow_engine.storage.tables import GIVEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from event_workflow_engine.runner.children import Children
    from event_workflow_engine.runner.run import SagaRun
    from event_workflow_engine.storage.port import Unit

__all__ = ["frees", "leave"]

_log: Final = logging.getLogger("event_workflow_engine.runner")
_CLEANS_UP_S: Final = 1.0
_SAYS_AGAIN_S: Final = 30.0


async def leave(
    runs: Mapping[str, SagaRun],
    acting: Iterable[SagaRun],
    drop: Callable[[SagaRun], None],
    children: Children,
    timeout: float,  # noqa: ASYNC109 - code is asked to end
    haste: asyncio.Future[None],
) -> None:
    """Let the actions of sagas end that begin nothing more, and hand all over.

    A thread cannot be made to end, and no retry of what it does may start before it has (rule 5). So its saga stays
    with this worker until then, and what it does is recorded.

    Args:
        runs: The sagas in memory.
        acting: Those that were lost from it, such as where the store failed, while code of theirs goes on. In the store
            they may still be this worker's.
        drop: Takes one out of them.
        children: Tells which steps only wait for child sagas: one that sleeps would take all the time there is.
        timeout: Seconds for what runs; behind them async code is cancelled.
        haste: When this is done, they are over, and threads are left to themselves with their sagas.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while runs and not haste.done() and (left := deadline - loop.time()) > 0:
        busy = [future for run in runs.values() for future in children.acting_on(run)]
        if not busy:
            break
        await asyncio.wait([*busy, children.next_wait(), haste], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
    await _hand_over([run for run in runs.values() if not threads(run)], drop)
    says_at = loop.time()
    while True:
        held = {run.saga_id: ended for run in (*runs.values(), *acting) if (ended := threads(run))}
        # What ended while a unit was in flight goes with the next: who left now would forget what was waited for.
        flying = [run.landed() for run in runs.values() if run.flying is not None]
        if haste.done() and held:
            return
        if haste.done() or not (held or flying):
            break
        if held and loop.time() >= says_at:
            says_at = loop.time() + _SAYS_AGAIN_S
            _say(held)
        futures = [future for one in held.values() for future in one.values()]
        again = says_at - loop.time() if held else None
        await asyncio.wait([*(futures or flying), haste], timeout=again, return_when=asyncio.FIRST_COMPLETED)
    await _hand_over(list(runs.values()), drop)


def _say(held: Mapping[str, Mapping[str, object]]) -> None:
    steps = ", ".join(f"{', '.join(names)} of saga {saga}" for saga, names in held.items())
    _log.warning("leaving waits for code in threads, which cannot be cut off: %s. Until it has ended, or this "
                 "process has, nobody else runs it", steps)  # fmt: skip


async def _hand_over(runs: Sequence[SagaRun], drop: Callable[[SagaRun], None]) -> None:
    for run in runs:
        run.evict()
    cut_off = [one.future for run in runs for one in run.still_ending()]
    if cut_off:
        await asyncio.wait(cut_off, timeout=_CLEANS_UP_S)
    for run in runs:
        drop(run)
    for outcome in await asyncio.gather(*(run.hand_over() for run in runs), return_exceptions=True):
        if isinstance(outcome, BaseException):
            _log.warning("a saga could not be handed over; it is found again when this worker is gone: %s", outcome)


def frees(unit: Unit, worker: str) -> bool:
    """Whether a saga that somebody had is to be claimed by a worker now, or by any."""
    rows = [row.values for row in unit.rows if row.table == "sagas"]
    return any(row.get("wake_at") is not None and row.get("owner") in ("", GIVEN + worker) for row in rows)
