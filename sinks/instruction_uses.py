"""Keeps instruction_analytics up with the stream: what was said just now can be found just now.

Counts of uses begin here and are put right by the ETL, which adds up the whole lake; similarity is its work alone.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from runtime.data_tables import instruction_analytics
from runtime.tables import inference_log
from schemas.instructions import instruction_hash, normalised
from sinks.rows import Row, category

#: Union of both arrays, sorted.
_CUSTOMERS = text("ARRAY(SELECT DISTINCT unnest(instruction_analytics.customers || excluded.customers) ORDER BY 1)")
_ROBOTS = text(
    "(SELECT jsonb_object_agg(key, uses) FROM (SELECT key, sum(value::bigint) AS uses FROM "
    "(SELECT * FROM jsonb_each_text(instruction_analytics.common_robots) UNION ALL "
    "SELECT * FROM jsonb_each_text(excluded.common_robots)) AS both_sides GROUP BY key) AS added)"
)


def count_uses(connection: Connection, ids: Sequence[uuid.UUID]) -> None:
    """Count rows of inference_log that have got their vector in this transaction, each once."""
    log = inference_log.c
    rows = connection.execute(
        select(log.instruction, log.customer_id, log.robot_type, log.status, log.created_at, log.instruction_embedding)
        .where(log.id.in_(ids), log.instruction.is_not(None), log.instruction_embedding.is_not(None))
        .order_by(log.created_at, log.id)
    )
    groups: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if normalised(row.instruction):
            groups[instruction_hash(row.instruction)].append(row)
    # In one order, so that two sinks never wait for each other.
    for key in sorted(groups):
        _count(connection, _use(key, groups[key]))


def _use(key: str, rows: Sequence[Any]) -> Row:
    customers = sorted({row.customer_id for row in rows})
    robots: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        robots[row.robot_type] += 1
    return {
        "instruction_hash": key,
        "instruction": rows[0].instruction,
        "category": category(rows[0].instruction),
        "instruction_embedding": rows[0].instruction_embedding,
        "total_uses": len(rows),
        "unique_customers": len(customers),
        "customers": customers,
        "success_rate": sum(row.status == "success" for row in rows) / len(rows),
        "common_robots": dict(sorted(robots.items())),
        "first_seen": rows[0].created_at,
        "last_seen": rows[-1].created_at,
    }


def _count(connection: Connection, use: Row) -> None:
    old, new = instruction_analytics.c, insert(instruction_analytics).values(**use)
    total = old.total_uses + new.excluded.total_uses
    succeeded = (
        func.coalesce(old.success_rate, 0) * old.total_uses + new.excluded.success_rate * new.excluded.total_uses
    )
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["instruction_hash"],
            set_={
                "total_uses": total,
                "success_rate": succeeded / total,
                "customers": _CUSTOMERS,
                "unique_customers": func.cardinality(_CUSTOMERS),
                "common_robots": _ROBOTS,
                "instruction_embedding": func.coalesce(old.instruction_embedding, new.excluded.instruction_embedding),
                "first_seen": func.least(old.first_seen, new.excluded.first_seen),
                "last_seen": func.greatest(old.last_seen, new.excluded.last_seen),
                "updated_at": func.now(),
            },
        )
    )
