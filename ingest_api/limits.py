"""A request against the limits of its key and its customer: 429 beyond them, and headers that say what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ingest_api.key_stores import KeyRecord
from ingest_api.problems import Problem, fault
from runtime.control import ROBOT_ID
from runtime.leases import Leases
from runtime.limit_counter import CounterPort
from runtime.metrics import Metrics
from runtime.windows import Window, day_of, minute_of, month_of
from schemas.codes import Code

#: Robots of today that need not be asked about again.
_MOST_ROBOTS = 100_000


@dataclass(slots=True)
class Allowance:
    """What a request was let in by. `headers` go with its answer, whatever that is."""

    headers: dict[str, str] = field(default_factory=dict)
    #: Subject and window of the monthly quota, where one was counted.
    month: tuple[str, Window] | None = None


@dataclass(frozen=True, slots=True)
class _Limit:
    name: str
    subject: str
    window: Window
    limit: int


class Limits(Protocol):
    """What a route that costs inferences asks."""

    async def take(self, key: KeyRecord) -> Allowance:
        """Count one request. Raises Problem 429 over a limit."""
        ...

    async def admit_robot(self, key: KeyRecord, robot_id: str) -> None:
        """Raises Problem 429 for one robot too many today."""
        ...

    def give_back(self, allowance: Allowance) -> None:
        """The request never reached the log: it does not count for the month. It does for the minute and the day."""
        ...


class NoLimits:
    """ENABLE_RATE_LIMITS=false."""

    async def take(self, key: KeyRecord) -> Allowance:
        return Allowance()

    async def admit_robot(self, key: KeyRecord, robot_id: str) -> None:
        return

    def give_back(self, allowance: Allowance) -> None:
        return


class CountedLimits:
    """Of one event loop. Shortest windows first: what a longer one refuses then costs nothing that is still of use."""

    def __init__(self, counter: CounterPort, metrics: Metrics, now: Callable[[], float] = time.time) -> None:
        self._counter = counter
        self._leases = Leases(counter)
        self._metrics = metrics
        self._now = now
        self._robots: set[tuple[str, str]] = set()
        self._robots_day = ""

    async def take(self, key: KeyRecord) -> Allowance:
        now_s = self._now()
        allowance, tightest = Allowance(), math.inf
        for limit in _limits(key, now_s):
            taken = await self._leases.take(limit.subject, limit.window, limit.limit, now_s)
            if taken is None:
                continue
            if not taken.allowed:
                raise self._refused(limit, now_s)
            if limit.name == "monthly_quota":
                allowance.month = (limit.subject, limit.window)
            share = taken.remaining / limit.limit
            if share < tightest:
                tightest, allowance.headers = share, _headers(limit, taken.remaining, now_s)
        return allowance

    async def admit_robot(self, key: KeyRecord, robot_id: str) -> None:
        limit, now_s = key.limits.max_robots, self._now()
        # What can be no robot is refused by the gate, and takes nobody's place.
        if limit is None or not ROBOT_ID.fullmatch(robot_id):
            return
        day = day_of(now_s)
        if self._robots_day != day.name or len(self._robots) >= _MOST_ROBOTS:
            self._robots, self._robots_day = set(), day.name
        robot = (key.customer_id, robot_id)
        if robot in self._robots:
            return
        admitted = await self._counter.admit_robot(key.customer_id, robot_id, day, limit)
        if admitted is False:
            self._metrics.limit_refusals.labels("max_robots").inc()
            detail = f"{limit} robots a day is what this customer has, and this is another one"
            violation = fault("robot_id", "max_robots", detail)
            raise Problem(Code.QUOTA, detail, violations=[violation], retry_after_s=day.remaining_s(now_s))
        if admitted:
            self._robots.add(robot)

    def give_back(self, allowance: Allowance) -> None:
        if allowance.month is not None:
            self._leases.give_back(*allowance.month)
            allowance.month = None

    def _refused(self, limit: _Limit, now_s: float) -> Problem:
        self._metrics.limit_refusals.labels(limit.name).inc()
        whose = "this key" if limit.name == "key" else "this customer"
        span = {"requests_per_day": "day", "monthly_quota": "month"}.get(limit.name, "minute")
        detail = f"{whose} may send {limit.limit} requests a {span}: wait, or ask for a higher limit"
        return Problem(
            Code.QUOTA,
            detail,
            violations=[fault("request", limit.name, detail)],
            retry_after_s=max(limit.window.remaining_s(now_s), 1.0),
            headers=_headers(limit, 0, now_s),
        )


def _limits(key: KeyRecord, now_s: float) -> list[_Limit]:
    minute, customer, own = minute_of(now_s), f"customer:{key.customer_id}", key.limits
    wanted = [
        ("key", f"key:{key.key_id}", minute, key.rate_limit),
        ("requests_per_minute", customer, minute, own.requests_per_minute),
        ("requests_per_day", customer, day_of(now_s), own.requests_per_day),
        ("monthly_quota", customer, month_of(now_s), own.monthly_quota),
    ]
    return [_Limit(name, subject, window, limit) for name, subject, window, limit in wanted if limit is not None]


def _headers(limit: _Limit, remaining: int, now_s: float) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers, as its drafts up to 06 have it and clients know it. Reset: in seconds."""
    return {
        "ratelimit-limit": str(limit.limit),
        "ratelimit-remaining": str(remaining),
        "ratelimit-reset": str(math.ceil(limit.window.remaining_s(now_s))),
        "ratelimit-policy": f"{limit.limit};w={limit.window.length_s}",
    }
