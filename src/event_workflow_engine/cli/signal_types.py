"""What a signal's payload is to be: looked up in a user's code, before anything is sent."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from event_workflow_engine.cli.importing import imported
from event_workflow_engine.codecs import JSON
from event_workflow_engine.errors import DecodeError, DefinitionError, EncodeError
from event_workflow_engine.saga import Signal

if TYPE_CHECKING:
    from event_workflow_engine.history import Raw

__all__ = ["check_payload"]


def check_payload(name: str, payload: Raw, target: str) -> None:
    """Refuse what would be raised in the saga's code.

    Args:
        name: The signal's name.
        payload: What goes with it.
        target: Where its `Signal` is.

    Raises:
        EncodeError: It is not of the signal's type.
        DefinitionError: There is no such `Signal`, or the code cannot be imported.
    """
    wanted = _signal_at(target, name)
    try:
        JSON.decode(payload, wanted.type, f"signal {name!r}")
    except DecodeError as error:
        raise EncodeError(f"{error}: nothing was sent") from error


def _signal_at(target: str, name: str) -> Signal[Any]:
    said = f"--app {target}"
    found = imported(target, said)
    if not isinstance(found, Signal | ModuleType):  # a saga or an engine: its signals stand beside it
        found = imported(target.partition(":")[0], said)
    for one in vars(found).values() if isinstance(found, ModuleType) else [found]:
        if isinstance(one, Signal) and one.name == name:
            return one
    raise DefinitionError(
        f"{said}: it is no Signal named {name!r}, and there is none beside it: name the Signal, or its module"
    )
