"""When something is due next: intervals that do not drift, cron lines over changes of daylight saving time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.clock import from_micros, to_micros
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.triggers import check_cron, check_interval, next_cron, next_interval

MINUTE = timedelta(minutes=1)
CHANGES = {
    "Europe/Amsterdam": [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)],
    "America/New_York": [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)],
    "Australia/Lord_Howe": [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)],
    "UTC": [datetime(2026, 3, 29, 1, tzinfo=UTC)],
}


def brute_force(minutes: set[int], hours: set[int], zone: str, start: datetime, end: datetime) -> list[datetime]:
    """Minute by minute: where the wall clock shows a slot for the first time, or has jumped over one."""
    place, found = ZoneInfo(zone), []
    now = start
    before = (now - MINUTE).astimezone(place)
    while now <= end:
        local = now.astimezone(place)
        shown = local.replace(tzinfo=None)
        first = shown if local.fold == 0 else None
        passed = before.replace(tzinfo=None) + MINUTE
        skipped = []
        while passed < shown:
            skipped.append(passed)
            passed += MINUTE
        if any(one.minute in minutes and one.hour in hours for one in (*skipped, *([first] if first else []))):
            found.append(now)
        before = local
        now += MINUTE
    return found


def slots(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    found = []
    after = to_micros(start - MINUTE)
    while (slot := from_micros(next_cron(expression, zone, after))) <= end:
        found.append(slot)
        after = to_micros(slot)
    return found


@given(
    st.sampled_from([(zone, change) for zone, changes in CHANGES.items() for change in changes]),
    st.sets(st.sampled_from(range(0, 60, 5)), min_size=1, max_size=4),
    st.sets(st.integers(0, 23), min_size=1, max_size=8) | st.just(set(range(24))) | st.just({1, 2, 3}),
    st.integers(0, 600),
)
def test_cron_agrees_with_looking_at_the_wall_clock_each_minute(
    place: tuple[str, datetime], minutes: set[int], hours: set[int], earlier: int
) -> None:
    zone, change = place
    start, end = change - timedelta(minutes=earlier), change + timedelta(hours=10)
    expression = f"{','.join(map(str, sorted(minutes)))} {','.join(map(str, sorted(hours)))} * * *"
    assert slots(expression, zone, start, end) == brute_force(minutes, hours, zone, start, end)


def test_the_days_that_are_told_about() -> None:
    def at(zone: str, day: datetime) -> list[str]:
        found = slots("30 2 * * *", zone, day, day + timedelta(days=1))
        return [one.strftime("%d %H:%M") for one in found]

    assert at("Europe/Amsterdam", datetime(2026, 3, 28, 12, tzinfo=UTC)) == ["29 01:00"]
    assert at("Europe/Amsterdam", datetime(2026, 10, 24, 12, tzinfo=UTC)) == ["25 00:30"]
    # The whole of 30 December 2011 was left out: at midnight it was the 31st.
    whole_day = slots(
        "0 12 30 12 *", "Pacific/Apia", datetime(2011, 12, 1, tzinfo=UTC), datetime(2012, 1, 1, tzinfo=UTC)
    )
    assert whole_day == [datetime(2011, 12, 30, 10, tzinfo=UTC)]


@given(st.integers(0, 10**15), st.integers(1, 10**12), st.integers(-(10**13), 10**16))
def test_intervals_do_not_drift(start: int, interval: int, after: int) -> None:
    found = next_interval(start, interval, after)
    assert found > after
    assert (found - start) % interval == 0
    assert found == start or found - interval <= after


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "x * * * *", "0 0 30 2 *", "@daily"]
)
def test_bad_cron_lines_are_named(expression: str) -> None:
    with pytest.raises(DefinitionError, match="cron line") as raised:
        check_cron(expression, "UTC")
    assert repr(expression) in str(raised.value)


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../etc/passwd", "/etc/localtime", "Europe"])
def test_bad_zones_are_named(zone: str) -> None:
    with pytest.raises(DefinitionError, match="time zone") as raised:
        check_cron("* * * * *", zone)
    assert repr(zone) in str(raised.value)


@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf"), "soon", None, timedelta(days=-1), 10**12])
def test_bad_delays_are_named(interval: object) -> None:
    with pytest.raises(DefinitionError, match="delay="):
        check_interval(interval, "delay", zero=True)  # type: ignore[arg-type]


def test_an_interval_is_above_zero_and_a_delay_need_not_be() -> None:
    assert check_interval(0, "delay", zero=True) == 0
    assert check_interval(timedelta(milliseconds=1), "interval") == 1000
    for none in (0, 1e-9):
        with pytest.raises(DefinitionError, match="interval="):
            check_interval(none, "interval")
