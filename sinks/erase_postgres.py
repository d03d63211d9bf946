"""Takes a customer's rows out of Postgres. Incidents stay, without saying whose they are."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from runtime.anonymize import hashed
from runtime.data_tables import (
    context_metadata,
    episodes,
    feedback,
    instruction_analytics,
    pending_embeddings,
    robot_performance_metrics,
)
from runtime.tables import inference_log, safety_incidents
from runtime.tenancy_tables import usage_robots

#: Tables whose rows go, and the column that says when the data came.
_GO: tuple[tuple[Table, str], ...] = (
    (inference_log, "created_at"),
    (context_metadata, "created_at"),
    (pending_embeddings, "created_at"),
    (feedback, "created_at"),
)


def erase_from_postgres(connection: Connection, customer_id: str, before: datetime, salt: str) -> dict[str, int]:
    """Table -> rows removed or, of safety_incidents, made anonymous. In the caller's transaction; idempotent."""
    removed = {}
    for table, column in _GO:
        removed[table.name] = _delete(connection, table, customer_id, table.c[column] <= before)
    at = func.coalesce(episodes.c.started_at, episodes.c.ended_at)
    removed[episodes.name] = _delete(connection, episodes, customer_id, at <= before)
    days = robot_performance_metrics.c.date <= before.date()
    removed[robot_performance_metrics.name] = _delete(connection, robot_performance_metrics, customer_id, days)
    # How much was used stays, for it is billed; with which robots goes.
    days = usage_robots.c.date <= before.date()
    removed[usage_robots.name] = _delete(connection, usage_robots, customer_id, days)
    removed[instruction_analytics.name] = _forget_instructions(connection, customer_id)
    incidents = (
        update(safety_incidents)
        .where(safety_incidents.c.customer_id == customer_id, safety_incidents.c.created_at <= before)
        .values(customer_id=hashed(customer_id, salt))
    )
    robots = select(safety_incidents.c.robot_id).where(
        safety_incidents.c.customer_id == customer_id, safety_incidents.c.created_at <= before
    )
    for robot_id in set(connection.execute(robots).scalars()):
        connection.execute(
            update(safety_incidents)
            .where(safety_incidents.c.customer_id == customer_id, safety_incidents.c.robot_id == robot_id)
            .values(robot_id=hashed(robot_id, salt))
        )
    removed[safety_incidents.name] = connection.execute(incidents).rowcount
    return removed


def _delete(connection: Connection, table: Table, customer_id: str, when: ColumnElement[bool]) -> int:
    return int(connection.execute(delete(table).where(table.c.customer_id == customer_id, when)).rowcount)


def _forget_instructions(connection: Connection, customer_id: str) -> int:
    """Texts that nobody else used go; of the others the customer's name does."""
    table = instruction_analytics
    used: Any = table.c.customers.contains([customer_id])
    gone = connection.execute(delete(table).where(used, func.cardinality(table.c.customers) == 1)).rowcount
    left = func.array_remove(table.c.customers, customer_id)
    connection.execute(update(table).where(used).values(customers=left, unique_customers=func.cardinality(left)))
    return int(gone)
