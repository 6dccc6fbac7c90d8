"""Importing what a user names: the name comes from whoever typed the command, never from the store."""

from __future__ import annotations

import pkgutil
import sys
import traceback
from pathlib import Path
from typing import Any

from event_workflow_engine.errors import DefinitionError

__all__ = ["imported"]


def imported(place: str, said: str) -> Any:
    """What is at `module:object`, or the module. As with other tools that take one, modules in the current folder are
    found.

    Args:
        place: Where it is.
        said: How the command line names it, for people.

    Raises:
        DefinitionError: It cannot be imported: it is not there, or its code raises.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return pkgutil.resolve_name(place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import runs a user's code, which may exit
        raise DefinitionError(
            f"{said} cannot be imported ({type(error).__name__}: {error}{_where(error)}): it is module:object, and is "
            f"looked for in {here} and in PYTHONPATH"
        ) from error


def _where(error: BaseException) -> str:
    """The line of the user's code that raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen ") or filename in (__file__, pkgutil.__file__) or "/importlib/" in filename
