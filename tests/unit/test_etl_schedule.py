"""When the ETL is due, and how instructions are told apart."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from schemas.instructions import instruction_hash, normalised
from sinks.etl.schedule import MOST_DAYS, days_due, is_due

DAYS = st.dates(date(2026, 1, 1), date(2026, 12, 31))


def at(day: date, hour: int) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def test_yesterday_is_due_from_the_hour_on() -> None:
    today = date(2026, 11, 24)
    done = {today - timedelta(days=back) for back in range(2, 20)}
    assert days_due(at(today, 1), 2, done) == []
    assert days_due(at(today, 2), 2, done) == [today - timedelta(days=1)]


@given(DAYS, st.integers(0, 23), st.integers(0, 23), st.sets(st.integers(1, 20)))
def test_days_are_caught_up_on_once_oldest_first_and_never_today(
    today: date, now_hour: int, hour: int, done_back: set[int]
) -> None:
    done = {today - timedelta(days=back) for back in done_back}
    due = days_due(at(today, now_hour), hour, done)
    assert due == sorted(set(due) - done)
    assert len(due) <= MOST_DAYS
    assert all(day < today for day in due)
    assert (today - timedelta(days=1) in due) == (now_hour >= hour and 1 not in done_back)


@given(DAYS, st.integers(0, 23), st.integers(0, 23))
def test_what_runs_daily_runs_once_a_day(today: date, now_hour: int, hour: int) -> None:
    now = at(today, now_hour)
    assert is_due(now, hour, None) == is_due(now, hour, today - timedelta(days=1)) == (now_hour >= hour)
    assert not is_due(now, hour, today)


@given(st.text(max_size=80))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
    assert instruction_hash(text) == instruction_hash(normalised(text))


def test_case_blanks_and_punctuation_make_no_other_instruction() -> None:
    assert instruction_hash("Pick up the RED block!") == instruction_hash("  pick up the  red block ")
    assert instruction_hash("pick up the red block") != instruction_hash("pick up the blue block")
