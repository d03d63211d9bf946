"""When robots that were just served will ask again, told from how soon they did so before. Pure.

A robot in closed loop asks again as soon as it is answered; one that plays its chunk out comes much later. The gap
from the end of a batch to the next request is foreseen as TCP foresees a round trip (RFC 6298): it takes the smoothed
gap, and at most twice its smoothed deviation more (half as much as there: who comes later than that costs a wait, not
a repeat).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 2.0
#: Robots that are remembered; the one that was served longest ago is forgotten first.
_MOST_ROBOTS = 4096


class Due(NamedTuple):
    """When a robot is back: most likely, and at the latest."""

    likely_s: float
    latest_s: float


class Returns:
    """Not thread-safe. Times are in seconds of one monotonic clock."""

    def __init__(self, most_robots: int = _MOST_ROBOTS) -> None:
        self._most_robots = most_robots
        #: Robot -> (smoothed gap, smoothed deviation).
        self._gaps: OrderedDict[str, tuple[float, float]] = OrderedDict()
        #: Robot -> end of its last batch, as long as it has not asked again.
        self._served_s: dict[str, float] = {}
        #: For those who are foreseen back soon.
        self._due: dict[str, Due] = {}

    def served(self, robots: Iterable[str], now_s: float, soon_s: float) -> None:
        """A batch of these ended. Only who is foreseen back within `soon_s` is expected."""
        for robot in robots:
            self._served_s[robot] = now_s
            gap = self._gaps.get(robot)
            if gap is None:
                self._remember(robot, None)
                continue
            foreseen_s = gap[0] + _DEVIATIONS * gap[1]
            if foreseen_s <= soon_s:
                self._due[robot] = Due(now_s + gap[0], now_s + foreseen_s)

    def came(self, robot: str, now_s: float) -> bool:
        """A request of this robot arrived; whether it was expected."""
        expected = self._due.pop(robot, None) is not None
        served_s = self._served_s.pop(robot, None)
        if served_s is not None:
            self._remember(robot, now_s - served_s)
        return expected

    def expected(self, now_s: float) -> list[Due]:
        """Those who are still to come, by when they are likely back; who is overdue is not expected any more."""
        overdue = [robot for robot, due in self._due.items() if due.latest_s <= now_s]
        for robot in overdue:
            del self._due[robot]
        return sorted(self._due.values())

    def _remember(self, robot: str, gap_s: float | None) -> None:
        known = self._gaps.pop(robot, None)
        if gap_s is not None:
            if known is None:
                known = (gap_s, gap_s / 2)
            else:
                mean_s, deviation_s = known
                deviation_s += _DEVIATION_GAIN * (abs(gap_s - mean_s) - deviation_s)
                known = (mean_s + _GAIN * (gap_s - mean_s), deviation_s)
        if known is not None:
            self._gaps[robot] = known
        while len(self._served_s) > self._most_robots:
            self._forget(next(iter(self._served_s)))
        while len(self._gaps) > self._most_robots:
            self._forget(next(iter(self._gaps)))

    def _forget(self, robot: str) -> None:
        for known in (self._gaps, self._served_s, self._due):
            known.pop(robot, None)
