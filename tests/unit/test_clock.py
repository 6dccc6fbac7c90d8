"""The clock, and times as they are stored."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.clock import EPOCH, SystemClock, from_micros, seconds, to_micros, told

zones = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))


@given(st.datetimes(min_value=datetime(1900, 1, 2), max_value=datetime(2200, 1, 1), timezones=zones))  # noqa: DTZ001
def test_stored_times_come_back_to_the_microsecond(when: datetime) -> None:
    assert from_micros(to_micros(when)) == when
    assert from_micros(to_micros(when)).tzinfo is UTC


@given(st.integers(-(10**15), 10**16))
def test_microseconds_come_back(micros: int) -> None:
    assert to_micros(from_micros(micros)) == micros


def test_the_epoch_is_zero() -> None:
    assert to_micros(EPOCH) == 0
    assert from_micros(1_500_000) == EPOCH + timedelta(seconds=1.5)


@pytest.mark.parametrize(
    ("decimals", "said"),
    [(0, "2026-01-01 22:59:59Z"), (3, "2026-01-01 22:59:59.1Z"), (6, "2026-01-01 22:59:59.10002Z")],
)
def test_a_time_for_people_is_in_utc_and_says_so(decimals: int, said: str) -> None:
    eastern = datetime(2026, 1, 2, 0, 59, 59, 100_020, timezone(timedelta(hours=2)))
    assert told(eastern, decimals=decimals) == said


def test_a_bare_number_is_seconds() -> None:
    assert seconds(2) == 2.0
    assert seconds(0.25) == 0.25
    assert seconds(timedelta(minutes=2)) == 120.0


def test_now_is_aware_and_utc() -> None:
    now = SystemClock().now()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


async def test_what_has_passed_is_not_waited_for() -> None:
    clock = SystemClock()
    waiting = clock.sleep_until(clock.now() - timedelta(days=1))
    with pytest.raises(StopIteration):  # it ends without a single wait
        waiting.send(None)


async def test_it_waits_until_the_clock_shows_it() -> None:
    clock = SystemClock()
    when = clock.now() + timedelta(milliseconds=20)
    await clock.sleep_until(when)
    assert clock.now() >= when


@pytest.mark.parametrize("back", [timedelta(), timedelta(hours=1)], ids=["set on", "set back and on again"])
async def test_a_clock_that_is_set_is_followed_within_a_second(back: timedelta) -> None:
    """Also one that was set right again while somebody had begun to wait by the wrong time."""

    class Set(SystemClock):
        off = timedelta()

        def now(self) -> datetime:
            return super().now() + self.off

    clock = Set()
    when = clock.now() + timedelta(hours=1)
    clock.off = -back
    waiting = asyncio.create_task(clock.sleep_until(when))
    await asyncio.sleep(0)  # it has begun to wait
    clock.off = timedelta(hours=1)
    async with asyncio.timeout(2):
        await waiting


async def test_waiting_can_be_cancelled() -> None:
    clock = SystemClock()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await clock.sleep_until(clock.now() + timedelta(days=400))
