"""The options that every command has, and those that several have."""

from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

__all__ = ["COMMON", "Common", "Count", "Limit", "MaybePlace", "Place"]

_MOST: Final = 1_000_000
_LAST: Final = 2**63 - 1


def _is_count(_: object, value: int | None) -> None:
    if value is not None and not 1 <= value <= _MOST:
        raise ValueError(f"it must be at least 1, and {_MOST:,} at most")


def _is_place(_: object, value: int | None) -> None:
    if value is not None and not 0 <= value < _LAST:
        raise ValueError("it must be 0 or more, and is no version or position so large")


Limit = Annotated[int, Parameter(name=("--limit", "-n"), help="At most so many.", validator=_is_count)]
Count = Annotated[int | None, Parameter(name=("--limit", "-n"), help="End after so many.", validator=_is_count)]
Place = Annotated[int, Parameter(validator=_is_place)]
MaybePlace = Annotated[int | None, Parameter(validator=_is_place)]


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
