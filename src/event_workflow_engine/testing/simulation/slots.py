"""What must hold of schedules: each slot fires once over all workers, and what was missed goes by its policy."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.clock import to_micros
from event_workflow_engine.storage.row_images import shape_of
from event_workflow_engine.testing.simulation.server import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from event_workflow_engine.storage.port import Row, Unit
    from event_workflow_engine.testing.simulation.plan import SchedulePlan
    from event_workflow_engine.testing.simulation.server import SimulatedServer

__all__ = ["Slots"]

_SECOND: Final = 1_000_000
_GRACE: Final = _SECOND
_AT_ONCE: Final = 100
_OPEN_S: Final = 20.0
"""A slot that is open for longer is nobody's."""


class Slots(Watcher):
    """Looks at what the scheduler writes.

    Args:
        schedules: Of the plan.
        server: Whose commits are looked at.
        breaks: Told what does not hold.
        begun: Whether a saga has begun.
    """

    def __init__(
        self,
        schedules: Iterable[SchedulePlan],
        server: SimulatedServer,
        breaks: Callable[[str], None],
        begun: Callable[[str], bool],
    ) -> None:
        self._plans = {one.id: one for one in schedules}
        self._server = server
        self._breaks = breaks
        self._begun = begun
        self._fired: set[tuple[str, int]] = set()
        self._fired_before: set[tuple[str, int]] = set()
        self._open: dict[tuple[str, int], float] = {}
        self._closed: Counter[str] = Counter()
        self._runs: Counter[str] = Counter()
        if self._plans:
            server.watchers.append(self)

    def ran(self, schedule: str) -> None:
        """The function of a schedule was called."""
        self._runs[schedule] += 1

    def started(self, saga: str) -> None:
        """A saga has begun that a schedule starts."""
        schedule, _, slot = saga.rpartition("@")
        if not slot.isdigit() or (schedule, int(slot)) not in self._fired | self._fired_before:
            self._breaks(f"saga {saga} was begun for no slot that had fired")

    def written(self, unit: Unit) -> None:
        """Look at the rows."""
        claims: list[Row] = []
        advance: Row | None = None
        for row in unit.rows:
            if row.table == "slots":
                if row.op in ("insert", "upsert"):
                    claims.append(row)
                elif row.op == "delete":
                    self._ends(row)
            elif row.table == "schedules" and row.op == "insert":
                self._begins(row.key[0])
            elif row.table == "schedules" and row.op == "update" and [*row.values] == ["next_run"]:
                advance = row
        for row in claims:
            key = row.key[0], row.key[1]
            if key in self._fired:
                self._breaks(f"slot {key[1]} of {key[0]} fired twice")
            self._fired.add(key)
            self._open[key] = self._server.loop.time()
        if advance is not None:
            self._advanced(advance, claims, unit.at)
        elif claims:
            self._breaks(f"a slot of {claims[0].key[0]} fired, and its schedule did not go on")

    def _begins(self, schedule: str) -> None:
        """One that is made behind the cancel of another of its name, by a call from before it, has the same slots."""
        before = {key for key in self._fired if key[0] == schedule}
        self._fired -= before
        self._fired_before |= before

    def _ends(self, row: Row) -> None:
        schedule, slot = row.key
        self._open.pop((schedule, slot), None)
        if row.where:
            return  # the schedule was forgotten before anybody had run it
        self._closed[schedule] += 1
        plan = self._plans[schedule]
        if plan.saga is not None and not self._begun(f"{schedule}@{slot}"):
            self._breaks(f"slot {slot} of {schedule} is closed, and its saga was not begun")
        if plan.saga is None and self._runs[schedule] < self._closed[schedule]:
            self._breaks(f"{self._closed[schedule]} slots of {schedule} are closed, and it ran {self._runs[schedule]}")

    def _advanced(self, row: Row, claims: Sequence[Row], at: int) -> None:
        """The slots that fired and the next one are those that the policy wants."""
        plan = self._plans[row.key[0]]
        slot, following = row.where["next_run"], row.values["next_run"]
        slots, now = [claim.key[1] for claim in claims], claims[0].values["fired_at"] if claims else at
        if claims and slots[0] > now:
            self._breaks(f"slot {slots[0]} of {plan.id} fired early, at {now}")
        if plan.kind == "once":
            wanted: tuple[list[int], int | None] = [slot], None
        else:
            wanted = self._wanted(plan, slot, now)
        if not claims and plan.missed == "skip":
            if following is None or following <= slot:
                self._breaks(f"{plan.id} went from {slot} to {following}")
        elif (slots, following) != wanted:
            self._breaks(f"{plan.id} ({plan.missed}) fired {slots} at {now} and goes on at {following}, not {wanted}")

    def _wanted(self, plan: SchedulePlan, slot: int, now: int) -> tuple[list[int], int]:
        step = plan.every * _SECOND * (60 if plan.kind == "cron" else 1)
        if plan.missed == "all":
            n = min(_AT_ONCE, max(0, now - slot) // step + 1)
            return [slot + one * step for one in range(n)], slot + n * step
        if slot + step <= now or now - slot > _GRACE:
            return ([slot] if plan.missed == "once" else []), slot + ((now - slot) // step + 1) * step
        return [slot], slot + step

    # -- the end -------------------------------------------------------------------------------------------------

    def behind(self, now: datetime) -> str:
        """What has not happened and should have by the clock that is farthest on; empty: nothing."""
        late = self._server.loop.time() - _OPEN_S
        if any(when < late for when in self._open.values()):
            return "slots were done"
        rows = self._rows("schedules")
        limit = to_micros(now) - 2 * _SECOND
        return "schedules went on" if any((row["next_run"] or limit + 1) <= limit for row in rows) else ""

    def _rows(self, table: str) -> list[dict[str, Any]]:
        shape = shape_of(table)
        return [shape.as_dict(image) for image in self._server.state.tables[table].values()]
