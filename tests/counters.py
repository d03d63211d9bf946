"""A shared counter without Valkey, for decisions that only need what it answers."""

from __future__ import annotations

from collections import Counter

from runtime.windows import Window


class DictCounter:
    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.robots: dict[tuple[str, str], set[str]] = {}
        self.away = False
        self.asked = 0
        self.closed = False

    async def add(self, subject: str, window: Window, amount: int = 1) -> int | None:
        self.asked += 1
        if self.away:
            return None
        self.counts[subject, window.name] += amount
        return self.counts[subject, window.name]

    async def admit_robot(self, customer_id: str, robot_id: str, day: Window, limit: int) -> bool | None:
        self.asked += 1
        if self.away:
            return None
        robots = self.robots.setdefault((customer_id, day.name), set())
        if robot_id in robots or len(robots) < limit:
            robots.add(robot_id)
            return True
        return False

    async def close(self) -> None:
        self.closed = True
