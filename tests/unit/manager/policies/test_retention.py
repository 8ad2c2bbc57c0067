"""Which backups are kept: examples, an oracle written in another way, and what must hold of any rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.manager.policies.retention import COUNTS, Rules, Taken, apply

UTC_ZONE, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")


def taken(*times: str) -> list[Taken]:
    return [Taken(one, datetime.fromisoformat(one)) for one in times]


def kept(rules: Rules, backups: list[Taken], zone: ZoneInfo = UTC_ZONE) -> dict[str, str]:
    return {one: why for one, why in apply(rules, zone, backups).items() if why is not None}


def test_rules_that_say_nothing_keep_everything() -> None:
    backups = taken("2026-01-01", "2026-01-02")
    assert set(kept(Rules(), backups)) == {"2026-01-01", "2026-01-02"}
    assert set(kept(Rules(min_keep=1), backups)) == {"2026-01-01", "2026-01-02"}


def test_days_and_further_weeks() -> None:
    """As the documentation explains it: what the days have kept does not use up the weeks."""
    # Monday 2026-06-01 to Sunday 2026-06-28, each day at noon.
    backups = taken(*(f"2026-06-{day:02} 12:00" for day in range(1, 29)))
    assert kept(Rules({"daily": 3, "weekly": 2}), backups) == {
        "2026-06-28 12:00": "daily 1",
        "2026-06-27 12:00": "daily 2",
        "2026-06-26 12:00": "daily 3",
        # The week of the three has a kept backup; the two before it count.
        "2026-06-21 12:00": "weekly 1",
        "2026-06-14 12:00": "weekly 2",
    }


def test_of_a_day_the_newest_is_kept() -> None:
    backups = taken("2026-06-01 06:00", "2026-06-01 18:00", "2026-06-02 06:00")
    assert kept(Rules({"daily": 2}), backups) == {
        "2026-06-02 06:00": "daily 1",
        "2026-06-01 18:00": "daily 2",
    }


def test_the_calendar_is_that_of_the_zone() -> None:
    # In Berlin the first one is of the second of June.
    backups = taken("2026-06-01 22:30", "2026-06-02 21:00")
    assert set(kept(Rules({"daily": 5}), backups)) == {"2026-06-01 22:30", "2026-06-02 21:00"}
    assert set(kept(Rules({"daily": 5}), backups, BERLIN)) == {"2026-06-02 21:00"}


def test_both_of_the_hours_that_the_clock_shows_twice_are_hours() -> None:
    backups = taken("2026-10-25 00:10", "2026-10-25 01:10")
    assert set(kept(Rules({"hourly": 5}), backups, BERLIN)) == {"2026-10-25 00:10", "2026-10-25 01:10"}


def test_weeks_are_iso_weeks() -> None:
    # Monday 2025-12-29 to Sunday 2026-01-04 is week 1 of 2026.
    backups = taken("2025-12-28", "2025-12-29", "2026-01-04")
    assert set(kept(Rules({"weekly": 5}), backups)) == {"2025-12-28", "2026-01-04"}


def test_within_is_counted_from_the_newest_backup() -> None:
    """If backups stop, none goes because of its age."""
    backups = taken("2020-01-01", "2020-01-05", "2020-01-08")
    assert kept(Rules(within=timedelta(days=3)), backups) == {"2020-01-08": "within", "2020-01-05": "within"}


def test_min_keep_and_zero() -> None:
    backups = taken("2026-01-01", "2026-01-02", "2026-01-03")
    assert kept(Rules({"daily": 0}), backups) == {"2026-01-03": "min_keep 1"}
    assert set(kept(Rules({"daily": 1}, min_keep=2), backups)) == {"2026-01-03", "2026-01-02"}
    assert kept(Rules({"last": 1}), []) == {}


# The oracle walks from the newest to the oldest for each option as well, but knows nothing of marks: it has
# two sets, and asks the calendar by text.
FORMATS = {
    "hourly": "%Y-%m-%d %H %z",
    "daily": "%Y-%m-%d",
    "weekly": "%G %V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}


def oracle(rules: Rules, zone: ZoneInfo, backups: list[Taken]) -> set[str]:
    newest_first = sorted(backups, key=lambda one: (one.taken_at, one.id))[::-1]
    if not rules.counts and rules.within is None:
        return {one.id for one in backups}
    keep: set[str] = set()
    go: set[str] = set()
    if newest_first and rules.within is not None:
        keep = {one.id for one in backups if one.taken_at >= newest_first[0].taken_at - rules.within}
    keep |= {one.id for one in newest_first[: rules.counts.get("last", 0)]}
    for name, text in FORMATS.items():
        left = rules.counts.get(name)
        if left is None:
            continue

        def period(one: Taken, text: str = text) -> str:
            return one.taken_at.replace(tzinfo=UTC).astimezone(zone).strftime(text)

        have = {period(one) for one in newest_first if one.id in keep}
        mine: set[str] = set()
        for one in newest_first:
            if one.id in keep | go or period(one) in have:
                continue
            if period(one) in mine:
                go.add(one.id)
            elif left == 0:
                break
            else:
                left -= 1
                mine.add(period(one))
                keep.add(one.id)
    return keep | {one.id for one in newest_first[: rules.min_keep]}


ZONES = st.sampled_from([UTC_ZONE, BERLIN, ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")])
RULES = st.builds(
    Rules,
    st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 5)),
    st.none() | st.integers(0, 2000).map(lambda hours: timedelta(hours=hours)),
    st.integers(1, 3),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Taken]:
    """Backups at any times: some of one moment, some before and after clocks are put back or forward."""
    begin = draw(st.sampled_from([datetime(2026, 3, 20), datetime(2026, 10, 18), datetime(2025, 12, 20)]))
    minutes = draw(st.lists(st.integers(0, 60 * 24 * 60) | st.integers(0, 3000), max_size=40))
    return [Taken(f"{number:03}", begin + timedelta(minutes=one)) for number, one in enumerate(minutes)]


@settings(max_examples=300, deadline=None)
@given(RULES, ZONES, histories())
def test_the_rules_do_what_the_oracle_does(rules: Rules, zone: ZoneInfo, backups: list[Taken]) -> None:
    assert set(kept(rules, backups, zone)) == oracle(rules, zone, backups)


@settings(max_examples=150, deadline=None)
@given(RULES, ZONES, histories())
def test_what_must_hold_of_any_rules(rules: Rules, zone: ZoneInfo, backups: list[Taken]) -> None:
    first = kept(rules, backups, zone)
    # The order in which they are given means nothing.
    assert kept(rules, backups[::-1], zone) == first
    remaining = [one for one in backups if one.id in first]
    # A second time changes nothing.
    assert set(kept(rules, remaining, zone)) == set(first)
    if backups:
        newest = max(backups, key=lambda one: (one.taken_at, one.id))
        assert newest.id in first
        # One more backup takes the place of the newest good one only when it is itself kept.
        later = Taken("later", newest.taken_at + timedelta(minutes=1))
        assert "later" in kept(rules, [*backups, later], zone)
    assert len(first) >= min(len(backups), rules.min_keep)
