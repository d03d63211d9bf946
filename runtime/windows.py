"""The windows that limits hold for: whole minutes, days and months of the UTC clock. Pure.

Fixed windows are exact: one counter each, which INCR raises and tells in one step, whoever asks. A sliding window
would be smoother at its edges and needs a list of times, or an estimate that lets through more than was said.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

_MINUTE_S = 60
_DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Window:
    """`start_s` to `end_s`, Unix epoch. `name` says in a key which one it is."""

    name: str
    start_s: int
    end_s: int

    def remaining_s(self, now_s: float) -> float:
        return max(self.end_s - now_s, 0.0)

    @property
    def length_s(self) -> int:
        return self.end_s - self.start_s


def minute_of(now_s: float) -> Window:
    start = int(now_s) // _MINUTE_S * _MINUTE_S
    return Window(f"minute:{start}", start, start + _MINUTE_S)


def day_of(now_s: float) -> Window:
    start = int(now_s) // _DAY_S * _DAY_S
    return Window(f"day:{start}", start, start + _DAY_S)


def month_of(now_s: float) -> Window:
    first = datetime.fromtimestamp(now_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return Window(f"month:{first:%Y-%m}", int(first.timestamp()), int(following.timestamp()))


def first_day_of_month(now_s: float) -> date:
    return datetime.fromtimestamp(month_of(now_s).start_s, UTC).date()
