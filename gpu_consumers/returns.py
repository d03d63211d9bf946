"""When robots that were just served will ask again, told from how soon they did so before. Pure.

A robot in closed loop asks again as soon as it is answered; one that plays its chunk out comes much later. The gap
from the end of a batch to the next request is foreseen as TCP foresees a round trip (RFC 6298): the smoothed gap
plus twice its smoothed deviation (half as much as there: who comes later than foreseen costs a wait, not a repeat).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 2.0
#: Robots that are remembered; the one that was served longest ago is forgotten first.
_MOST_ROBOTS = 4096


class Returns:
    """Not thread-safe. Times are in seconds of one monotonic clock."""

    def __init__(self, most_robots: int = _MOST_ROBOTS) -> None:
        self._most_robots = most_robots
        #: Robot -> (smoothed gap, smoothed deviation).
        self._gaps: OrderedDict[str, tuple[float, float]] = OrderedDict()
        #: Robot -> end of its last batch, as long as it has not asked again.
        self._served_s: dict[str, float] = {}
        #: Robot -> the latest it is foreseen back, for those who are foreseen back soon.
        self._due_s: dict[str, float] = {}

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
                self._due_s[robot] = now_s + foreseen_s

    def came(self, robot: str, now_s: float) -> bool:
        """A request of this robot arrived; whether it was expected."""
        expected = self._due_s.pop(robot, None) is not None
        served_s = self._served_s.pop(robot, None)
        if served_s is not None:
            self._remember(robot, now_s - served_s)
        return expected

    def expected_s(self, now_s: float) -> list[float]:
        """Until when those are back who are still to come, ascending; who is overdue is not expected any more."""
        overdue = [robot for robot, due_s in self._due_s.items() if due_s <= now_s]
        for robot in overdue:
            del self._due_s[robot]
        return sorted(self._due_s.values())

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
        for known in (self._gaps, self._served_s, self._due_s):
            known.pop(robot, None)
