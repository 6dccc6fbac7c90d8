"""``:name`` parameters, as every backend's SQL has them, in the numbered form that PostgreSQL takes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["Numbered", "numbered", "without_literals"]

_TOKEN: Final = re.compile(
    r"""
      [eE]'(?:\\.|''|[^'\\])*'          # a string with escapes
    | '(?:''|[^'])*'                    # a string
    | "(?:""|[^"])*"                    # a quoted name
    | --[^\n]*                          # a comment
    | /\*.*?\*/
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$   # a dollar-quoted string
    | ::|:=
    | :(?P<name>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)


class Numbered(NamedTuple):
    """SQL with numbered parameters.

    Attributes:
        sql: It has ``$1`` where the first of `names` was.
        names: The parameters in the order of their numbers.
    """

    sql: str
    names: tuple[str, ...]


@lru_cache(maxsize=1024)
def numbered(sql: str) -> Numbered:
    """`sql` with its ``:name`` parameters numbered; what is in strings, quoted names and comments is left alone."""
    names: dict[str, int] = {}

    def number(token: re.Match[str]) -> str:
        name = token["name"]
        return token[0] if name is None else f"${names.setdefault(name, len(names) + 1)}"

    text = _TOKEN.sub(number, sql)
    return Numbered(text, tuple(names))


def without_literals(sql: str) -> str:
    """`sql` with a space in place of every comment, string and parameter; quoted names stay."""
    return _TOKEN.sub(lambda token: token[0] if token[0].startswith(('"', ":")) else " ", sql)
