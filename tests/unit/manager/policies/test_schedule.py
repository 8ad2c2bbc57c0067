"""When policies run: against a clock that is looked at every minute, also where it is put forward or back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.errors import InvalidInput
from backupfw.manager.policies import schedule
from backupfw.manager.policies.schedule import Schedule

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
#: Days on which clocks are put forward or back there, in 2026.
SHIFTS = {
    BERLIN: ("2026-03-29", "2026-10-25"),
    NEW_YORK: ("2026-03-08", "2026-11-01"),
    LORD_HOWE: ("2026-10-04", "2026-04-05"),
}


def read(cron: str, zone: str = "UTC", **more: object) -> Schedule:
    values = {"jitter": 0, "start_window": 60, "completion_window": None, **more}
    return schedule.read(cron, zone, **values)  # type: ignore[arg-type]


def local_times(found: Schedule, begin: str, count: int) -> list[str]:
    """Return the next runs as clocks on a wall show them, with the offset."""
    runs = itertools.islice(found.all_after(datetime.fromisoformat(begin)), count)
    return [run.replace(tzinfo=UTC).astimezone(found.zone).isoformat(" ", "minutes") for run in runs]


@pytest.mark.parametrize(
    ("zone", "cron", "begin", "expected"),
    [
        # Forward: 02:30 does not exist, so it is the first time that does.
        (BERLIN, "30 2 * * *", "2026-03-28 12:00", ["2026-03-29 03:00+02:00", "2026-03-30 02:30+02:00"]),
        (NEW_YORK, "30 2 * * *", "2026-03-07 12:00", ["2026-03-08 03:00-04:00", "2026-03-09 02:30-04:00"]),
        # By half an hour there: from 02:00 to 02:30.
        (LORD_HOWE, "15 2 * * *", "2026-10-03 12:00", ["2026-10-04 02:30+11:00", "2026-10-05 02:15+11:00"]),
        # Back: 02:30 is there twice, and the run once, at the first.
        (BERLIN, "30 2 * * *", "2026-10-24 12:00", ["2026-10-25 02:30+02:00", "2026-10-26 02:30+01:00"]),
        (NEW_YORK, "30 1 * * *", "2026-10-31 12:00", ["2026-11-01 01:30-04:00", "2026-11-02 01:30-05:00"]),
        (LORD_HOWE, "45 1 * * *", "2026-04-04 12:00", ["2026-04-05 01:45+11:00", "2026-04-06 01:45+10:30"]),
        # An expression of every hour runs in both.
        (
            BERLIN,
            "0 * * * *",
            "2026-10-24 23:30",
            ["2026-10-25 02:00+02:00", "2026-10-25 02:00+01:00", "2026-10-25 03:00+01:00"],
        ),
    ],
)
def test_clocks_that_are_put_forward_and_back(zone: str, cron: str, begin: str, expected: list[str]) -> None:
    assert local_times(read(cron, zone), begin, len(expected)) == expected


def test_a_moment_in_the_hour_that_is_there_twice_is_not_taken_for_the_first_one() -> None:
    """The second 02:10 comes after the run of 02:30; the next one is tomorrow's."""
    found = read("30 2 * * *", BERLIN)
    second = datetime(2026, 10, 25, 1, 10)
    assert found.after(second) == datetime(2026, 10, 26, 1, 30)
    assert found.latest(second) == datetime(2026, 10, 25, 0, 30)


def on_the_wall(
    cron_hour: int, cron_minute: int, zone: str, begin: datetime, days: int
) -> Iterator[datetime]:
    """Yield a daily run's times by looking at the wall clock every minute: what cron's manual says."""
    place = ZoneInfo(zone)
    done: set[object] = set()
    at = begin
    before = at.replace(tzinfo=UTC).astimezone(place)
    for _ in range(days * 24 * 60):
        at += timedelta(minutes=1)
        local = at.replace(tzinfo=UTC).astimezone(place)
        wanted = local.replace(hour=cron_hour, minute=cron_minute, fold=0)
        reached = (local.hour, local.minute) == (cron_hour, cron_minute)
        # The clock was put forward over it.
        jumped = before.date() == local.date() and before.time() < wanted.time() <= local.time()
        if (reached or jumped) and local.date() not in done:
            done.add(local.date())
            yield at
        before = local


