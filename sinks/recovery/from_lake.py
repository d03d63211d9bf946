"""Rows of inference_log that the log no longer has, from the lake's outcomes.

What the lake does not hold stays empty: sizes of images, vectors. Where ids are hashed there, a customer is found again
by its hash; a robot keeps it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import duckdb

from runtime.database import Database
from schemas.topics import OUTCOMES
from sinks.etl.people import customers_by_hash
from sinks.lake_reader import Lake
from sinks.marks import Buffer, Entry, Limits, Partition
from sinks.postgres import RESULTS_SERIES, OutcomeRows, PostgresStore
from sinks.rows import Row, category, severity

_LIMITS = Limits(rows=2000, size_bytes=10**9, age_s=float("inf"))
_QUERY = "SELECT * FROM outcomes WHERE log_partition = ? AND log_offset >= ? AND log_offset < ? ORDER BY log_offset"
_FETCH = 2000


class LakeRows:
    """Writes them through the sink's own store, so that marks move with the rows."""

    def __init__(
        self,
        *,
        lake: Lake,
        database: Database,
        store: PostgresStore,
        salt: str,
        fleets: tuple[str, ...],
        min_score: float,
    ) -> None:
        self._lake = lake
        self._database = database
        self._store = store
        self._salt = salt
        self._fleets = fleets
        self._min_score = min_score
        self._connection: duckdb.DuckDBPyConnection | None = None
        self.written = 0

    def fill(self, partition: Partition, first: int, end: int) -> None:
        """The outcomes of a partition with offsets in [first, end); nothing for other topics."""
        if partition.topic != OUTCOMES:
            return
        if self._connection is None:
            self._connection = self._lake.duckdb()
        with self._database.begin() as connection:
            known = customers_by_hash(connection, self._salt, self._fleets)
        found = self._connection.execute(_QUERY, [partition.number, first, end])
        names = [column[0] for column in found.description or []]
        mark = self._store.open(partition)
        buffer = Buffer[Any](mark, mark.next_offset, _LIMITS)
        while rows := found.fetchmany(_FETCH):
            for row in rows:
                buffer.add(entry_of(dict(zip(names, row, strict=True)), known.get, self._min_score), 0.0)
            while (batch := buffer.batch()) is not None:
                self._store.write(partition, batch)
                buffer.written(batch, 0.0)
                self.written += len(batch.entries)


def entry_of(row: Mapping[str, Any], customer_of: Callable[[str], str | None], min_score: float) -> Entry[OutcomeRows]:
    """A row of the dataset `outcomes` as what the Postgres sink writes."""
    rows = OutcomeRows(inference_of(row, customer_of), incident_of(row, customer_of, min_score))
    return Entry(
        offset=row["log_offset"],
        row=rows,
        series=RESULTS_SERIES,
        number=row["results_offset"],
        size_bytes=0,
        timestamp_ms=round(row["decided_at"].timestamp() * 1000),
    )


def inference_of(row: Mapping[str, Any], customer_of: Callable[[str], str | None]) -> Row:
    actions, dim = row["actions"], row["action_dim"]
    first = [float(value) for value in actions[:dim]] if actions is not None else None
    instruction = row["instruction"]
    checked = row["safety_score"] is not None
    same = (
        "request_id", "robot_id", "robot_type", "model", "deployment", "model_revision", "worker_id", "batch_size",
        "seed", "step", "actions", "action_horizon", "action_dim", "safety_score", "status", "code", "http_status",
        "latency_total_ms", "latency_queue_ms", "latency_gpu_ms", "consent_tier", "source_topic", "source_partition",
        "source_offset", "results_offset", "decided_at", "instruction",
    )  # fmt: skip
    return {
        **{name: row[name] for name in same},
        "id": uuid.UUID(row["row_id"]),
        "customer_id": customer_of(row["customer_id"]) or row["customer_id"],
        "episode_id": row["episode_id"] or None,
        "instruction_category": category(instruction) if instruction is not None else None,
        "image_shape": None,
        "image_count": 0,
        "action_vector": first,
        "action_magnitude": math.hypot(*first) if first is not None else None,
        "safety_flags": _flags(row) if checked else None,
        "validation_errors": _mapping(row["validation_errors"]) or None,
        "outcome_partition": row["log_partition"],
        "outcome_offset": row["log_offset"],
        "created_at": row["requested_at"],
    }


def incident_of(row: Mapping[str, Any], customer_of: Callable[[str], str | None], min_score: float) -> Row | None:
    """The incident, with the checks and without the texts of its violations, which the lake does not hold."""
    score = row["safety_score"]
    if score is None:
        return None
    if row["status"] != "success":
        if row["status"] != "safety_rejected":
            return None
        taken = "rejected"
    elif row["safety_modified"]:
        taken = "clamped"
    elif score < min_score:
        taken = "logged"
    else:
        return None
    checks = _mapping(row["safety_checks"])
    return {
        "id": uuid.UUID(row["row_id"]),
        **{name: row[name] for name in ("request_id", "robot_id", "robot_type", "model", "deployment", "step")},
        "customer_id": customer_of(row["customer_id"]) or row["customer_id"],
        "episode_id": row["episode_id"] or None,
        "created_at": row["requested_at"],
        "severity": severity(score),
        "violation_type": min(checks, key=lambda check: checks[check]) if checks else "unknown",
        "violation_details": {"checks": checks, "violations": []},
        "action_taken": taken,
        "original_action": _matrix(row, "policy_actions" if taken == "clamped" else "actions"),
        "safe_action": _matrix(row, "actions") if taken == "clamped" else None,
        "safety_score": score,
    }


def _flags(row: Mapping[str, Any]) -> Row:
    return {"mode": row["safety_mode"], "modified": row["safety_modified"], "checks": _mapping(row["safety_checks"])}


def _mapping(value: Any) -> dict[str, Any]:
    """A map of the lake, which DuckDB gives as a dictionary or as its lists of keys and values."""
    if not value:
        return {}
    if isinstance(value, Mapping):
        if set(value) == {"key", "value"} and isinstance(value["key"], list):
            return dict(zip(value["key"], value["value"], strict=True))
        return dict(value)
    return dict(value)


def _matrix(row: Mapping[str, Any], name: str) -> Row | None:
    values = row[name]
    if values is None:
        return None
    finite = [value if math.isfinite(value) else None for value in values]
    return {"horizon": row["action_horizon"], "dim": row["action_dim"], "values": finite}
