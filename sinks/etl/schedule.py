"""When what is due: pure rules of the scheduler."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime, timedelta

#: Days that are caught up on after the process was away.
MOST_DAYS = 7


def days_due(now: datetime, hour: int, done: Collection[date]) -> list[date]:
    """Days whose ETL is to run, the oldest first: all but today, from `hour` UTC of the day after on.

    done: days that are finished. Of earlier days only the last MOST_DAYS are looked at.
    """
    last = now.date() - timedelta(days=1 if now.hour >= hour else 2)
    candidates = [last - timedelta(days=back) for back in range(MOST_DAYS)]
    return sorted(day for day in candidates if day not in done)


def is_due(now: datetime, hour: int, last: date | None) -> bool:
    """Whether what runs once a day, from `hour` UTC on, is to run. last: the day on which it last did."""
    return now.hour >= hour and (last is None or last < now.date())
