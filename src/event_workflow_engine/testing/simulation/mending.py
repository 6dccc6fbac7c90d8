"""The code that sagas need becomes what all processes have, when all has gone wrong that is to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.row_images import shape_of

if TYPE_CHECKING:
    from event_workflow_engine.testing.simulation.plan import Code, Plan
    from event_workflow_engine.testing.simulation.world import World

__all__ = ["Mending"]

_STANDS_S: Final = 30.0
"""How long a saga has to go on when matching code was registered."""


class Mending:
    """What an operator does: deploys the code that fits.

    A saga that went on with changed code can go on with that alone, so it may need that again.

    Args:
        world: Whose processes are given code.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._choices = _choices(world.plan)
        self._codes: dict[str, Code] = {saga: codes[0] for saga, codes in self._choices.items() if codes[0] != "old"}
        self._tried = dict.fromkeys(self._choices, 0)
        self._look_at = 0.0

    async def begin(self) -> None:
        """Have all processes know all versions, as they are meant."""
        await self._deploy(anew=False)

    async def look(self) -> None:
        """Give sagas that still stand the other code that there was."""
        if not self._choices or self._world.loop.time() < self._look_at:
            return
        shape = shape_of("sagas")
        rows = [shape.as_dict(image) for image in self._world.server.state.tables["sagas"].values()]
        stand = [
            row
            for row in rows
            if row["state"] == WorkflowState.NEEDS_INTERVENTION.value and row["saga"] in self._choices
        ]
        for row in stand:
            saga = row["saga"]
            choices = self._choices[saga]
            self._tried[saga] += 1
            if self._tried[saga] == len(choices):
                self._world.invariants.breaks(f"{row['id']} stands under all code that there was: {choices}")
            self._codes[saga] = choices[self._tried[saga] % len(choices)]
        if stand:
            await self._deploy(anew=True)

    async def _deploy(self, *, anew: bool) -> None:
        for place in self._world.places:
            if anew or place.mixed or place.codes != self._codes:
                place.codes = dict(self._codes)
                await place.restart()
        self._look_at = self._world.loop.time() + _STANDS_S


def _choices(plan: Plan) -> dict[str, list[Code]]:
    """The code of each saga that makes it go on, the one that is meant first."""
    used: dict[str, set[Code]] = {}
    for deploy in plan.deploys:
        for saga, code in deploy.codes.items():
            used.setdefault(saga, set()).add(code)
    for request in plan.requests:
        if request.what == "upgrade":
            used.setdefault(request.saga, set()).add("both")
    found: dict[str, list[Code]] = {}
    for saga, codes in used.items():
        meant: Code = "both" if codes & {"both", "new"} else "old"
        changed: list[Code] = [code for code in ("reordered", "renamed") if code in codes]
        found[saga] = [meant, *changed]
    return found
