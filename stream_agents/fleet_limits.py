"""The limits of customers whose robots produce to Kafka themselves: nobody stood at a door for them, so the gate does.

Windows are those of the broker's append time, so that a backlog counts for the minutes that it came in. Counters
are the same that API processes use; blocks of them are leased, so that most records cost no question to Valkey.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.customers import CustomerList
from runtime.leases import Leases
from runtime.limit_counter import CounterPort
from runtime.metrics import Metrics
from runtime.windows import day_of, minute_of, month_of
from schemas.codes import Code
from stream_agents.request_rules import ROBOT_ID, Fault, Refused

#: Robots of today that need not be asked about again.
_MOST_ROBOTS = 100_000


class FleetLimits:
    """Of one event loop. Valkey away lets everything through, as at the API."""

    def __init__(
        self, customers: CustomerList, counter: CounterPort | None, is_fleet: Callable[[str], bool], metrics: Metrics
    ) -> None:
        """counter: None counts nothing (ENABLE_RATE_LIMITS=false). is_fleet: of a topic; the API counts its own."""
        self._customers = customers
        self._counter = counter
        self._leases = Leases(counter) if counter is not None else None
        self._is_fleet = is_fleet
        self._metrics = metrics
        self._robots: set[tuple[str, str]] = set()
        self._robots_day = ""

    async def close(self) -> None:
        if self._counter is not None:
            await self._counter.close()

    async def over(self, topic: str, customer_id: str, robot_id: str, size_bytes: int, at_ms: int) -> Refused | None:
        """Why a new record of a fleet is refused; None lets it in, and counts it."""
        if not self._is_fleet(topic):
            return None
        limits, at_s = self._customers.limits(customer_id), at_ms / 1000
        if not self._customers.is_active(customer_id):
            return _refused(Code.FORBIDDEN, "customer", "not_active", "this customer is not active")
        if self._leases is None:
            return None
        if limits.max_payload_bytes is not None and size_bytes > limits.max_payload_bytes:
            detail = f"{size_bytes} bytes: this customer may send {limits.max_payload_bytes} in a request"
            return _refused(Code.TOO_LARGE, "request", "max_payload_bytes", detail)
        wanted = (
            ("requests_per_minute", minute_of(at_s), limits.requests_per_minute),
            ("requests_per_day", day_of(at_s), limits.requests_per_day),
            ("monthly_quota", month_of(at_s), limits.monthly_quota),
        )
        for name, window, limit in wanted:
            if limit is None:
                continue
            taken = await self._leases.take(f"customer:{customer_id}", window, limit, at_s)
            if taken is not None and not taken.allowed:
                self._metrics.limit_refusals.labels(name).inc()
                detail = f"this customer may send {limit} requests in this window: wait, or ask for a higher limit"
                return _refused(Code.QUOTA, "request", name, detail, window.remaining_s(at_s))
        return await self._robot(customer_id, robot_id, limits.max_robots, at_s)

    async def _robot(self, customer_id: str, robot_id: str, limit: int | None, at_s: float) -> Refused | None:
        # What can be no robot is refused by the rules, and takes nobody's place.
        if limit is None or self._counter is None or not ROBOT_ID.fullmatch(robot_id):
            return None
        day = day_of(at_s)
        if self._robots_day != day.name or len(self._robots) >= _MOST_ROBOTS:
            self._robots, self._robots_day = set(), day.name
        if (customer_id, robot_id) in self._robots:
            return None
        admitted = await self._counter.admit_robot(customer_id, robot_id, day, limit)
        if admitted is False:
            self._metrics.limit_refusals.labels("max_robots").inc()
            detail = f"{limit} robots a day is what this customer has, and this is another one"
            return _refused(Code.QUOTA, "robot_id", "max_robots", detail, day.remaining_s(at_s))
        if admitted:
            self._robots.add((customer_id, robot_id))
        return None


def _refused(code: Code, field: str, reason: str, detail: str, retry_after_s: float = 0.0) -> Refused:
    return Refused((Fault(code, field, reason, detail),), retry_after_s=retry_after_s)
