"""What a saga waits for, told in full to whoever wrote the test: each time to its end, each retry with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from event_workflow_engine import history as h
from event_workflow_engine.waits import said

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.handle import SagaHandle
    from event_workflow_engine.waits import Wait

__all__ = ["last_errors", "told", "waits_in_words"]

_DECIMALS = 6
"""The virtual clock is moved by hand, to the microsecond: whoever moves it too short must see it."""


async def waits_in_words(handle: SagaHandle[Any]) -> str:
    """What a saga that has not ended waits for, or does.

    Raises:
        SagaNotFoundError: There is no such saga.
    """
    waits = await handle.waits_for()
    if not waits:
        return "is under way"
    return told(waits, last_errors(event.data for event in await handle.history()))


def told(waits: Sequence[Wait], errors: dict[tuple[str, str], str]) -> str:
    """These waits in words, with what the attempts before raised."""
    return ", ".join(said(wait, decimals=_DECIMALS) + _because(errors.get((wait.kind, wait.name))) for wait in waits)


def last_errors(facts: Iterable[Any]) -> dict[tuple[str, str], str]:
    """What the last attempt of each step, or of its compensation, raised; by the kind of wait and the step."""
    errors: dict[tuple[str, str], str] = {}
    for fact in facts:
        if isinstance(fact, h.StepFailed | h.StepUnknown | h.CompensationFailed):
            kind = "undo" if isinstance(fact, h.CompensationFailed) else "attempt"
            error = f"{fact.error_type.rpartition('.')[2]}: {fact.message}"
            errors[kind, fact.step] = f"attempt {fact.attempt} raised {error}"
    return errors


def _because(error: str | None) -> str:
    return "" if error is None else f" ({error})"
