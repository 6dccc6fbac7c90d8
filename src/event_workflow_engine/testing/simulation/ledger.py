"""What the sagas of a simulation did to the outside world, which does not crash with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Effect", "Ledger"]


class Effect(msgspec.Struct, frozen=True):
    """One line. ``did``: the action has happened; ``undid``: it was undone."""

    what: Literal["did", "undid"]
    saga: str
    step: str
    key: str


class Ledger:
    """It only ever grows.

    Attributes:
        effects: In order.
    """

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def note(self, what: Literal["did", "undid"], saga: str, step: str, key: str) -> None:
        """Something happened."""
        self.effects.append(Effect(what, saga, step, key))

    def of(self, saga: str, step: str) -> Iterator[Effect]:
        """What happened for a step."""
        return (one for one in self.effects if one.saga == saga and one.step == step)
