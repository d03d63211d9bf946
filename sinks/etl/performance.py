"""Pipeline `performance`: how well each customer's robot types did on a day, added up by DuckDB over the lake."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

import duckdb
import numpy as np
from sqlalchemy import Connection, cast, delete, func, select
from sqlalchemy.dialects.postgresql import DATE, insert

from runtime.data_tables import episodes, feedback, robot_performance_metrics
from runtime.tables import inference_log
from sinks.lake_reader import Lake
from sinks.rows import Row

_MOST_INSTRUCTIONS = 10
_FIGURES = """
    SELECT customer_id, robot_type, model,
           count(*) AS total_inferences,
           count(*) FILTER (status = 'success') AS successful_inferences,
           count(*) FILTER (status = 'safety_rejected') AS safety_rejections,
           count(*) FILTER (status NOT IN ('success', 'safety_rejected')) AS failed_inferences,
           exact_avg(CASE status WHEN 'success' THEN latency_total_ms END) AS avg_latency_ms,
           quantile_cont(latency_total_ms, 0.5) FILTER (status = 'success') AS p50_latency_ms,
           quantile_cont(latency_total_ms, 0.95) FILTER (status = 'success') AS p95_latency_ms,
           quantile_cont(latency_total_ms, 0.99) FILTER (status = 'success') AS p99_latency_ms,
           exact_avg(safety_score) AS avg_safety_score
    FROM day GROUP BY ALL
"""
_CODES = "SELECT customer_id, robot_type, model, code, count(*) FROM day WHERE code IS NOT NULL GROUP BY ALL"
_INSTRUCTIONS = """
    SELECT customer_id, robot_type, model, instruction, count(*) AS uses
    FROM day WHERE instruction IS NOT NULL GROUP BY ALL ORDER BY uses DESC, instruction
"""
_ACTIONS = """
    SELECT customer_id, robot_type, model, action_names, actions, action_dim
    FROM day WHERE actions IS NOT NULL ORDER BY row_id
"""
#: Customer, robot type, model.
Group = tuple[str, str, str]


def lake_day(lake: Lake, day: date) -> duckdb.DuckDBPyConnection:
    """DuckDB with the table `day`: outcomes of requests that were appended on that UTC day, each once.

    A file lies under the day on which its outcomes were appended, which may be the next one.
    """
    connection = lake.duckdb([day, day + timedelta(days=1)])
    connection.execute(
        "CREATE TEMP TABLE day AS SELECT DISTINCT ON (row_id) * FROM outcomes "
        "WHERE requested_at >= ?::DATE AND requested_at < ?::DATE + 1",
        [day, day],
    )
    return connection


def performance_rows(
    found: duckdb.DuckDBPyConnection, day: date, customer_of: Callable[[str], str | None]
) -> list[Row]:
    """A row for each group. Customers that nobody knows any more are left out."""
    cursor = found.execute(_FIGURES)
    names = [column[0] for column in cursor.description or []]
    figures = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    codes: defaultdict[Group, dict[str, int]] = defaultdict(dict)
    for *group, code, count in found.execute(_CODES).fetchall():
        codes[_group(group)][code] = count
    instructions: defaultdict[Group, list[Row]] = defaultdict(list)
    for *group, instruction, uses in found.execute(_INSTRUCTIONS).fetchall():
        instructions[_group(group)].append({"instruction": instruction, "count": uses})
    actions = _action_statistics(found)
    rows = []
    for row in figures:
        key = (row["customer_id"], row["robot_type"], row["model"])
        customer = customer_of(row["customer_id"])
        if customer is None:
            continue
        rows.append(
            {
                **row,
                "customer_id": customer,
                "date": day,
                "success_rate": row["successful_inferences"] / row["total_inferences"],
                "action_statistics": actions.get(key),
                "top_instructions": instructions[key][:_MOST_INSTRUCTIONS],
                "failure_patterns": codes[key],
            }
        )
    return rows


def write_performance(connection: Connection, day: date, rows: list[Row]) -> None:
    """Put a day's rows in the place of those that were there, in the caller's transaction."""
    table = robot_performance_metrics
    judged = _judged(connection, day)
    connection.execute(delete(table).where(table.c.date == day))
    for row in rows:
        yes, count = judged.get((row["customer_id"], row["robot_type"]), (0, 0))
        row["tasks_judged"], row["task_success_rate"] = count, yes / count if count else None
    if rows:
        connection.execute(insert(table), rows)


def _judged(connection: Connection, day: date) -> Mapping[tuple[str, str], tuple[int, int]]:
    """Customer and robot type -> tasks that succeeded, and tasks that were judged: episodes and feedback."""
    yes: Counter[tuple[str, str]] = Counter()
    count: Counter[tuple[str, str]] = Counter()
    ended = _utc_day(func.coalesce(episodes.c.ended_at, episodes.c.started_at)) == day
    first = select(episodes.c.customer_id, episodes.c.robot_type, episodes.c.success).where(
        episodes.c.success.is_not(None), ended
    )
    second = (
        select(feedback.c.customer_id, inference_log.c.robot_type, feedback.c.success)
        .join(inference_log, inference_log.c.id == feedback.c.inference_id)
        .where(feedback.c.success.is_not(None), _utc_day(feedback.c.created_at) == day)
    )
    for query in (first, second):
        for customer, robot_type, success in connection.execute(query):
            yes[customer, robot_type] += success
            count[customer, robot_type] += 1
    return {group: (yes[group], count[group]) for group in count}


def _action_statistics(found: duckdb.DuckDBPyConnection) -> dict[Group, Row]:
    """By group: mean, deviation and bounds of every dimension of the actions as delivered."""
    chunks: defaultdict[Group, list[Any]] = defaultdict(list)
    named: dict[Group, list[str]] = {}
    for *group, names, values, dim in found.execute(_ACTIONS).fetchall():
        key = _group(group)
        # A card that changed during the day leaves two shapes: the first one is described.
        if named.setdefault(key, names) == names:
            chunks[key].append(np.asarray(values, np.float64).reshape(-1, dim))
    statistics = {}
    for key, parts in chunks.items():
        actions = np.concatenate(parts)
        figures = {"mean": actions.mean(0), "std": actions.std(0), "min": actions.min(0), "max": actions.max(0)}
        statistics[key] = {"names": named[key], **{name: value.tolist() for name, value in figures.items()}}
    return statistics


def _group(values: list[Any]) -> Group:
    return values[0], values[1], values[2]


def _utc_day(column: Any) -> Any:
    return cast(func.timezone("UTC", column), DATE)
