"""When something is due next: pure arithmetic over instants, intervals and cron lines with time zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.clock import Duration, from_micros, seconds, to_micros
from event_workflow_engine.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from zoneinfo import ZoneInfo

__all__ = ["check_cron", "check_interval", "next_cron", "next_interval", "rule_in_words"]

_MICROS: Final = 1_000_000
_LONGEST: Final = 100 * 366 * 24 * 3600.0
_HOUR: Final = timedelta(hours=1)
_FIELDS: Final = 5
_WIDEST_GAP: Final = 26 * _HOUR
"""Zones have left out a whole day, to change sides of the date line."""


def check_interval(interval: Duration, what: str, *, zero: bool = False) -> int:
    """An interval in microseconds.

    Raises:
        DefinitionError: It is not finite, negative, zero where that makes no sense, or longer than a century.
    """
    try:
        length = seconds(interval)
        wrong = not 0 <= length <= _LONGEST or (length < 1 / _MICROS and not zero)
    except (TypeError, ValueError):
        raise DefinitionError(f"{what}={interval!r}: seconds or a timedelta") from None
    if wrong:
        raise DefinitionError(f"{what}={interval!r}: {'from 0' if zero else 'above 0'} up to a century, and finite")
    return int(length * _MICROS)


def next_interval(start: int, interval: int, after: int) -> int:
    """The first slot behind `after` of those at start, start + interval, …: slots do not drift."""
    if after < start:
        return start
    return start + ((after - start) // interval + 1) * interval


def rule_in_words(kind: str, spec: Mapping[str, Any]) -> str:
    """When a task runs, as it is told to people.

    Args:
        kind: ``once``, ``every`` or ``cron``.
        spec: The rule as it is stored.

    Example:
        >>> rule_in_words("every", {"interval": 90_000_000})
        'every 90 s'
        >>> rule_in_words("cron", {"expression": "0 2 * * *", "tz": "Europe/Amsterdam"})
        '0 2 * * * in Europe/Amsterdam'
    """
    if kind == "every":
        return f"every {spec['interval'] / _MICROS:g} s"
    return f"{spec['expression']} in {spec['tz']}" if kind == "cron" else "once"


def check_cron(expression: str, zone: str) -> None:
    """Check a cron line and its zone.

    Raises:
        DefinitionError: One of them is wrong, or the line never comes due.
    """
    from cronsim import CronSim, CronSimError  # noqa: PLC0415 - not at import: most programs have no cron line

    _zone(zone)
    given: object = expression
    if not isinstance(given, str):
        raise DefinitionError(f"cron {given!r}: a line of {_FIELDS} fields, as in crontab(5)")
    if len(expression.split()) != _FIELDS:
        raise DefinitionError(f"cron line {expression!r} cannot be read: it has five fields, as in crontab(5)")
    try:
        next(CronSim(expression, datetime(2024, 1, 1)))  # noqa: DTZ001 - only whether it can be read
    except (CronSimError, StopIteration, TypeError) as error:
        raise DefinitionError(f"cron line {expression!r} cannot be read, or never comes due: {error}") from None


def next_cron(expression: str, zone: str, after: int) -> int:
    """The first slot of a cron line behind `after`.

    A slot in the hour that spring leaves out fires once, at the first instant that is valid; one in the hour that
    autumn repeats fires once, at the first of both.
    """
    place = _zone(zone)
    local = from_micros(after).astimezone(place).replace(tzinfo=None, fold=0)
    # An hour and more back: the local time of `after` may be one that autumn repeats.
    for slot in _local_slots(expression, local - 3 * _HOUR):
        instant = to_micros(_first_instant(slot, place))
        if instant > after:
            return instant
    raise DefinitionError(f"cron line {expression!r} never comes due again")


def _local_slots(expression: str, start: datetime) -> Iterator[datetime]:
    from cronsim import CronSim  # noqa: PLC0415 - as above

    # Naive, hence without daylight saving: which instant a wall-clock time is, is decided below.
    yield from CronSim(expression, start)


def _first_instant(local: datetime, place: ZoneInfo) -> datetime:
    first = local.replace(tzinfo=place, fold=0)
    instant = first.astimezone(UTC)
    if instant.astimezone(place).replace(tzinfo=None) == local:
        return instant
    # The wall clock never shows it: the first instant behind the gap is where the offset changes.
    low, high = instant - _WIDEST_GAP, instant + _WIDEST_GAP
    before = low.astimezone(place).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if middle.astimezone(place).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


@lru_cache(maxsize=64)
def _zone(name: str) -> Any:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - as above

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        raise DefinitionError(f"time zone {name!r} is not known here: {error}") from None
