"""What goes to the terminal: tables and lines without stored control characters, or JSON."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from event_workflow_engine.clock import from_micros, told

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from event_workflow_engine.events import RecordedEvent

__all__ = [
    "as_json",
    "cell",
    "clean",
    "console",
    "event_as_plain",
    "plain",
    "print_json",
    "print_rows",
    "short_time",
    "state_cell",
    "table",
    "time_of",
]

_STATE_STYLES: Final = {
    "COMPLETED": "green",
    "COMPENSATED": "yellow",
    "CANCELLED": "yellow",
    "FAILED": "red",
    "COMPENSATING": "magenta",
    "NEEDS_INTERVENTION": "bold red",
    "PAUSED": "blue",
    "RUNNING": "cyan",
}
_ENDLESS: Final = 100_000  # columns
_UNSEEN: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that steer a terminal or turn text around: control, format, surrogate, line and paragraph."""


def clean(text: object) -> str:
    r"""Text that cannot steer a terminal: control and format characters become escapes such as ``\x1b``.

    Example:
        >>> print(clean("a" + chr(27) + "[31mb"))
        a\x1b[31mb
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(_escaped(char) if unicodedata.category(char) in _UNSEEN else char for char in shown)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def cell(value: object, style: str = "") -> Text:
    """A value from the store as text of a table: no markup in it is read, no control character gets through."""
    return Text("" if value is None else clean(value), style=style)


def state_cell(state: object) -> Text:
    """A saga's state in its colour."""
    return cell(state, _STATE_STYLES.get(str(state), ""))


def console(columns: int = _ENDLESS) -> Console:
    """Standard output. Markup, emoji codes and highlighting are off: stored text is never read as any of them.

    Args:
        columns: How long lines may be where it is no terminal. By default as long as they need be: what reads them
            looks for whole ids and states.
    """
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else columns
    return Console(markup=False, emoji=False, highlight=False, width=width)


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table in the style of all commands; long values fold, so that nothing is cut off."""
    named = any(columns)
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), show_header=named)
    right = set(numbers)
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return made


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Text]], numbers: Iterable[str] = ()) -> None:
    """Write a table."""
    made = table(*columns, numbers=numbers)
    for row in rows:
        made.add_row(*row)
    console().print(made)


def time_of(micros: int | None) -> str:
    """A time of the store as JSON has it, ISO 8601 in UTC; empty where there is none."""
    return "" if micros is None else datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat(timespec="milliseconds")


def short_time(micros: int | None, *, decimals: int = 0) -> str:
    """The same for people: to the second, or with so many decimals of it."""
    return "" if micros is None else told(from_micros(micros), decimals=decimals)


# -- JSON ------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A payload as JSON's own types: a Struct with all its fields, raw JSON decoded."""
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return msgspec.to_builtins(value, str_keys=True)


def event_as_plain(event: RecordedEvent[Any]) -> dict[str, Any]:
    """An event as a JSON object."""
    return {
        "position": event.position,
        "stream": event.stream,
        "version": event.version,
        "type": event.type,
        "id": event.id,
        "recorded_at": event.recorded_at.isoformat(),
        "data": plain(event.data),
        "metadata": msgspec.to_builtins(event.metadata),
    }


def as_json(document: Any) -> str:
    """One line of JSON, in ASCII: no stored character can steer a terminal in it."""
    return json.dumps(document, ensure_ascii=True).replace("\x7f", "\\u007f")


def print_json(document: Any) -> None:
    """Write one JSON document as a line, at once, for readers in a pipe."""
    sys.stdout.write(as_json(document) + "\n")
    sys.stdout.flush()
