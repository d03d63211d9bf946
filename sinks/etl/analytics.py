"""Pipelines `instructions`, `context` and `usage`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import duckdb
from sqlalchemy import Connection, Date, cast, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on, insert

from runtime.data_tables import context_metadata, episodes, feedback, instruction_analytics
from runtime.tables import inference_log
from schemas.instructions import instruction_hash, normalised
from sinks.lake_reader import Lake
from sinks.rows import Row, category

#: Over every day that the lake has: an instruction's totals are of all that is kept.
_USES = """
    SELECT instruction, customer_id, robot_type, count(*) AS uses,
           count(*) FILTER (status = 'success') AS succeeded,
           exact_sum(safety_score) AS safety, count(safety_score) AS checked,
           exact_sum(CASE status WHEN 'success' THEN latency_total_ms END) AS latency_ms,
           min(requested_at) AS first_seen, max(requested_at) AS last_seen
    FROM (SELECT DISTINCT ON (row_id) * FROM outcomes WHERE instruction IS NOT NULL)
    GROUP BY ALL ORDER BY first_seen, instruction
"""
#: Cosine above which two instructions count as the same.
SIMILAR_FROM = 0.95
VIEWS = ("daily_usage", "monthly_usage", "safety_trend")


def instruction_rows(lake: Lake, day: duckdb.DuckDBPyConnection, customer_of: Callable[[str], str | None]) -> list[Row]:
    """A row for each instruction that was used on the day: uses of the same normalised text are added up."""
    wanted = {
        instruction_hash(instruction)
        for (instruction,) in day.execute(
            "SELECT DISTINCT instruction FROM day WHERE instruction IS NOT NULL"
        ).fetchall()
        if normalised(instruction)
    }
    groups: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for found in lake.duckdb().execute(_USES).fetchall() if wanted else []:
        key = instruction_hash(found[0])
        if key in wanted:
            groups[key].append(found)
    return [row for key, parts in groups.items() if (row := _added_up(key, parts, customer_of)) is not None]


def _added_up(key: str, parts: Sequence[tuple[Any, ...]], customer_of: Callable[[str], str | None]) -> Row | None:
    users = sorted({customer for part in parts if (customer := customer_of(part[1])) is not None})
    if not users:
        return None
    uses = sum(part[3] for part in parts)
    succeeded, checked = sum(part[4] for part in parts), sum(part[6] for part in parts)
    robots: Counter[str] = Counter()
    for part in parts:
        robots[part[2]] += part[3]
    # The first text that was ever used stands for all that read the same.
    instruction = parts[0][0]
    return {
        "instruction_hash": key,
        "instruction": instruction,
        "category": category(instruction),
        "total_uses": uses,
        "unique_customers": len(users),
        "customers": users,
        "success_rate": succeeded / uses,
        "avg_safety_score": sum(part[5] or 0 for part in parts) / checked if checked else None,
        "avg_latency_ms": sum(part[7] or 0 for part in parts) / succeeded if succeeded else None,
        "common_robots": dict(sorted(robots.items())),
        "first_seen": min(part[8] for part in parts),
        "last_seen": max(part[9] for part in parts),
    }


def write_instructions(connection: Connection, rows: Sequence[Row]) -> None:
    """Upsert the rows, give them the embedder's vectors, and mark what says the same as an earlier one."""
    table = instruction_analytics
    for row in rows:
        new = insert(table).values(**row)
        changed = {name: new.excluded[name] for name in row if name != "instruction_hash"}
        connection.execute(
            new.on_conflict_do_update(index_elements=["instruction_hash"], set_={**changed, "updated_at": func.now()})
        )
    hashes = [row["instruction_hash"] for row in rows]
    vectors = (
        select(inference_log.c.instruction, inference_log.c.instruction_embedding)
        .ext(distinct_on(inference_log.c.instruction))
        .where(
            inference_log.c.instruction.in_([row["instruction"] for row in rows]),
            inference_log.c.instruction_embedding.is_not(None),
        )
        .order_by(inference_log.c.instruction, inference_log.c.id)
        .subquery()
    )
    connection.execute(
        update(table)
        .where(table.c.instruction == vectors.c.instruction, table.c.instruction_hash.in_(hashes))
        .values(instruction_embedding=vectors.c.instruction_embedding)
    )
    _mark_similar(connection, hashes)


def _mark_similar(connection: Connection, hashes: Sequence[str]) -> None:
    """similar_to: the earliest instruction whose cosine is above SIMILAR_FROM; exact, not by the index."""
    table, other = instruction_analytics, instruction_analytics.alias("other")
    earlier = or_(
        other.c.first_seen < table.c.first_seen,
        (other.c.first_seen == table.c.first_seen) & (other.c.instruction_hash < table.c.instruction_hash),
    )
    nearest = (
        select(other.c.instruction_hash)
        .where(
            other.c.instruction_embedding.is_not(None),
            earlier,
            other.c.instruction_embedding.cosine_distance(table.c.instruction_embedding) < 1 - SIMILAR_FROM,
        )
        .order_by(other.c.first_seen, other.c.instruction_hash)
        .limit(1)
        .scalar_subquery()
    )
    chosen = table.c.instruction_hash.in_(hashes)
    connection.execute(
        update(table).where(chosen, table.c.instruction_embedding.is_not(None)).values(similar_to=nearest)
    )
    connection.execute(update(table).where(chosen).values(is_duplicate=table.c.similar_to.is_not(None)))


def complete_context(connection: Connection, day: date) -> int:
    """Give a day's scenes the success and surroundings that episodes and feedback tell of; rows that were looked at.

    Feedback on the very request decides, else the end of its episode.
    """
    scene = context_metadata
    on_day = cast(func.timezone("UTC", scene.c.created_at), Date) == day
    of_episode = (
        select(episodes.c.success, episodes.c.environment_type)
        .where(
            episodes.c.customer_id == scene.c.customer_id,
            episodes.c.robot_id == scene.c.robot_id,
            episodes.c.episode_id == scene.c.episode_id,
        )
        .limit(1)
    )
    said = (
        select(feedback.c.success)
        .where(feedback.c.inference_id == scene.c.id, feedback.c.success.is_not(None))
        .order_by(feedback.c.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    episode_success = of_episode.with_only_columns(episodes.c.success).scalar_subquery()
    surroundings = of_episode.with_only_columns(episodes.c.environment_type).scalar_subquery()
    done = connection.execute(
        update(scene).where(on_day).values(success=func.coalesce(said, episode_success), environment_type=surroundings)
    )
    return int(done.rowcount)


def refresh_usage(connection: Connection) -> None:
    """Outside a transaction block, so that readers see the old rows meanwhile."""
    for view in VIEWS:
        connection.execute(text(f"REFRESH MATERIALIZED VIEW CONCURRENTLY {view}"))
