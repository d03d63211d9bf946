"""What feedback and episodes become in the lake: pure mappings. Of tier none there is neither."""

from __future__ import annotations

from runtime.consent import ConsentList
from runtime.kafka import Record
from sinks.data_records import decode_episode, decode_feedback
from sinks.data_rows import episode_row, feedback_row
from sinks.lake_rows import lake_entry
from sinks.marks import Entry
from sinks.rows import Row, timestamp
from sinks.store import Skip

#: These topics have one series: the offsets themselves.
_SERIES = "log"


def feedback_entry(record: Record, consents: ConsentList) -> Entry[Row]:
    """Raises Poison; Skip("consent") for tier none."""
    said = decode_feedback(record)
    if consents.tier(said.customer_id, record.timestamp_ms) == "none":
        raise Skip("consent")
    row = feedback_row(said, consents.level(said.customer_id), record.timestamp_ms)
    corrected = said.corrected if said.HasField("corrected") else None
    content = {
        "feedback_id": str(row["id"]),
        "row_id": str(row["inference_id"]),
        **_place(record, said.customer_id, said.robot_id),
        "kind": row["feedback_type"],
        "corrected": list(corrected.values) if corrected is not None else None,
        "corrected_horizon": corrected.horizon if corrected is not None else None,
        "corrected_dim": corrected.dim if corrected is not None else None,
        **{name: row[name] for name in ("request_id", "success", "rating", "failure_type", "comment")},
    }
    return lake_entry(record, content, _SERIES, record.offset)


def episode_entry(record: Record, customer_id: str, consents: ConsentList) -> Entry[Row]:
    """Raises Poison; Skip("consent") for tier none."""
    event = decode_episode(record, lambda _: customer_id)
    if consents.tier(customer_id, record.timestamp_ms) == "none":
        raise Skip("consent")
    row = episode_row(event, consents.level(customer_id), record.timestamp_ms)
    content = {
        **_place(record, event.customer_id, event.robot_id),
        "event": "start" if row["started_at"] is not None else "end",
        **{name: row[name] for name in ("episode_id", "robot_type", "success", "task", "environment_type")},
    }
    return lake_entry(record, content, _SERIES, record.offset)


def _place(record: Record, customer_id: str, robot_id: str) -> Row:
    return {
        "customer_id": customer_id,
        "robot_id": robot_id,
        "at": timestamp(record.timestamp_ms),
        "log_partition": record.partition,
        "log_offset": record.offset,
    }