@settings(max_examples=12, deadline=None)
@given(
    zone=st.sampled_from(sorted(SHIFTS)),
    which=st.integers(0, 1),
    hour=st.integers(0, 3),
    minute=st.sampled_from([0, 15, 30, 45]),
)
def test_a_daily_run_is_when_somebody_who_looks_at_the_clock_would_start_it(
    zone: str, which: int, hour: int, minute: int
) -> None:
    begin = datetime.fromisoformat(SHIFTS[zone][which]) - timedelta(days=1)
    expected = list(on_the_wall(hour, minute, zone, begin, 3))
    found = read(f"{minute} {hour} * * *", zone)
    runs = list(itertools.takewhile(lambda run: run <= begin + timedelta(days=3), found.all_after(begin)))
    assert runs == expected


CRONS = ["30 2 * * *", "0 * * * *", "*/20 1-3 * * *", "15 0,2 * * SUN", "0 3 L * *", "10 1 * 3,10,11 *"]


@settings(max_examples=80, deadline=None)
@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from(sorted(SHIFTS)),
    which=st.integers(0, 1),
    minutes=st.integers(-3000, 3000),
)
def test_the_runs_are_the_same_wherever_one_begins_to_look(
    cron: str, zone: str, which: int, minutes: int
) -> None:
    """So what a process computes after an outage is what another one has computed before it."""
    found = read(cron, zone)
    shift = datetime.fromisoformat(SHIFTS[zone][which])
    begin, end = shift - timedelta(days=4), shift + timedelta(days=4)
    moment = shift + timedelta(minutes=minutes)
    runs = list(itertools.takewhile(lambda run: run < end, found.all_after(begin)))
    later = [run for run in runs if run > moment]
    earlier = [run for run in runs if run <= moment]
    assert runs == sorted(set(runs))
    assert all(ours == theirs for ours, theirs in zip(found.all_after(moment), later[:5], strict=False))
    first, last = found.after(moment), found.latest(moment)
    assert first is not None
    assert last is not None
    assert first == (later[0] if later else first) > moment
    assert last == (earlier[-1] if earlier else last) <= moment


def test_macros_are_expressions() -> None:
    for macro, cron in schedule.MACROS.items():
        assert read(macro.upper()).cron == cron
        assert read(macro).after(datetime(2026, 6, 1)) is not None


@pytest.mark.parametrize(
    ("cron", "problem"),
    [
        ("0 0 31 2 *", "day-of-month"),
        ("0 0 30 2 *", "day-of-month"),
        ("60 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day-of-week"),
        ("0 0 * *", "five fields"),
        ("0 0 0 * * *", "five fields"),
        ("@reboot", "five fields"),
        ("", "five fields"),
        ("x x x x x", "minute"),
        ("* * * * *", "more often"),
        ("*/4 * * * *", "more often"),
        ("0,2 3 * * *", "more often"),
        ("\u0661 * * * *", "minute"),
    ],
)
def test_an_expression_that_is_refused(cron: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=r"^schedule\.cron: ") as refused:
        read(cron).check()
    assert problem in str(refused.value)


@pytest.mark.parametrize("day", range(1, 8))
def test_an_expression_that_is_every_forty_years_is_one(day: int) -> None:
    """To look at hundreds of its runs would take seconds, and lead past the year 9999."""
    cron = f"0 0 * 2 {day}#5"
    read(cron).check()
    assert read(cron).after(datetime(2026, 1, 1)) is not None


@pytest.mark.parametrize(
    "zone", ["", "Berlin", "localtime", "../../etc/passwd", "/etc/localtime", "UTC\0", "Europe"]
)
def test_a_zone_that_is_refused(zone: str) -> None:
    with pytest.raises(InvalidInput, match=r"^schedule\.timezone: "):
        read("@daily", zone)


@settings(max_examples=150, deadline=None)
@given(st.text("0123456789*/-,L#W SUNMONjan@\u0663", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read(text)
        found.check()
    except InvalidInput:
        return
    assert found.after(datetime(2026, 1, 1)) is not None


def test_the_jitter_spreads_volumes_and_stays_in_the_window() -> None:
    found = read("@daily", jitter=None)
    assert found.jitter == 900
    offsets = {found.offset(f"volume {number}") for number in range(500)}
    assert len(offsets) > 350
    assert max(offsets) < timedelta(minutes=15)
    assert found.offset("volume 1") == read("@hourly", jitter=None).offset("volume 1")
    assert read("@daily", jitter=None, start_window=10).jitter == 300
    assert read("@daily").offset("volume 1") == timedelta(0)
    with pytest.raises(InvalidInput, match=r"^schedule\.jitter: "):
        read("@daily", jitter=600, start_window=10)
