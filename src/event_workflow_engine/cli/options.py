"""The options that every command has."""

from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

__all__ = ["COMMON", "Common"]


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What every command on a store takes.

    Attributes:
        url: Which store.
        as_json: One JSON document, or one for each line where the command follows the store.
    """

    url: Annotated[str, Parameter(name=("--url", "-u"), env_var="EWE_URL", help="The store.")] = "sqlite:///ewe.db"
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of a table.")] = False


COMMON: Final = Common()
"""The defaults."""
