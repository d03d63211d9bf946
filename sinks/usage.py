"""What customers used, counted from the rows that a sink is about to write, in the same transaction: exactly once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from runtime.tenancy_tables import usage_daily, usage_robots
from sinks.rows import Row

_COUNTS = ("requests", "inferences", "successful", "safety_rejected", "rate_limited", "gpu_ms")


@dataclass(slots=True)
class Used:
    """Of one customer on one UTC day."""

    requests: int = 0
    inferences: int = 0
    successful: int = 0
    safety_rejected: int = 0
    rate_limited: int = 0
    gpu_ms: float = 0.0


def used_by(rows: Iterable[Row]) -> dict[tuple[str, date], Used]:
    """Counts of rows of inference_log by customer and UTC day."""
    found: dict[tuple[str, date], Used] = {}
    for row in rows:
        used = found.setdefault(_key(row), Used())
        used.requests += 1
        used.successful += row["status"] == "success"
        used.safety_rejected += row["status"] == "safety_rejected"
        used.rate_limited += row["status"] == "rate_limited"
        if row["latency_gpu_ms"] is not None:
            used.inferences += 1
            used.gpu_ms += row["latency_gpu_ms"]
    return found


def count_usage(connection: Connection, rows: list[Row]) -> None:
    """Add rows that are new. In the transaction of the sink's mark; in one order, so that two sinks never wait for
    each other."""
    if not rows:
        return
    robots = sorted({(*_key(row), row["robot_id"]) for row in rows if row["latency_gpu_ms"] is not None})
    new_robots: dict[tuple[str, date], int] = {}
    if robots:
        values = [dict(zip(("customer_id", "date", "robot_id"), robot, strict=True)) for robot in robots]
        seen = insert(usage_robots).values(values).on_conflict_do_nothing()
        for row in connection.execute(seen.returning(usage_robots.c.customer_id, usage_robots.c.date)):
            new_robots[(row.customer_id, row.date)] = new_robots.get((row.customer_id, row.date), 0) + 1
    for (customer_id, day), used in sorted(used_by(rows).items()):
        counts: dict[str, Any] = {name: getattr(used, name) for name in _COUNTS}
        counts["robots"] = new_robots.get((customer_id, day), 0)
        new = insert(usage_daily).values(customer_id=customer_id, date=day, **counts)
        added = {name: usage_daily.c[name] + new.excluded[name] for name in counts}
        connection.execute(new.on_conflict_do_update(index_elements=["customer_id", "date"], set_=added))


def _key(row: Row) -> tuple[str, date]:
    return row["customer_id"], row["created_at"].astimezone(UTC).date()
